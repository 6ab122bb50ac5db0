"""`dataset.json`: what a dataset directory holds, and the proof that it is complete."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common import files
from common.errors import UsageError
from data_pipeline.dataset.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID

SCHEMA_VERSION = 3
MANIFEST_FILE = "dataset.json"

# Task -> the token sequences of an example, in the order in which everything lists them.
SEQUENCES: Mapping[str, tuple[str, ...]] = {
    "translation": ("source", "target"),
    "language_model": ("text",),
    "classification": ("text",),
}

_HOW_TO_MAKE = (
    "make one with python -m data_pipeline.main --train=SPEC --valid=SPEC --test=SPEC "
    "--output_dir=DIR"
)
REMAKE = "the dataset is damaged: make it again with data_pipeline.main --overwrite"


@dataclass(frozen=True)
class FileInfo:
    """One file of a dataset directory.

    Attributes:
        name: its name inside the directory.
        records: number of records (shards) or lines (text).
        bytes: its size.
        sha256: SHA-256 of its bytes, hexadecimal.
    """

    name: str
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SequenceInfo:
    """Token counts of one sequence ("source", "target" or "text") of a split.

    Attributes:
        tokens: how many tokens there are.
        max_length: length of the longest example.
        lengths: histogram as (tokens in an example, number of examples), ascending.
    """

    tokens: int
    max_length: int
    lengths: tuple[tuple[int, int], ...]

    @classmethod
    def of_histogram(cls, lengths: Iterable[tuple[int, int]]) -> "SequenceInfo":
        """Return the counts for a histogram; a length may occur in it more than once."""
        counts: dict[int, int] = {}
        for length, count in lengths:
            counts[length] = counts.get(length, 0) + count
        return cls(
            tokens=sum(length * count for length, count in counts.items()),
            max_length=max(counts, default=0),
            lengths=tuple(sorted(counts.items())),
        )


def length_histogram(lengths: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return (length, number of times it occurs), ascending."""
    values, counts = np.unique(np.array(list(lengths), np.int64), return_counts=True)
    return tuple(zip(values.tolist(), counts.tolist(), strict=True))


@dataclass(frozen=True)
class RowsInfo:
    """The training split packed into rows of one length, which can be read from any position.

    Every record of these files has the same size, so row i of a file starts at byte
    `i * record_bytes`. Rows are read and checked one block at a time.

    Attributes:
        features: names of the arrays of a row, see `packing.features`.
        row_length: tokens that a row holds of each sequence.
        rows: number of rows.
        left_out: examples longer than a row, which no row holds.
        tokens: sequence -> tokens in the rows, without padding, closing tokens included.
        token_dtype: "uint16" or "int32", little-endian.
        record_bytes: size of a record with its TFRecord frame.
        block_rows: rows of a block. Only the very last block of the last file may have fewer.
        files: the files, in order.
        blocks: for each file the digests of its blocks (see `rows.block_digest`), joined.
    """

    features: tuple[str, ...]
    row_length: int
    rows: int
    left_out: int
    tokens: Mapping[str, int]
    token_dtype: str
    record_bytes: int
    block_rows: int
    files: tuple[FileInfo, ...]
    blocks: tuple[str, ...]

    @property
    def fill_rate(self) -> float:
        """Share of the positions of all sequences that are not padding."""
        positions = len(self.tokens) * self.rows * self.row_length
        return sum(self.tokens.values()) / max(1, positions)

    def to_json(self) -> dict[str, Any]:
        """Return the value of `splits.train.rows` in `dataset.json`."""
        value = {name: item for name, item in vars(self).items() if name != "tokens"}
        return {
            **value,
            **{f"{name}_tokens": count for name, count in self.tokens.items()},
            "fill_rate": round(self.fill_rate, 5),
            "features": list(self.features),
            "files": [vars(file) for file in self.files],
            "blocks": list(self.blocks),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], sequences: Sequence[str]) -> "RowsInfo":
        """Invert `to_json`."""
        return cls(
            features=tuple(value["features"]),
            row_length=value["row_length"],
            rows=value["rows"],
            left_out=value["left_out"],
            tokens={name: value[f"{name}_tokens"] for name in sequences},
            token_dtype=value["token_dtype"],
            record_bytes=value["record_bytes"],
            block_rows=value["block_rows"],
            files=tuple(FileInfo(**file) for file in value["files"]),
            blocks=tuple(value["blocks"]),
        )


@dataclass(frozen=True)
class SplitInfo:
    """One split of a dataset.

    What is read and counted is a pair for translation, a document for a language model, and a
    labelled text for classification.

    Attributes:
        files: the shards, in order.
        pairs_in: pairs (documents, texts) read from the input.
        kept: those that passed cleaning; `pairs_in = kept + sum(dropped.values())`.
        dropped: reason -> how many.
        sequences: sequence -> its token counts over all records.
        raw_text: the files with the untouched text, one a sequence, then the labels if there are
            any (valid and test only).
        changed: cleaning step -> how many it changed.
        repeated: records beyond one for each kept pair: copies from sources with a weight above 1,
            and the further pieces of a document.
        rows: the split in packed rows (train only, and only if asked for).
        labels: label -> number of records; empty unless the task is classification.
        characters: of a language model's text in the form that is tokenised, else 0; for bits per
            character.
        text_bytes: the same in bytes of UTF-8.
        warnings: what looks wrong with the text, for people.
    """

    files: tuple[FileInfo, ...]
    pairs_in: int
    kept: int
    dropped: Mapping[str, int]
    sequences: Mapping[str, SequenceInfo]
    raw_text: tuple[FileInfo, ...] = ()
    changed: Mapping[str, int] = field(default_factory=dict)
    repeated: int = 0
    rows: RowsInfo | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    characters: int = 0
    text_bytes: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def records(self) -> int:
        """Number of records in `files`."""
        return self.kept + self.repeated

    def all_files(self) -> tuple[FileInfo, ...]:
        """Return every file of the split."""
        return (*self.files, *self.raw_text, *(self.rows.files if self.rows else ()))

    def to_json(self) -> dict[str, Any]:
        """Return the value of `splits.NAME` in `dataset.json`."""
        value = {
            "pairs_in": self.pairs_in,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "changed": dict(self.changed),
            "repeated": self.repeated,
            "warnings": list(self.warnings),
            "labels": dict(self.labels),
            "characters": self.characters,
            "text_bytes": self.text_bytes,
            "files": [vars(file) for file in self.files],
            "raw_text": [vars(file) for file in self.raw_text],
            "rows": self.rows.to_json() if self.rows else None,
        }
        for name, info in self.sequences.items():
            value[f"{name}_tokens"] = info.tokens
            value[f"max_{name}_tokens"] = info.max_length
            value[f"{name}_lengths"] = [list(item) for item in info.lengths]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any], sequences: Sequence[str]) -> "SplitInfo":
        """Invert `to_json`."""
        return cls(
            files=tuple(FileInfo(**file) for file in value["files"]),
            pairs_in=value["pairs_in"],
            kept=value["kept"],
            dropped=dict(value["dropped"]),
            sequences={
                name: SequenceInfo(
                    tokens=value[f"{name}_tokens"],
                    max_length=value[f"max_{name}_tokens"],
                    lengths=tuple((length, count) for length, count in value[f"{name}_lengths"]),
                )
                for name in sequences
            },
            raw_text=tuple(FileInfo(**file) for file in value["raw_text"]),
            changed=dict(value["changed"]),
            repeated=value["repeated"],
            rows=RowsInfo.from_json(value["rows"], sequences) if value["rows"] else None,
            labels=dict(value["labels"]),
            characters=value["characters"],
            text_bytes=value["text_bytes"],
            warnings=tuple(value["warnings"]),
        )


@dataclass(frozen=True)
class TokenizerInfo:
    """A SentencePiece model of a dataset.

    Attributes:
        file: its name inside the directory.
        sha256: SHA-256 of its bytes, hexadecimal.
        vocab_size: number of pieces.
        model_type: "unigram", "bpe", "char" or "byte".
    """

    file: str
    sha256: str
    vocab_size: int
    model_type: str


