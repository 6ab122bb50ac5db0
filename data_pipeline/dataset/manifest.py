"""`dataset.json`: what a dataset directory holds, and the proof that it is whole."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common import files
from common.errors import UsageError
from data_pipeline.dataset.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID

SCHEMA_VERSION = 2
MANIFEST_FILE = "dataset.json"

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
        records: how many records (shards) or lines (text) it has.
        bytes: its size.
        sha256: SHA-256 of its bytes, hexadecimal.
    """

    name: str
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SideInfo:
    """Token counts of one side (source or target) of a split, without specials.

    Attributes:
        tokens: how many there are.
        max_length: the longest sentence.
        lengths: histogram, (tokens in a sentence, how many sentences), ascending.
    """

    tokens: int
    max_length: int
    lengths: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class RowsInfo:
    """The training split packed into rows of one length, ready to be read at any place.

    Every record of these files has the same size, so row i of a file starts at byte
    `i * record_bytes`. Rows are read and checked a block at a time.

    Attributes:
        row_length: tokens that a row holds on each side.
        rows: how many there are.
        left_out: pairs that are longer than a row, and therefore in none.
        source_tokens: tokens in the rows that are not padding, end-of-sentence tokens included.
        target_tokens: the same of the target side.
        token_dtype: "uint16" or "int32", little-endian.
        record_bytes: size of a record with its TFRecord frame.
        block_rows: rows of a block. Only the very last block of the last file may have fewer.
        files: the files, in order.
        blocks: for each file the digests of its blocks (see `rows.block_digest`), joined.
    """

    row_length: int
    rows: int
    left_out: int
    source_tokens: int
    target_tokens: int
    token_dtype: str
    record_bytes: int
    block_rows: int
    files: tuple[FileInfo, ...]
    blocks: tuple[str, ...]

    @property
    def fill_rate(self) -> float:
        """Share of positions, both sides together, that are not padding."""
        return (self.source_tokens + self.target_tokens) / max(1, 2 * self.rows * self.row_length)

    def to_json(self) -> dict[str, Any]:
        """Returns the value of `splits.train.rows` in `dataset.json`."""
        value = {**vars(self), "fill_rate": round(self.fill_rate, 5)}
        value["files"] = [vars(file) for file in self.files]
        return {**value, "blocks": list(self.blocks)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "RowsInfo":
        """The inverse of `to_json`."""
        fields = {name: item for name, item in value.items() if name != "fill_rate"}
        fields["files"] = tuple(FileInfo(**file) for file in value["files"])
        return cls(**{**fields, "blocks": tuple(value["blocks"])})


@dataclass(frozen=True)
class SplitInfo:
    """One split of a dataset.

    Attributes:
        files: the shards, in order, with one record a pair.
        pairs_in: pairs read from the input.
        kept: pairs that came through; `pairs_in = kept + sum(dropped.values())`.
        dropped: reason -> pairs.
        source: counts of the source side of the records.
        target: counts of the target side.
        raw_text: the files with the untouched source and target text (not for train).
        changed: cleaning step -> pairs that it changed.
        repeated: records beyond one a kept pair, of sources with a weight above 1.
        rows: the split in packed rows (train only, and only if asked for).
        warnings: what looks wrong with the text, for people.
    """

    files: tuple[FileInfo, ...]
    pairs_in: int
    kept: int
    dropped: Mapping[str, int]
    source: SideInfo
    target: SideInfo
    raw_text: tuple[FileInfo, ...] = ()
    changed: Mapping[str, int] = field(default_factory=dict)
    repeated: int = 0
    rows: RowsInfo | None = None
    warnings: tuple[str, ...] = ()

    @property
    def records(self) -> int:
        """Records in `files`."""
        return self.kept + self.repeated

    def all_files(self) -> tuple[FileInfo, ...]:
        """Every file of the split."""
        return (*self.files, *self.raw_text, *(self.rows.files if self.rows else ()))

    def to_json(self) -> dict[str, Any]:
        """Returns the value of `splits.NAME` in `dataset.json`."""
        return {
            "pairs_in": self.pairs_in,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "changed": dict(self.changed),
            "repeated": self.repeated,
            "warnings": list(self.warnings),
            "source_tokens": self.source.tokens,
            "target_tokens": self.target.tokens,
            "max_source_tokens": self.source.max_length,
            "max_target_tokens": self.target.max_length,
            "source_lengths": [list(item) for item in self.source.lengths],
            "target_lengths": [list(item) for item in self.target.lengths],
            "files": [vars(file) for file in self.files],
            "raw_text": [vars(file) for file in self.raw_text],
            "rows": self.rows.to_json() if self.rows else None,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "SplitInfo":
        """The inverse of `to_json`."""
        sides = [
            SideInfo(
                tokens=value[f"{side}_tokens"],
                max_length=value[f"max_{side}_tokens"],
                lengths=tuple((length, count) for length, count in value[f"{side}_lengths"]),
            )
            for side in ("source", "target")
        ]
        return cls(
            files=tuple(FileInfo(**file) for file in value["files"]),
            pairs_in=value["pairs_in"],
            kept=value["kept"],
            dropped=dict(value["dropped"]),
            source=sides[0],
            target=sides[1],
            raw_text=tuple(FileInfo(**file) for file in value["raw_text"]),
            changed=dict(value["changed"]),
            repeated=value["repeated"],
            rows=RowsInfo.from_json(value["rows"]) if value["rows"] else None,
            warnings=tuple(value["warnings"]),
        )


@dataclass(frozen=True)
class TokenizerInfo:
    """A SentencePiece model of a dataset.

    Attributes:
        file: its name inside the directory.
        sha256: SHA-256 of its bytes, hexadecimal.
        vocab_size: number of pieces.
        model_type: "unigram" or "bpe".
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
        source_lang: source language.
        target_lang: target language.
        source_tokenizer: the model that made the source ids.
        target_tokenizer: the model that made the target ids; the same one for a joint vocabulary.
        splits: "train", "valid", "test" (those that were given) -> contents.
        settings: every setting that it was made with.
        inputs: split -> fingerprints of its inputs.
    """

    directory: str
    source_lang: str
    target_lang: str
    source_tokenizer: TokenizerInfo
    target_tokenizer: TokenizerInfo
    splits: Mapping[str, SplitInfo]
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pad_id: int = PAD_ID
    unk_id: int = UNK_ID
    bos_id: int = BOS_ID
    eos_id: int = EOS_ID

    @property
    def joint_vocabulary(self) -> bool:
        """Whether both languages have one vocabulary."""
        return self.source_tokenizer == self.target_tokenizer

    def path(self, file: FileInfo | TokenizerInfo) -> str:
        """Returns where a file of the dataset is."""
        return os.path.join(self.directory, file.name if isinstance(file, FileInfo) else file.file)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what a model sees: languages, vocabulary, records and raw text."""
        identity = [
            self.source_lang,
            self.target_lang,
            self.source_tokenizer.sha256,
            self.target_tokenizer.sha256,
            {
                name: [file.sha256 for file in split.all_files()]
                for name, split in sorted(self.splits.items())
            },
        ]
        return _digest(identity)

    def split(self, name: str) -> SplitInfo:
        """Returns a split; `UsageError` if the dataset has no such split."""
        if name not in self.splits:
            raise UsageError(
                f"{self.directory}: has no split {name!r}, only {', '.join(self.splits)}; "
                f"make it again with --{name}=SPEC"
            )
        return self.splits[name]

    def save(self) -> None:
        """Writes `dataset.json`, which declares the directory finished."""
        value = {
            "schema_version": SCHEMA_VERSION,
            "source_lang": self.source_lang,
            "target_lang": self.target_lang,
            "settings": dict(self.settings),
            "inputs": {name: list(prints) for name, prints in self.inputs.items()},
            "tokenizer": {
                "source": vars(self.source_tokenizer),
                "target": vars(self.target_tokenizer),
                "pad_id": self.pad_id,
                "unk_id": self.unk_id,
                "bos_id": self.bos_id,
                "eos_id": self.eos_id,
            },
            "splits": {name: split.to_json() for name, split in self.splits.items()},
            "fingerprint": self.fingerprint,
        }
        # A checksum of the rest, so that a damaged number does not pass for a real one.
        value["manifest_sha256"] = _digest(value)
        files.write_json(os.path.join(self.directory, MANIFEST_FILE), value)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def load_manifest(directory: str) -> Manifest:
    """Reads `dataset.json` of a dataset directory and checks it and the tokenizer's file.

    Args:
        directory: a directory written by `data_pipeline.main`, local or remote.

    Returns:
        The manifest. The shards are not opened; `records.read_pairs` and `records.verify` do.

    Raises:
        UsageError: there is no dataset, or `dataset.json` or the tokenizer is damaged.
    """
    from tensorflow.io import gfile

    path = os.path.join(directory, MANIFEST_FILE)
    # `exists` fails where a bucket does not answer, `isdir` would say no: so it is asked first.
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
    tokenizer = value["tokenizer"]
    manifest = Manifest(
        directory=directory,
        source_lang=value["source_lang"],
        target_lang=value["target_lang"],
        source_tokenizer=TokenizerInfo(**tokenizer["source"]),
        target_tokenizer=TokenizerInfo(**tokenizer["target"]),
        splits={name: SplitInfo.from_json(split) for name, split in value["splits"].items()},
        settings=value["settings"],
        inputs=value["inputs"],
        pad_id=tokenizer["pad_id"],
        unk_id=tokenizer["unk_id"],
        bos_id=tokenizer["bos_id"],
        eos_id=tokenizer["eos_id"],
    )
    for info in {manifest.source_tokenizer, manifest.target_tokenizer}:
        if not gfile.exists(manifest.path(info)):
            raise UsageError(f"{manifest.path(info)}: no such file; {REMAKE}")
        if files.sha256(manifest.path(info)) != info.sha256:
            raise UsageError(f"{manifest.path(info)}: its checksum does not fit; {REMAKE}")
    return manifest
