"""The dataset directory as others see it: records, raw text, manifest, tokenizer.

This is the only module of the package that the trainer imports, besides `packing` and `rows`. A
record is a `tf.train.Example` with the int64 lists `source_ids` and `target_ids` (SentencePiece ids
without specials), and the text of each side under the name of its language.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from common import files
from common.errors import UsageError
from data_pipeline.dataset.manifest import (
    REMAKE,
    FileInfo,
    Manifest,
    RowsInfo,
    SideInfo,
    SplitInfo,
    TokenizerInfo,
    load_manifest,
)
from data_pipeline.dataset.tokenizer import Tokenizer, load_tokenizer
from data_pipeline.dataset.verify import verify_rows

__all__ = [
    "FileInfo",
    "Manifest",
    "Pairs",
    "RowsInfo",
    "SideInfo",
    "SplitInfo",
    "Tokenizer",
    "TokenizerInfo",
    "UsageError",
    "check_sizes",
    "load_manifest",
    "load_tokenizer",
    "load_tokenizers",
    "read_first_pairs",
    "read_pairs",
    "read_raw_text",
    "shard_name",
    "verify",
    "verify_split",
    "write_pairs",
]

# A TFRecord frame: length (8 bytes) and its checksum (4), the record, the record's checksum (4).
FRAME_BYTES = 16

_PARSE_BATCH = 4096
_READ_BYTES = 1 << 20
# Memory of a protobuf message is given back only as a whole.
_WRITE_BATCH = 5000


@dataclass(frozen=True)
class Pairs:
    """The token ids of a split, each side as one flat array.

    Attributes:
        source_tokens: int32[source tokens], all source sentences one after the other.
        source_offsets: int64[pairs + 1]; sentence i is `source_tokens[offsets[i]:offsets[i+1]]`.
        target_tokens: int32[target tokens].
        target_offsets: int64[pairs + 1].
    """

    source_tokens: np.ndarray
    source_offsets: np.ndarray
    target_tokens: np.ndarray
    target_offsets: np.ndarray

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self.source_offsets) - 1

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the int32 ids of source and target of one pair (views, not copies)."""
        source = slice(self.source_offsets[index], self.source_offsets[index + 1])
        target = slice(self.target_offsets[index], self.target_offsets[index + 1])
        return self.source_tokens[source], self.target_tokens[target]


def shard_name(split: str, shard: int, num_shards: int) -> str:
    """Returns the file name of a shard, such as `train-00000-of-00008.tfrecord`."""
    return f"{split}-{shard:05d}-of-{num_shards:05d}.tfrecord"


def raw_text_name(split: str, lang: str) -> str:
    """Returns the file name of a split's raw text, such as `valid.de.txt`."""
    return f"{split}.{lang}.txt"


def write_pairs(
    path: str,
    langs: tuple[str, str],
    texts: tuple[Sequence[bytes], Sequence[bytes]],
    ids: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
) -> np.ndarray:
    """Writes the records of some pairs under a temporary name and renames the file.

    The same pairs give the same bytes.

    Args:
        path: the file to write.
        langs: source and target language.
        texts: source and target text of each record, in UTF-8.
        ids: source and target ids of each record.

    Returns:
        int64 [records], the size of each record with its TFRecord frame, in bytes.
    """
    import tensorflow as tf

    temporary = files.temporary_name(path)
    sizes = []
    with tf.io.TFRecordWriter(temporary) as writer:
        for start in range(0, len(texts[0]), _WRITE_BATCH):
            batch = slice(start, start + _WRITE_BATCH)
            for record in _serialize(
                langs, texts[0][batch], texts[1][batch], *(i[batch] for i in ids)
            ):
                writer.write(record)
                sizes.append(len(record) + FRAME_BYTES)
    tf.io.gfile.rename(temporary, path, overwrite=True)
    return np.array(sizes, np.int64)


