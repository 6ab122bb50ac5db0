"""`dataset.json`: what a dataset directory holds, and the proof that it is whole."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_pipeline import files
from data_pipeline.errors import UsageError
from data_pipeline.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID

SCHEMA_VERSION = 1
MANIFEST_FILE = "dataset.json"
TOKENIZER_FILE = "tokenizer.model"

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
class SplitInfo:
    """One split of a dataset.

    Attributes:
        files: the shards, in order.
        pairs_in: pairs read from the input.
        kept: pairs in the shards; `pairs_in = kept + sum(dropped.values())`.
        dropped: reason -> pairs.
        source: counts of the source side.
        target: counts of the target side.
        raw_text: the files with the untouched source and target text (not for train).
    """

    files: tuple[FileInfo, ...]
    pairs_in: int
    kept: int
    dropped: Mapping[str, int]
    source: SideInfo
    target: SideInfo
    raw_text: tuple[FileInfo, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the value of `splits.NAME` in `dataset.json`."""
        return {
            "pairs_in": self.pairs_in,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "source_tokens": self.source.tokens,
            "target_tokens": self.target.tokens,
            "max_source_tokens": self.source.max_length,
            "max_target_tokens": self.target.max_length,
            "source_lengths": [list(item) for item in self.source.lengths],
            "target_lengths": [list(item) for item in self.target.lengths],
            "files": [vars(file) for file in self.files],
            "raw_text": [vars(file) for file in self.raw_text],
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
        )


@dataclass(frozen=True)
class Manifest:
    """A finished dataset directory.

    Attributes:
        directory: where it is.
        source_lang: source language.
        target_lang: target language.
        vocab_size: number of pieces of the joint vocabulary.
        model_type: "unigram" or "bpe".
        tokenizer_sha256: SHA-256 of the tokenizer's file.
        splits: "train", "valid", "test" (those that were given) -> contents.
        settings: every setting that it was made with.
        inputs: split -> fingerprints of its inputs.
    """

    directory: str
    source_lang: str
    target_lang: str
    vocab_size: int
    model_type: str
    tokenizer_sha256: str
    splits: Mapping[str, SplitInfo]
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pad_id: int = PAD_ID
    unk_id: int = UNK_ID
    bos_id: int = BOS_ID
    eos_id: int = EOS_ID

    @property
    def tokenizer_path(self) -> str:
        """The tokenizer's file."""
        return os.path.join(self.directory, TOKENIZER_FILE)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what a model sees: languages, vocabulary, records and raw text."""
        identity = [
            self.source_lang,
            self.target_lang,
            self.tokenizer_sha256,
            {
                name: [file.sha256 for file in (*split.files, *split.raw_text)]
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
                "file": TOKENIZER_FILE,
                "sha256": self.tokenizer_sha256,
                "vocab_size": self.vocab_size,
                "model_type": self.model_type,
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
    if not gfile.isdir(directory):
        raise UsageError(f"{directory}: no such dataset directory; {_HOW_TO_MAKE}")
    if not gfile.exists(path):
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
        vocab_size=tokenizer["vocab_size"],
        model_type=tokenizer["model_type"],
        tokenizer_sha256=tokenizer["sha256"],
        splits={name: SplitInfo.from_json(split) for name, split in value["splits"].items()},
        settings=value["settings"],
        inputs=value["inputs"],
        pad_id=tokenizer["pad_id"],
        unk_id=tokenizer["unk_id"],
        bos_id=tokenizer["bos_id"],
        eos_id=tokenizer["eos_id"],
    )
    if not gfile.exists(manifest.tokenizer_path):
        raise UsageError(f"{manifest.tokenizer_path}: no such file; {REMAKE}")
    if files.sha256(manifest.tokenizer_path) != manifest.tokenizer_sha256:
        raise UsageError(f"{manifest.tokenizer_path}: its checksum does not fit; {REMAKE}")
    return manifest
