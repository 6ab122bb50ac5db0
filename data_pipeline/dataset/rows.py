"""Packed rows in files that can be read at any place.

The files are plain TFRecord files in which every record has the same size. A record is a
`tf.train.Example` with four bytes features of `row_length` little-endian numbers each, see
`FEATURES`: token ids (uint16, or int32 for a vocabulary above 65,536) and segment ids (uint16).
Rows are read and checked a block at a time. A frame has checksums (CRC-32C) of its record, which
do not show that a whole record is another one: for that, `dataset.json` has a digest of the records
of every block, one after the other, without their frames.

The digest is FarmHash64 (the stable "Fingerprint64" of github.com/google/farmhash), because
TensorFlow can compute it in a graph: an input pipeline needs no Python, whose lock all threads of
a process share, and which the hosts of a TPU slice cannot call. It tells damage, not forgery;
against that there is the SHA-256 of the whole file.
"""

from dataclasses import dataclass

import numpy as np

from common import files
from common.errors import UsageError
from data_pipeline.dataset.manifest import REMAKE, Manifest, RowsInfo
from data_pipeline.dataset.packing import Rows

FEATURES = ("source", "source_segments", "target", "target_segments")

# Of a TFRecord's frame: the length and its checksum before the record, and the record's after it.
HEADER_BYTES, FOOTER_BYTES = 12, 4
DIGEST_BYTES = 8


@dataclass(frozen=True)
class Block:
    """Where a block is.

    Attributes:
        path: the file.
        begin, end: its bytes in the file, the last one not included.
        first_row: in the file.
        rows: how many it has.
        digest: what `block_digest` gave, 16 hexadecimal digits.
    """

    path: str
    begin: int
    end: int
    first_row: int
    rows: int
    digest: str

    def __str__(self) -> str:
        rows = f"rows {self.first_row} to {self.first_row + self.rows - 1}"
        return f"{self.path}, bytes {self.begin} to {self.end - 1} ({rows})"


def serialize_rows(rows: Rows, token_dtype: str) -> list[bytes]:
    """Returns the record of each row, without the frame; equal rows give equal bytes.

    Args:
        rows: int32 [R, L] arrays.
        token_dtype: "uint16" or "int32".

    Raises:
        ValueError: a number is too large for its type.
    """
    import tensorflow as tf

    columns = {}
    for name in FEATURES:
        values = getattr(rows, name)
        kind = np.dtype(_dtype(name, token_dtype)).newbyteorder("<")
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


def _dtype(feature: str, token_dtype: str) -> str:
    return "uint16" if feature.endswith("_segments") else token_dtype


def empty_record(row_length: int, token_dtype: str) -> bytes:
    """Returns the record of a row of padding, without the frame."""
    row = np.zeros([1, row_length], np.int32)
    return serialize_rows(Rows(row, row, row, row), token_dtype)[0]


def record_bytes(row_length: int, token_dtype: str) -> int:
    """Returns the size of a record with its TFRecord frame."""
    return HEADER_BYTES + len(empty_record(row_length, token_dtype)) + FOOTER_BYTES


def block_digest(records: bytes) -> str:
    """Returns the FarmHash64 of a block's records without frames, 16 hexadecimal digits."""
    import tensorflow as tf

    return tf.fingerprint([records])[0].numpy().tobytes().hex()


def describe_blocks(path: str, record_bytes: int, block_rows: int) -> str:
    """Returns the digests of a file's blocks, joined."""
    from tensorflow.io import gfile

    digests = []
    with gfile.GFile(path, "rb") as file:
        while data := file.read(block_rows * record_bytes):
            framed = np.frombuffer(data, np.uint8).reshape(-1, record_bytes)
            digests.append(block_digest(framed[:, HEADER_BYTES:-FOOTER_BYTES].tobytes()))
    return "".join(digests)


def find_block(manifest: Manifest, info: RowsInfo, index: int) -> Block:
    """Returns where block `index` of the split is, counted through all files."""
    number = index
    for file, digests in zip(info.files, info.blocks, strict=True):
        blocks = len(digests) // (2 * DIGEST_BYTES)
        if number < blocks:
            first = number * info.block_rows
            rows = min(info.block_rows, file.records - first)
            begin = first * info.record_bytes
            return Block(
                path=manifest.path(file),
                begin=begin,
                end=begin + rows * info.record_bytes,
                first_row=first,
                rows=rows,
                digest=digests[2 * DIGEST_BYTES * number : 2 * DIGEST_BYTES * (number + 1)],
            )
        number -= blocks
    raise IndexError(f"there is no block {index}")