def _serialize(
    langs: tuple[str, str],
    source_texts: Sequence[bytes],
    target_texts: Sequence[bytes],
    source_ids: Sequence[Sequence[int]],
    target_ids: Sequence[Sequence[int]],
) -> Iterator[bytes]:
    """Yields the record of each pair, all made with one message: three times as fast."""
    import tensorflow as tf

    example = tf.train.Example()
    feature = example.features.feature
    source_list = feature["source_ids"].int64_list.value
    target_list = feature["target_ids"].int64_list.value
    source_text, target_text = (feature[lang].bytes_list.value for lang in langs)
    source_text.append(b"")
    target_text.append(b"")
    for source_text[0], target_text[0], source_list[:], target_list[:] in zip(
        source_texts, target_texts, source_ids, target_ids, strict=True
    ):
        # Protobuf maps have no order of their own: deterministic=True sorts the keys.
        yield example.SerializeToString(deterministic=True)


def describe_file(path: str, name: str, records: int) -> FileInfo:
    """Returns the manifest's entry for the file at `path`, to be known as `name`."""
    from tensorflow.io import gfile

    return FileInfo(name, records, gfile.stat(path).length, files.sha256(path))


def read_pairs(manifest: Manifest, split: str) -> Pairs:
    """Reads all records of a split into memory.

    Args:
        manifest: of `load_manifest`.
        split: "train", "valid" or "test".

    Returns:
        The pairs, shard after shard in the order of the files.

    Raises:
        UsageError: the dataset has no such split, or a shard is missing or damaged.
    """
    info = manifest.split(split)
    pairs = _parse_pairs(manifest, split, [_checked_path(manifest, file) for file in info.files])
    if len(pairs) != info.records:
        raise UsageError(
            f"{manifest.directory}: split {split!r} has {len(pairs)} records but the manifest "
            f"says {info.records}; {REMAKE}"
        )
    return pairs


def read_first_pairs(manifest: Manifest, split: str, count: int) -> Pairs:
    """Reads at most the first `count` records of a split, without comparing checksums of files.

    Those of the training split are a uniform sample, for it is shuffled. Raises as `read_pairs`.
    """
    paths = [_sized_path(manifest, file) for file in manifest.split(split).files]
    return _parse_pairs(manifest, split, paths, count)


def _parse_pairs(
    manifest: Manifest, split: str, paths: Sequence[str], count: int | None = None
) -> Pairs:
    """Reads records, the first `count` or all."""
    import tensorflow as tf

    ragged = {
        f"{side}_ids": tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)
        for side in ("source", "target")
    }
    tokens: dict[str, list[np.ndarray]] = {"source": [], "target": []}
    lengths: dict[str, list[np.ndarray]] = {"source": [], "target": []}
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    # Parsing is the host's work, also under a strategy whose default device is an accelerator.
    with tf.device("/CPU:0"):
        # The op, since tf.data.TFRecordDataset traces a function (10 ms) each time it is made, and
        # so does map.
        variant = tf.raw_ops.TFRecordDataset(
            filenames=paths, compression_type="", buffer_size=_READ_BYTES
        )
        dataset = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
        dataset = dataset.take(-1 if count is None else count).batch(_PARSE_BATCH)
        dataset = dataset.with_options(options)
        try:
            for batch in dataset:
                parsed = tf.io.parse_example(batch, ragged)
                for side in tokens:
                    values = parsed[f"{side}_ids"]
                    tokens[side].append(values.flat_values.numpy().astype(np.int32))
                    lengths[side].append(np.diff(values.row_splits.numpy()))
        except tf.errors.OpError as error:
            message = f"{manifest.directory}: split {split!r} cannot be parsed ({error.message})"
            raise UsageError(f"{message}; {REMAKE}") from error
    source_tokens, source_offsets = _flatten(tokens["source"], lengths["source"])
    target_tokens, target_offsets = _flatten(tokens["target"], lengths["target"])
    return Pairs(source_tokens, source_offsets, target_tokens, target_offsets)


