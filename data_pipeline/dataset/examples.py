"""Records of a dataset directory: examples of named token sequences, and their text.

A record is a `tf.train.Example`. For each sequence it has the int64 list `NAME_ids`, and the text:
under the name of the language if there are two sequences, under the sequence's own name if there
is one. `label` is the number of the class, if the dataset has labels. The ids hold no special
tokens, except that the last piece of a language model's document ends with the end-of-sentence
token.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common import files
from common.console import error_text
from common.errors import UsageError
from data_pipeline.dataset.manifest import REMAKE, FileInfo, Manifest
from data_pipeline.dataset.normalization import LINE_BREAK
from data_pipeline.dataset.tokenizer import Tokenizer, load_tokenizer

# Of a TFRecord's frame: the length and its checksum before the record, and the record's after it.
HEADER_BYTES, FOOTER_BYTES = 12, 4
LABEL = "label"

_PARSE_BATCH = 4096
_READ_BYTES = 1 << 20
# A protobuf message frees its memory only as a whole.
_WRITE_BATCH = 5000


@dataclass(frozen=True)
class Examples:
    """The examples of a split, each sequence as one flat array.

    Attributes:
        tokens: sequence -> int32 [tokens], the ids of all examples, one after the other.
        offsets: sequence -> int64 [n + 1]; example i has `tokens[offsets[i]:offsets[i + 1]]`.
        labels: int32 [n], the class of each example; None without labels.
    """

    tokens: Mapping[str, np.ndarray]
    offsets: Mapping[str, np.ndarray]
    labels: np.ndarray | None = None

    @classmethod
    def of_lists(
        cls,
        ids: Mapping[str, Sequence[Sequence[int] | np.ndarray]],
        labels: Sequence[int] | np.ndarray | None = None,
    ) -> "Examples":
        """Return the examples given as lists of token ids: sequence -> n lists."""
        offsets = {name: np.zeros(len(lists) + 1, np.int64) for name, lists in ids.items()}
        tokens = {}
        for name, lists in ids.items():
            np.cumsum([len(one) for one in lists], out=offsets[name][1:])
            flat = itertools.chain.from_iterable(lists)
            tokens[name] = np.fromiter(flat, np.int32, offsets[name][-1])
        return cls(tokens, offsets, None if labels is None else np.asarray(labels, np.int32))

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(next(iter(self.offsets.values()))) - 1

    def example(self, index: int) -> dict[str, np.ndarray]:
        """Return sequence -> int32 ids of one example (views, not copies)."""
        return {
            name: self.tokens[name][offsets[index] : offsets[index + 1]]
            for name, offsets in self.offsets.items()
        }

    def lengths(self) -> np.ndarray:
        """Return int64 [sequences, n], the number of tokens of each example."""
        return np.stack([np.diff(offsets) for offsets in self.offsets.values()])


def shard_name(split: str, shard: int, num_shards: int) -> str:
    """Return the file name of a shard, such as `train-00000-of-00008.tfrecord`."""
    return f"{split}-{shard:05d}-of-{num_shards:05d}.tfrecord"


def raw_text_name(split: str, lang: str) -> str:
    """Return the file name of a split's raw text, such as `valid.de.txt`."""
    return f"{split}.{lang}.txt"


def text_keys(languages: Mapping[str, str]) -> dict[str, str]:
    """Return sequence -> the name of its text in a record, given sequence -> language."""
    return dict(languages) if len(languages) > 1 else {name: name for name in languages}


def write_examples(
    path: str,
    texts: Mapping[str, Sequence[bytes]],
    ids: Mapping[str, Sequence[Sequence[int]]],
    labels: Sequence[int] | None = None,
) -> np.ndarray:
    """Write records under a temporary name and rename the file.

    Equal examples give equal bytes.

    Args:
        path: the file to write.
        texts: name in the record (see `text_keys`) -> UTF-8 text of each example.
        ids: sequence -> token ids of each example.
        labels: the class of each example, if there are labels.

    Returns:
        int64 [n], the size in bytes of each record with its TFRecord frame.
    """
    import tensorflow as tf

    temporary = files.temporary_name(path)
    sizes = []
    with tf.io.TFRecordWriter(temporary) as writer:
        for start in range(0, len(next(iter(ids.values()))), _WRITE_BATCH):
            batch = slice(start, start + _WRITE_BATCH)
            for record in _serialize(
                {name: column[batch] for name, column in texts.items()},
                {name: column[batch] for name, column in ids.items()},
                None if labels is None else labels[batch],
            ):
                writer.write(record)
                sizes.append(HEADER_BYTES + len(record) + FOOTER_BYTES)
    tf.io.gfile.rename(temporary, path, overwrite=True)
    return np.array(sizes, np.int64)


def _serialize(
    texts: Mapping[str, Sequence[bytes]],
    ids: Mapping[str, Sequence[Sequence[int]]],
    labels: Sequence[int] | None,
) -> Iterator[bytes]:
    """Yield the record of each example; all reuse one message, which is three times as fast."""
    import tensorflow as tf

    message = tf.train.Example()
    feature = message.features.feature
    # (field of the message, values of all examples); a field's value is always a list.
    columns: list[tuple[Any, Iterable[Any]]] = []
    for name, column in ids.items():
        columns.append((feature[f"{name}_ids"].int64_list.value, column))
    for name, column in texts.items():
        columns.append((feature[name].bytes_list.value, ([text] for text in column)))
    if labels is not None:
        columns.append((feature[LABEL].int64_list.value, ([label] for label in labels)))
    fields = [field for field, _ in columns]
    for values in zip(*(column for _, column in columns), strict=True):
        for field, value in zip(fields, values, strict=True):
            field[:] = value
        # Protobuf maps have no order of their own: deterministic=True sorts the keys.
        yield message.SerializeToString(deterministic=True)


def describe_file(path: str, name: str, records: int) -> FileInfo:
    """Return the manifest's entry for the file at `path`, to be known as `name`."""
    from tensorflow.io import gfile

    return FileInfo(name, records, gfile.stat(path).length, files.sha256(path))


def read_examples(manifest: Manifest, split: str) -> Examples:
    """Read all records of a split into memory.

    Args:
        manifest: of `load_manifest`.
        split: "train", "valid" or "test".

    Returns:
        The examples, shard after shard in the order of the files.

    Raises:
        UsageError: the dataset has no such split, or a shard is missing or damaged.
    """
    info = manifest.split(split)
    examples = _parse(manifest, split, [manifest.checked_path(file) for file in info.files])
    if len(examples) != info.records:
        raise UsageError(
            f"{manifest.directory}: split {split!r} has {len(examples)} records but the manifest "
            f"says {info.records}; {REMAKE}"
        )
    return examples


def read_first_examples(manifest: Manifest, split: str, count: int) -> Examples:
    """Read at most the first `count` records of a split, without comparing checksums of files.

    Those of the training split are a uniform sample, because it is shuffled. Raises like
    `read_examples`.
    """
    paths = [manifest.sized_path(file) for file in manifest.split(split).files]
    return _parse(manifest, split, paths, count)


def _parse(
    manifest: Manifest, split: str, paths: Sequence[str], count: int | None = None
) -> Examples:
    """Read the first `count` records, or all."""
    import tensorflow as tf

    features: dict[str, tf.io.RaggedFeature | tf.io.FixedLenFeature] = {
        f"{name}_ids": tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)
        for name in manifest.sequences
    }
    if manifest.labels:
        features[LABEL] = tf.io.FixedLenFeature([], tf.int64)
    tokens: dict[str, list[np.ndarray]] = {name: [] for name in manifest.sequences}
    lengths: dict[str, list[np.ndarray]] = {name: [] for name in manifest.sequences}
    labels: list[np.ndarray] = []
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    # Parsing is the host's work, also under a strategy whose default device is an accelerator.
    with tf.device("/CPU:0"):
        # The op itself: tf.data.TFRecordDataset traces a function (10 ms) each time it is made,
        # and so does map.
        variant = tf.raw_ops.TFRecordDataset(
            filenames=paths, compression_type="", buffer_size=_READ_BYTES
        )
        dataset = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
        dataset = dataset.take(-1 if count is None else count).batch(_PARSE_BATCH)
        dataset = dataset.with_options(options)
        try:
            for batch in dataset:
                parsed = tf.io.parse_example(batch, features)
                for name in tokens:
                    values = parsed[f"{name}_ids"]
                    tokens[name].append(values.flat_values.numpy().astype(np.int32))
                    lengths[name].append(np.diff(values.row_splits.numpy()))
                if manifest.labels:
                    labels.append(parsed[LABEL].numpy().astype(np.int32))
        except tf.errors.OpError as error:
            raise UsageError(
                f"{manifest.directory}: split {split!r} cannot be parsed ({error_text(error)}); "
                f"{REMAKE}"
            ) from error
    nothing = np.zeros(0, np.int32)
    return Examples(
        tokens={name: np.concatenate([nothing, *parts]) for name, parts in tokens.items()},
        offsets={
            name: np.cumsum(np.concatenate([np.zeros(1, np.int64), *parts]))
            for name, parts in lengths.items()
        },
        labels=np.concatenate([nothing, *labels]) if manifest.labels else None,
    )


def load_tokenizers(manifest: Manifest) -> dict[str, Tokenizer]:
    """Load sequence -> tokenizer; sequences with the same model share one object."""
    loaded = {
        info: load_tokenizer(manifest.path(info)) for info in set(manifest.tokenizers.values())
    }
    return {name: loaded[manifest.tokenizers[name]] for name in manifest.sequences}


def read_raw_text(manifest: Manifest, split: str) -> dict[str, list[str]]:
    """Read the text of a split as it came in, for scoring.

    Args:
        manifest: of `load_manifest`.
        split: "valid" or "test".

    Returns:
        Sequence -> lines, in the order of the split's records; for a language model the documents,
        of which each may be in several records; and "label" -> the name of each line's class, if
        there are labels.

    Raises:
        UsageError: the dataset has no such text, or a file is missing or damaged.
    """
    info = manifest.split(split)
    if not info.raw_text:
        raise UsageError(f"{manifest.directory}: raw text is kept for valid and test, not {split}")
    names = (*manifest.sequences, *([LABEL] if manifest.labels else []))
    found = {}
    for name, file in zip(names, info.raw_text, strict=True):
        # Every line ends with a newline, so the last piece is empty.
        lines = files.read_bytes(manifest.checked_path(file)).decode("utf-8").split("\n")[:-1]
        if manifest.task == "language_model":
            lines = [line.replace(LINE_BREAK, "\n") for line in lines]
        found[name] = lines
    return found
