"""Packed rows in files that can be read from any position.

The files are plain TFRecord files in which every record has the same size. A record is a
`tf.train.Example` with one bytes feature for each array of a row (`packing.features`), which holds
`row_length` little-endian numbers: token ids as uint16, or int32 for a vocabulary above 65,536,
and everything else as uint16. Rows are read and checked one block at a time. A frame has checksums
(CRC-32C) of its record, which cannot show that a whole record was swapped for another: for that,
`dataset.json` has a digest of the records of every block, concatenated without their frames.

The digest is FarmHash64 (the stable "Fingerprint64" of github.com/google/farmhash), because
TensorFlow can compute it in a graph: an input pipeline needs no Python, whose lock all threads of
a process share, and which the hosts of a TPU slice cannot call. It detects damage, not forgery;
the SHA-256 of the whole file does that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common import files
from common.errors import UsageError
from data_pipeline.dataset.examples import FOOTER_BYTES, HEADER_BYTES
from data_pipeline.dataset.manifest import REMAKE, Manifest, RowsInfo
from data_pipeline.dataset.packing import Rows

DIGEST_BYTES = 8


def serialize_rows(rows: Rows, token_dtype: str) -> list[bytes]:
    """Return the record of each row, without the frame; equal rows give equal bytes.

    Args:
        rows: int32 [R, L] arrays.
        token_dtype: "uint16" or "int32".

    Raises:
        ValueError: a number is too large for its type.
    """
    import tensorflow as tf

    columns = {}
    for name, values in rows.arrays.items():
        kind = np.dtype(_dtype(name, tuple(rows.arrays), token_dtype)).newbyteorder("<")
        if values.size and values.max() > np.iinfo(kind).max:
            raise ValueError(f"{name} holds {values.max()}, which {kind.name} cannot")
        columns[name] = values.astype(kind)
    records = []
    for row in range(len(rows)):
        example = tf.train.Example()
        for name, values in columns.items():
            example.features.feature[name].bytes_list.value.append(values[row].tobytes())
        # Protobuf maps have no order of their own: deterministic=True sorts the keys.
        records.append(example.SerializeToString(deterministic=True))
    return records


def _dtype(feature: str, features: Sequence[str], token_dtype: str) -> str:
    """Return how a feature is stored: a sequence is one that has segments."""
    return token_dtype if f"{feature}_segments" in features else "uint16"


def empty_record(features: Sequence[str], row_length: int, token_dtype: str) -> bytes:
    """Return the record of a row of padding, without the frame."""
    row = np.zeros([1, row_length], np.int32)
    return serialize_rows(Rows(dict.fromkeys(features, row)), token_dtype)[0]


def record_bytes(features: Sequence[str], row_length: int, token_dtype: str) -> int:
    """Return the size of a record with its TFRecord frame."""
    return HEADER_BYTES + len(empty_record(features, row_length, token_dtype)) + FOOTER_BYTES


def block_digest(records: bytes) -> str:
    """Return the FarmHash64 of a block's records without frames, 16 hexadecimal digits."""
    import tensorflow as tf

    return tf.fingerprint([records])[0].numpy().tobytes().hex()


def describe_blocks(path: str, record_bytes: int, block_rows: int) -> str:
    """Return the digests of a file's blocks, joined."""
    from tensorflow.io import gfile

    digests = []
    with gfile.GFile(path, "rb") as file:
        while data := file.read(block_rows * record_bytes):
            framed = np.frombuffer(data, np.uint8)  # [n * record_bytes]
            framed = framed.reshape(-1, record_bytes)  # [n, record_bytes]
            digests.append(block_digest(framed[:, HEADER_BYTES:-FOOTER_BYTES].tobytes()))
    return "".join(digests)


@dataclass(frozen=True)
class Blocks:
    """Where the n blocks of a dataset are, through all its files.

    Attributes:
        paths: the files.
        file: int64 [n], which of `paths` a block is in.
        first_row: int64 [n], its first row in that file.
        rows: int64 [n], how many it has.
        digests: uint8 [n, 8], see `block_digest`.
        record_bytes: size of a record with its frame.
    """

    paths: tuple[str, ...]
    file: np.ndarray
    first_row: np.ndarray
    rows: np.ndarray
    digests: np.ndarray
    record_bytes: int

    def __len__(self) -> int:
        return len(self.file)

    @property
    def begin(self) -> np.ndarray:
        """int64 [n], a block's first byte in its file."""
        return self.first_row * self.record_bytes

    def describe(self, index: int) -> str:
        """Return where a block is, for people."""
        first, rows = int(self.first_row[index]), int(self.rows[index])
        begin = first * self.record_bytes
        return (
            f"{self.paths[self.file[index]]}, bytes {begin} to "
            f"{begin + rows * self.record_bytes - 1} (rows {first} to {first + rows - 1})"
        )


def find_blocks(manifest: Manifest, info: RowsInfo) -> Blocks:
    """Return where the blocks of a dataset are."""
    counts = [len(digests) // (2 * DIGEST_BYTES) for digests in info.blocks]
    file = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(file)) - np.repeat(np.cumsum(counts) - counts, counts)  # in its file
    first_row = number * info.block_rows
    records = np.array([file.records for file in info.files], np.int64)
    return Blocks(
        paths=tuple(manifest.path(file) for file in info.files),
        file=file,
        first_row=first_row,
        rows=np.minimum(records[file] - first_row, info.block_rows),
        digests=np.frombuffer(bytes.fromhex("".join(info.blocks)), np.uint8).reshape(
            -1, DIGEST_BYTES
        ),
        record_bytes=info.record_bytes,
    )


