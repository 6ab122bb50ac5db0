"""The dataset directory as others see it: records, raw text, manifest, tokenizer.

This is the only module of the package that the trainer imports. A record is a `tf.train.Example`
with the int64 lists `source` and `target`: SentencePiece ids without specials.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from data_pipeline import files
from data_pipeline.errors import UsageError
from data_pipeline.manifest import (
    REMAKE,
    FileInfo,
    Manifest,
    SideInfo,
    SplitInfo,
    load_manifest,
)
from data_pipeline.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "FileInfo",
    "Manifest",
    "Pairs",
    "SideInfo",
    "SplitInfo",
    "Tokenizer",
    "UsageError",
    "check_sizes",
    "load_manifest",
    "load_tokenizer",
    "read_pairs",
    "read_raw_text",
    "shard_name",
    "verify",
    "write_shard",
]

_PARSE_BATCH = 4096


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


def write_shard(path: str, pairs: Iterable[tuple[list[int], list[int]]]) -> FileInfo:
    """Writes a shard under a temporary name and renames it.

    The same pairs give the same bytes.

    Args:
        path: the file to write.
        pairs: source and target ids of each record.

    Returns:
        Name, number of records, size and checksum.
    """
    import tensorflow as tf

    temporary = files.temporary_name(path)
    records = 0
    with tf.io.TFRecordWriter(temporary) as writer:
        for source, target in pairs:
            feature = {
                "source": tf.train.Feature(int64_list=tf.train.Int64List(value=source)),
                "target": tf.train.Feature(int64_list=tf.train.Int64List(value=target)),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            # Protobuf maps have no order of their own: deterministic=True sorts the keys.
            writer.write(example.SerializeToString(deterministic=True))
            records += 1
    info = describe_file(temporary, os.path.basename(path), records)
    tf.io.gfile.rename(temporary, path, overwrite=True)
    return info


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
    import tensorflow as tf

    info = manifest.split(split)
    paths = [_checked_path(manifest, file) for file in info.files]
    ragged = {
        side: tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)
        for side in ("source", "target")
    }
    tokens: dict[str, list[np.ndarray]] = {"source": [], "target": []}
    lengths: dict[str, list[np.ndarray]] = {"source": [], "target": []}
    # Parsing is the host's work, also under a strategy whose default device is an accelerator.
    with tf.device("/CPU:0"):
        dataset = tf.data.TFRecordDataset(paths).batch(_PARSE_BATCH)
        dataset = dataset.map(lambda batch: tf.io.parse_example(batch, ragged))
        try:
            for batch in dataset:
                for side, values in batch.items():
                    tokens[side].append(values.flat_values.numpy().astype(np.int32))
                    lengths[side].append(np.diff(values.row_splits.numpy()))
        except tf.errors.OpError as error:
            message = f"{manifest.directory}: split {split!r} cannot be parsed ({error.message})"
            raise UsageError(f"{message}; {REMAKE}") from error
    source_tokens, source_offsets = _flatten(tokens["source"], lengths["source"])
    target_tokens, target_offsets = _flatten(tokens["target"], lengths["target"])
    pairs = Pairs(source_tokens, source_offsets, target_tokens, target_offsets)
    if len(pairs) != info.kept:
        raise UsageError(
            f"{manifest.directory}: split {split!r} has {len(pairs)} records but the manifest "
            f"says {info.kept}; {REMAKE}"
        )
    return pairs


def _flatten(tokens: list[np.ndarray], lengths: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Joins the batches: (int32 tokens, int64 offsets)."""
    offsets = np.zeros(sum(map(len, lengths)) + 1, np.int64)
    if not tokens:
        return np.zeros(0, np.int32), offsets
    np.cumsum(np.concatenate(lengths), out=offsets[1:])
    return np.concatenate(tokens), offsets


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
        for file in (*split.files, *split.raw_text):
            _sized_path(manifest, file)


def verify(manifest: Manifest) -> None:
    """Checks every file of a dataset against its manifest.

    Args:
        manifest: of `load_manifest`, which has checked `dataset.json` and the tokenizer.

    Raises:
        UsageError: a file is missing or damaged, or the counts do not add up.
    """
    for name, info in manifest.splits.items():
        pairs = read_pairs(manifest, name)
        for offsets, tokens, side in (
            (pairs.source_offsets, pairs.source_tokens, info.source),
            (pairs.target_offsets, pairs.target_tokens, info.target),
        ):
            lengths = np.diff(offsets)
            in_range = not len(tokens) or 0 <= tokens.min() <= tokens.max() < manifest.vocab_size
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


def length_histogram(lengths: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Returns (length, how often), ascending."""
    return tuple(sorted((int(length), n) for length, n in Counter(lengths).items()))