def read_block(manifest: Manifest, info: RowsInfo, index: int) -> dict[str, np.ndarray]:
    """Reads and checks one block.

    Args:
        manifest: of the dataset.
        info: of its packed rows.
        index: of the block, counted through all files.

    Returns:
        `FEATURES`, int32 [rows, row_length] each; the last block may have fewer rows.

    Raises:
        UsageError: the file is missing, ends early, or is damaged there.
        tf.errors.OpError: of a kind that passes, such as `tf.errors.UnavailableError`.
    """
    import tensorflow as tf

    block = find_block(manifest, info, index)
    damaged = UsageError(
        f"{block}: its checksum does not fit; {REMAKE}, or train without these rows: "
        "trainer.main --skip_corrupt_data"
    )
    try:
        left = tf.io.gfile.stat(block.path).length - block.begin
        if left < block.end - block.begin:
            raise UsageError(
                f"{block}: the file ends after {max(0, left)} of these bytes; {REMAKE}"
            )
        records = read_records(block.path, block.begin, block.rows, info.record_bytes)
        if block_digest(b"".join(records.numpy())) != block.digest:
            raise damaged
        features = parse(records, info.row_length, info.token_dtype)
    except tf.errors.NotFoundError as error:
        raise UsageError(f"{block.path}: no such file; {REMAKE}") from error
    except tf.errors.DataLossError as error:
        raise damaged from error
    except tf.errors.InvalidArgumentError as error:
        raise UsageError(
            f"{block}: these are no packed rows ({error.message}); {REMAKE}"
        ) from error
    except files.passing_errors():
        raise
    except tf.errors.OpError as error:
        raise UsageError(
            f"{block}: cannot be read ({error.message}); check the storage and start again"
        ) from error
    return {name: value.numpy() for name, value in features.items()}


def read_records(path, begin, rows, record_bytes: int, *, up_to_damage: bool = False):
    """Reads records from a place of a file on, also in a graph.

    Args:
        path: of the file; a string or a tensor, like the next two.
        begin: its byte with which the first record's frame begins.
        rows: how many records, at least 1.
        record_bytes: size of one with its frame.
        up_to_damage: do not fail at damage. The caller has to compare the digest then: the records
            may be fewer than `rows`, and may be the damaged ones.

    Returns:
        string tensor [n], the records without frames; n is below `rows` if the file ends, or the
        readable part of it does.

    Raises:
        tf.errors.DataLossError: a record or its frame is damaged.
        tf.errors.NotFoundError: there is no such file.
        tf.errors.OpError: it cannot be read.
    """
    import tensorflow as tf

    rows = tf.cast(rows, tf.int64)
    # The op behind tf.data.TFRecordDataset, which does not give its argument for the place.
    # (tf.data.FixedLengthRecordDataset has one, and reads all that is before it.)
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=tf.reshape(path, [1]),
        compression_type="",
        buffer_size=rows * record_bytes,
        byte_offsets=tf.reshape(tf.cast(begin, tf.int64), [1]),
    )
    dataset = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
    if up_to_damage:
        # Fails if there is no file: ignore_errors would try to open it for ever.
        first_byte = tf.data.FixedLengthRecordDataset(path, 1, buffer_size=1).take(1)
        with tf.control_dependencies([first_byte.get_single_element()]):
            rows = tf.identity(rows)
        dataset = dataset.ignore_errors()
    # Something always follows, since a batch of nothing is an error.
    filler = tf.data.Dataset.from_tensors("").repeat(rows)
    records = dataset.take(rows).concatenate(filler).batch(rows).take(1).get_single_element()
    records = tf.boolean_mask(records, records != "")
    if not up_to_damage:
        return records
    # Storage that failed looks like damage here. Reading the file as it is fails then.
    return tf.cond(
        tf.cast(tf.size(records), tf.int64) < rows,
        lambda: _unchecked_records(path, begin, rows, record_bytes),
        lambda: records,
    )


def _unchecked_records(path, begin, rows, record_bytes: int):
    """string tensor [n], n <= rows, records with checksums not looked at; reads the whole file."""
    import tensorflow as tf

    content = tf.io.read_file(path)
    size = tf.cast(tf.strings.length(content), tf.int64)
    begin = tf.minimum(tf.cast(begin, tf.int64), size)
    letters = tf.strings.bytes_split(tf.strings.substr(content, begin, rows * record_bytes))
    whole = tf.size(letters) // record_bytes
    framed = tf.reshape(letters[: whole * record_bytes], [whole, record_bytes])
    return tf.strings.reduce_join(framed[:, HEADER_BYTES:-FOOTER_BYTES], axis=1)


def parse(records, row_length: int, token_dtype: str):
    """Turns records into rows, also in a graph.

    Args:
        records: string tensor [n], without frames.
        row_length: tokens a side.
        token_dtype: "uint16" or "int32".

    Returns:
        `FEATURES`, int32 tensors [n, row_length].

    Raises:
        tf.errors.InvalidArgumentError: a record is something else.
    """
    import tensorflow as tf

    values = tf.io.parse_example(
        records, {name: tf.io.FixedLenFeature([], tf.string) for name in FEATURES}
    )
    rows = {}
    for name in FEATURES:
        numbers = tf.io.decode_raw(values[name], tf.as_dtype(_dtype(name, token_dtype)))
        # Not [-1, row_length], which would take rows of twice the length.
        shaped = tf.reshape(numbers, tf.stack([tf.size(records), row_length]))
        rows[name] = tf.cast(tf.ensure_shape(shaped, [None, row_length]), tf.int32)
    return rows