def _flatten(tokens: list[np.ndarray], lengths: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Joins the batches: (int32 tokens, int64 offsets)."""
    offsets = np.zeros(sum(map(len, lengths)) + 1, np.int64)
    if not tokens:
        return np.zeros(0, np.int32), offsets
    np.cumsum(np.concatenate(lengths), out=offsets[1:])
    return np.concatenate(tokens), offsets


def load_tokenizers(manifest: Manifest) -> tuple[Tokenizer, Tokenizer]:
    """Loads the source and the target tokenizer: the same object for a joint vocabulary."""
    source = load_tokenizer(manifest.path(manifest.source_tokenizer))
    if manifest.joint_vocabulary:
        return source, source
    return source, load_tokenizer(manifest.path(manifest.target_tokenizer))


def read_raw_text(manifest: Manifest, split: str) -> tuple[list[str], list[str]]:
    """Reads the text of a split as it came in, for scoring.

    Args:
        manifest: of `load_manifest`.
        split: "valid" or "test".

    Returns:
        Source lines and reference lines, in the order of the split's records.

    Raises:
        UsageError: the dataset has no such text, or a file is missing or damaged.
    """
    info = manifest.split(split)
    if not info.raw_text:
        raise UsageError(f"{manifest.directory}: raw text is kept for valid and test, not {split}")
    source, target = (_read_lines(manifest, file) for file in info.raw_text)
    return source, target


def _read_lines(manifest: Manifest, file: FileInfo) -> list[str]:
    lines = files.read_bytes(_checked_path(manifest, file)).decode("utf-8").split("\n")
    # Every line ends with a newline, so the last piece is empty.
    return lines[:-1]


def _checked_path(manifest: Manifest, file: FileInfo) -> str:
    """Returns the file's path; `UsageError` if it is missing or not what was written."""
    path = _sized_path(manifest, file)
    if files.sha256(path) != file.sha256:
        raise UsageError(f"{path}: its checksum does not fit; {REMAKE}")
    return path


def _sized_path(manifest: Manifest, file: FileInfo) -> str:
    """Returns the file's path; `UsageError` if it is missing or has another size."""
    from tensorflow.io import gfile

    path = os.path.join(manifest.directory, file.name)
    if not gfile.exists(path):
        raise UsageError(f"{path}: no such file; {REMAKE}")
    size = gfile.stat(path).length
    if size != file.bytes:
        raise UsageError(f"{path}: has {size} bytes but was written with {file.bytes}; {REMAKE}")
    return path


def check_sizes(manifest: Manifest) -> None:
    """Checks, without reading them, that the files are there; `UsageError` if not."""
    for split in manifest.splits.values():
        for file in split.all_files():
            _sized_path(manifest, file)


def verify(manifest: Manifest) -> None:
    """Checks every file of a dataset against its manifest.

    Args:
        manifest: of `load_manifest`, which has checked `dataset.json` and the tokenizer.

    Raises:
        UsageError: a file is missing or damaged, or the counts do not add up.
    """
    for split in manifest.splits:
        verify_split(manifest, split)


def verify_split(manifest: Manifest, name: str) -> Pairs:
    """Checks every file of a split against the manifest, as `verify` does; returns its pairs."""
    info = manifest.split(name)
    pairs = read_pairs(manifest, name)
    vocabularies = (manifest.source_tokenizer, manifest.target_tokenizer)
    for offsets, tokens, side, vocabulary in (
        (pairs.source_offsets, pairs.source_tokens, info.source, vocabularies[0]),
        (pairs.target_offsets, pairs.target_tokens, info.target, vocabularies[1]),
    ):
        lengths = np.diff(offsets)
        ids = tokens if len(tokens) else np.zeros(1)
        in_range = 0 <= ids.min() <= ids.max() < vocabulary.vocab_size
        if not in_range or length_histogram(lengths) != side.lengths:
            raise UsageError(
                f"{manifest.directory}: the records of split {name!r} are not those that the "
                f"manifest counts; {REMAKE}"
            )
    if info.pairs_in != info.kept + sum(info.dropped.values()):
        raise UsageError(f"{manifest.directory}: counts of {name!r} do not add up; {REMAKE}")
    if info.raw_text:
        for lines in read_raw_text(manifest, name):
            if len(lines) != info.kept:
                raise UsageError(
                    f"{manifest.directory}: raw text of {name!r} has {len(lines)} lines for "
                    f"{info.kept} records; {REMAKE}"
                )
    if info.rows:
        for file in info.rows.files:
            _checked_path(manifest, file)
        verify_rows(manifest, info.rows, info.records * manifest.settings["segmentations"])
    return pairs


def length_histogram(lengths: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Returns (length, how often), ascending."""
    values, counts = np.unique(np.array(list(lengths), np.int64), return_counts=True)
    return tuple(zip(values.tolist(), counts.tolist(), strict=True))