@dataclass(frozen=True)
class Manifest:
    """A finished dataset directory.

    Attributes:
        directory: where it is.
        task: a key of `SEQUENCES`.
        languages: sequence -> its language, such as "en".
        tokenizers: sequence -> the model that made its ids.
        splits: "train", "valid", "test" (those that were given) -> contents.
        labels: names of the classes, in the order of their numbers; () without labels.
        settings: every setting that it was made with.
        inputs: split -> fingerprints of its inputs.
    """

    directory: str
    task: str
    languages: Mapping[str, str]
    tokenizers: Mapping[str, TokenizerInfo]
    splits: Mapping[str, SplitInfo]
    labels: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pad_id: int = PAD_ID
    unk_id: int = UNK_ID
    bos_id: int = BOS_ID
    eos_id: int = EOS_ID

    @property
    def sequences(self) -> tuple[str, ...]:
        """Names of the token sequences of an example."""
        return SEQUENCES[self.task]

    @property
    def joint_vocabulary(self) -> bool:
        """Whether all sequences share one vocabulary."""
        return len(set(self.tokenizers.values())) == 1

    @property
    def closing_id(self) -> int | None:
        """The token that packing adds after every example: end of sentence.

        None for a language model, in whose records a document is closed already and a piece of a
        document that goes on in the next record is not.
        """
        return None if self.task == "language_model" else self.eos_id

    def path(self, file: FileInfo | TokenizerInfo) -> str:
        """Return where a file of the dataset is."""
        return os.path.join(self.directory, file.name if isinstance(file, FileInfo) else file.file)

    def sized_path(self, file: FileInfo) -> str:
        """Return a file's path; `UsageError` if it is missing or has another size than recorded."""
        from tensorflow.io import gfile

        path = self.path(file)
        if not gfile.exists(path):
            raise UsageError(f"{path}: no such file; {REMAKE}")
        size = gfile.stat(path).length
        if size != file.bytes:
            raise UsageError(
                f"{path}: has {size} bytes but was written with {file.bytes}; {REMAKE}"
            )
        return path

    def checked_path(self, file: FileInfo) -> str:
        """Return a file's path; `UsageError` if it is missing or its checksum differs."""
        path = self.sized_path(file)
        if files.sha256(path) != file.sha256:
            raise UsageError(f"{path}: its checksum does not fit; {REMAKE}")
        return path

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what a model sees: languages, vocabularies, labels, records and raw text."""
        identity = [
            *(self.languages[name] for name in self.sequences),
            *(self.tokenizers[name].sha256 for name in self.sequences),
            {
                name: [file.sha256 for file in split.all_files()]
                for name, split in sorted(self.splits.items())
            },
            *self.labels,
        ]
        return _digest(identity)

    def split(self, name: str) -> SplitInfo:
        """Return a split; `UsageError` if the dataset has no such split."""
        if name not in self.splits:
            raise UsageError(
                f"{self.directory}: has no split {name!r}, only {', '.join(self.splits)}; "
                f"make it again with --{name}=SPEC"
            )
        return self.splits[name]

    def save(self) -> None:
        """Write `dataset.json`, which declares the directory finished."""
        value = {
            "schema_version": SCHEMA_VERSION,
            "task": self.task,
            **{f"{name}_lang": self.languages[name] for name in self.sequences},
            "labels": list(self.labels),
            "settings": dict(self.settings),
            "inputs": {name: list(prints) for name, prints in self.inputs.items()},
            "tokenizer": {
                **{name: vars(self.tokenizers[name]) for name in self.sequences},
                "pad_id": self.pad_id,
                "unk_id": self.unk_id,
                "bos_id": self.bos_id,
                "eos_id": self.eos_id,
            },
            "splits": {name: split.to_json() for name, split in self.splits.items()},
            "fingerprint": self.fingerprint,
        }
        # A checksum of the rest, so that a damaged number is not mistaken for a real one.
        value["manifest_sha256"] = _digest(value)
        files.write_json(os.path.join(self.directory, MANIFEST_FILE), value)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def load_manifest(directory: str) -> Manifest:
    """Read `dataset.json` of a dataset directory; check it and the tokenizers' files.

    Args:
        directory: a directory written by `data_pipeline.main`, local or remote.

    Returns:
        The manifest. The shards are not opened; `examples.read_examples` and `verify.verify` do
        that.

    Raises:
        UsageError: there is no dataset, or `dataset.json` or a tokenizer is damaged.
    """
    from tensorflow.io import gfile

    path = os.path.join(directory, MANIFEST_FILE)
    # `exists` fails if a bucket does not answer; `isdir` would just say no, so it comes second.
    if not gfile.exists(path):
        if not gfile.isdir(directory):
            raise UsageError(f"{directory}: no such dataset directory; {_HOW_TO_MAKE}")
        raise UsageError(
            f"{directory}: not a finished dataset, it has no {MANIFEST_FILE}; {_HOW_TO_MAKE}"
        )
    try:
        value = files.read_json(path)
        version = value["schema_version"]
        checksum = value.pop("manifest_sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: cannot be understood ({error!r}); {REMAKE}") from error
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{path}: has schema version {version} but this program reads {SCHEMA_VERSION}; "
            "make the dataset again with data_pipeline.main --overwrite"
        )
    if checksum != _digest(value):
        raise UsageError(f"{path}: its checksum does not fit; {REMAKE}")
    sequences, tokenizer = SEQUENCES[value["task"]], value["tokenizer"]
    manifest = Manifest(
        directory=directory,
        task=value["task"],
        languages={name: value[f"{name}_lang"] for name in sequences},
        tokenizers={name: TokenizerInfo(**tokenizer[name]) for name in sequences},
        splits={
            name: SplitInfo.from_json(split, sequences) for name, split in value["splits"].items()
        },
        labels=tuple(value["labels"]),
        settings=value["settings"],
        inputs=value["inputs"],
        pad_id=tokenizer["pad_id"],
        unk_id=tokenizer["unk_id"],
        bos_id=tokenizer["bos_id"],
        eos_id=tokenizer["eos_id"],
    )
    for info in set(manifest.tokenizers.values()):
        if not gfile.exists(manifest.path(info)):
            raise UsageError(f"{manifest.path(info)}: no such file; {REMAKE}")
        if files.sha256(manifest.path(info)) != info.sha256:
            raise UsageError(f"{manifest.path(info)}: its checksum does not fit; {REMAKE}")
    return manifest