def read_block(blocks: Blocks, index: int, info: RowsInfo) -> dict[str, np.ndarray]:
    """Read and check one block.

    Args:
        blocks: of the dataset.
        index: number of the block.
        info: of the dataset's packed rows.

    Returns:
        `info.features`, int32 [rows, row_length] each; the last block may have fewer rows.

    Raises:
        UsageError: the file is missing, ends early, or is damaged there.
        tf.errors.OpError: of a kind that passes, such as `tf.errors.UnavailableError`.
    """
    import tensorflow as tf

    path, place = blocks.paths[blocks.file[index]], blocks.describe(index)
    begin, rows = int(blocks.begin[index]), int(blocks.rows[index])
    damaged = UsageError(
        f"{place}: its checksum does not fit; {REMAKE}, or train without these rows: "
        "trainer.main --skip_corrupt_data"
    )
    try:
        left = tf.io.gfile.stat(path).length - begin
        if left < rows * info.record_bytes:
            raise UsageError(
                f"{place}: the file ends after {max(0, left)} of these bytes; {REMAKE}"
            )
        records = read_records(path, begin, rows, info.record_bytes)
        if block_digest(b"".join(records.numpy())) != blocks.digests[index].tobytes().hex():
            raise damaged
        features = parse(records, info)
    except tf.errors.NotFoundError as error:
        raise UsageError(f"{path}: no such file; {REMAKE}") from error
    except tf.errors.DataLossError as error:
        raise damaged from error
    except tf.errors.InvalidArgumentError as error:
        raise UsageError(
            f"{place}: these are not packed rows ({error.message}); {REMAKE}"
        ) from error
    except files.passing_errors():
        raise
    except tf.errors.OpError as error:
        raise UsageError(
            f"{place}: cannot be read ({error.message}); check the storage and start again"
        ) from error
    return {name: value.numpy() for name, value in features.items()}


def read_records(path, begin, rows, record_bytes: int, *, up_to_damage: bool = False):
    """Read records from a position of a file; works in a graph too.

    Args:
        path: the file; a string or a tensor, like the next two.
        begin: first byte of the first record's frame.
        rows: how many records, at least 1.
        record_bytes: size of a record with its frame.
        up_to_damage: do not fail at damage. The caller must then compare the digest: there may be
            fewer records than `rows`, and they may be damaged.

    Returns:
        string tensor [n], the records without frames; n is below `rows` if the file, or its
        readable part, ends before.

    Raises:
        tf.errors.DataLossError: a record or its frame is damaged.
        tf.errors.NotFoundError: there is no such file.
        tf.errors.OpError: it cannot be read.
    """
    import tensorflow as tf

    rows = tf.cast(rows, tf.int64)
    # The op behind tf.data.TFRecordDataset, which does not expose its argument for the position.
    # (tf.data.FixedLengthRecordDataset has one, and reads everything before it.)
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=tf.reshape(path, [1]),
        compression_type="",
        buffer_size=rows * record_bytes,
        byte_offsets=tf.reshape(tf.cast(begin, tf.int64), [1]),
    )
    dataset = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
    if up_to_damage:
        # Fails if there is no file; ignore_errors alone would try to open it forever.
        first_byte = tf.data.FixedLengthRecordDataset(path, 1, buffer_size=1).take(1)
        with tf.control_dependencies([first_byte.get_single_element()]):
            rows = tf.identity(rows)
        dataset = dataset.ignore_errors()
    # Append filler, because a batch of nothing is an error.
    filler = tf.data.Dataset.from_tensors("").repeat(rows)
    records = dataset.take(rows).concatenate(filler).batch(rows).take(1).get_single_element()
    records = tf.boolean_mask(records, records != "")
    if not up_to_damage:
        return records
    # Failing storage looks like damage here. Reading the file as it is then fails as it should.
    return tf.cond(
        tf.cast(tf.size(records), tf.int64) < rows,
        lambda: _unchecked_records(path, begin, rows, record_bytes),
        lambda: records,
    )


def _unchecked_records(path, begin, rows, record_bytes: int):
    """Return string tensor [n], n <= rows, without looking at checksums; reads the whole file."""
    import tensorflow as tf

    content = tf.io.read_file(path)
    size = tf.cast(tf.strings.length(content), tf.int64)
    begin = tf.minimum(tf.cast(begin, tf.int64), size)
    letters = tf.strings.bytes_split(tf.strings.substr(content, begin, rows * record_bytes))
    whole = tf.size(letters) // record_bytes
    letters = letters[: whole * record_bytes]
    framed = tf.reshape(letters, [whole, record_bytes])  # [whole, record_bytes]
    return tf.strings.reduce_join(framed[:, HEADER_BYTES:-FOOTER_BYTES], axis=1)


def parse(records, info: RowsInfo):
    """Turn records into rows; works in a graph too.

    Args:
        records: string tensor [n], without frames.
        info: of the dataset's packed rows.

    Returns:
        `info.features`, int32 tensors [n, row_length].

    Raises:
        tf.errors.InvalidArgumentError: a record is something else.
    """
    import tensorflow as tf

    values = tf.io.parse_example(
        records, {name: tf.io.FixedLenFeature([], tf.string) for name in info.features}
    )
    rows = {}
    for name in info.features:
        dtype = tf.as_dtype(_dtype(name, info.features, info.token_dtype))
        numbers = tf.io.decode_raw(values[name], dtype)
        # Not [-1, row_length], which would accept rows of twice the length.
        shape = tf.stack([tf.size(records), info.row_length])
        shaped = tf.reshape(numbers, shape)  # [n, row_length]
        rows[name] = tf.cast(tf.ensure_shape(shaped, [None, info.row_length]), tf.int32)
    return rows
