"""What the preprocessing job shall do, checked."""

import re
from dataclasses import dataclass, fields
from typing import Any

from data_pipeline.errors import UsageError
from data_pipeline.tokenizer import MODEL_TYPES

_LANG = re.compile(r"[A-Za-z0-9_-]+")
# Four specials and 256 bytes; characters come on top.
_SMALLEST_VOCAB = 261


@dataclass(frozen=True)
class Settings:
    """What the job shall do.

    Attributes:
        train: specs of the training text (see `sources`).
        valid: specs of the validation text; may be empty.
        test: specs of the test text; may be empty.
        source_lang: name of the source language, such as "en".
        target_lang: name of the target language.
        output_dir: the dataset directory, local or remote.
        vocab_size: pieces of the joint vocabulary, specials and bytes included.
        model_type: "unigram" or "bpe".
        character_coverage: share of the characters that get a piece; others are spelled in bytes.
        tokenizer_sample: the tokenizer is trained on at most this many training pairs.
        num_shards: files of the training split.
        seed: of the global shuffle and the tokenizer's sample.
        max_tokens: training pairs with more tokens on a side are dropped.
        max_length_ratio: training pairs with more characters on one side per character of the
            other are dropped.
        overwrite: replace a dataset that was made with other settings.
    """

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]
    source_lang: str
    target_lang: str
    output_dir: str
    vocab_size: int = 8000
    model_type: str = "unigram"
    character_coverage: float = 1.0
    tokenizer_sample: int = 200_000
    num_shards: int = 8
    seed: int = 1
    max_tokens: int = 250
    max_length_ratio: float = 9.0
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raises `UsageError` for a value that makes no sense."""
        if not self.train:
            raise UsageError("--train is missing; for example --train=text:a.en.gz,a.de.gz")
        if not self.output_dir:
            raise UsageError("--output_dir is missing; name the dataset directory to make")
        for lang in (self.source_lang, self.target_lang):
            if not _LANG.fullmatch(lang):
                raise UsageError(f"{lang!r} is not a language name such as en or pt_BR")
        if self.source_lang == self.target_lang:
            raise UsageError(
                f"--source_lang and --target_lang are both {self.source_lang!r}; files are named "
                "after them, so give them different names"
            )
        if self.model_type not in MODEL_TYPES:
            raise UsageError(f"--model_type={self.model_type}: expected {' or '.join(MODEL_TYPES)}")
        if not 0 < self.character_coverage <= 1:
            raise UsageError(f"--character_coverage={self.character_coverage}: expected 0 < x <= 1")
        if not self.max_length_ratio >= 1:
            raise UsageError(f"--max_length_ratio={self.max_length_ratio}: must be at least 1")
        smallest = {
            "vocab_size": _SMALLEST_VOCAB,
            "tokenizer_sample": 1,
            "num_shards": 1,
            "max_tokens": 1,
        }
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise UsageError(f"--{name}={getattr(self, name)}: must be at least {least}")
        if self.num_shards > 99_999:
            raise UsageError(f"--num_shards={self.num_shards}: must be at most 99999")

    @property
    def langs(self) -> tuple[str, str]:
        """Source and target language."""
        return self.source_lang, self.target_lang

    def specs(self) -> dict[str, tuple[str, ...]]:
        """Returns split -> specs for the splits that were asked for."""
        specs = {"train": self.train, "valid": self.valid, "test": self.test}
        return {split: given for split, given in specs.items() if given}

    def recorded(self) -> dict[str, Any]:
        """Returns the settings that `dataset.json` keeps: all that shape the result."""
        left_out = ("output_dir", "overwrite")
        values = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name not in left_out
        }
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }
