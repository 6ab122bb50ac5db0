"""What the data job is to do, checked."""

import re
from dataclasses import dataclass, fields
from typing import Any

from common.errors import UsageError
from data_pipeline.cleaning.cleaner import DEFAULT_FILTERS, FILTERS, PAIR_ONLY
from data_pipeline.cleaning.filters import MAX_PIECE_CHARACTERS, CleaningRules
from data_pipeline.dataset.manifest import SEQUENCES
from data_pipeline.dataset.perturbation import KINDS
from data_pipeline.dataset.tokenizer import MODEL_TYPES
from data_pipeline.sources.documents import BOUNDARIES

_LANG = re.compile(r"[A-Za-z0-9_-]+")
_SHARE = re.compile(r"0?\.\d+|0|1(\.0*)?")
# Filters that need the whole corpus, beside those of `cleaning`, which look at one pair.
CORPUS_FILTERS = {
    "duplicate": "The pair or text occurred before, letter for letter.",
    "near_duplicate": "It occurred before but for case, space and punctuation outside of numbers.",
}
# Every reason for which a training example may be dropped. The last two follow from other settings.
DROP_REASONS = (*FILTERS, *CORPUS_FILTERS, "weight", "too_many_tokens")
# What is counted as read, kept and dropped.
UNITS = {"translation": "pairs", "language_model": "documents", "classification": "texts"}
# A document may be as long as it likes, since it is cut into pieces.
_NOT_OF_DOCUMENTS = ("too_many_characters",)

_SPECIALS = 4
_MOST = {"num_shards": 99_999, "vocab_size": 1 << 24, "row_length": 1 << 20}
# Names that records and files have for something else than a language.
_TAKEN = ("label", "source_ids", "target_ids")


@dataclass(frozen=True)
class Settings:
    """What the job is to do.

    Attributes:
        train: specs of the training text (see `sources`).
        valid: specs of the validation text; may be empty.
        test: specs of the test text; may be empty.
        source_lang: name of the source language, such as "en"; the language of the text for the
            tasks that have one.
        target_lang: name of the target language.
        output_dir: the dataset directory, local or remote.
        task: "translation", "language_model" or "classification".
        documents: where a language model's documents begin (`documents.BOUNDARIES`).
        vocab_size: pieces of the joint vocabulary, specials and bytes included; unused for the
            model types "char" and "byte".
        model_type: "unigram", "bpe", "char" or "byte".
        character_coverage: share of the characters that get a piece; others are spelled in bytes.
        tokenizer_sample: the tokenizer is trained on at most this many training pairs.
        num_shards: files of the training split.
        seed: of the global shuffle and the tokenizer's sample.
        max_tokens: training pairs with more tokens on a side are dropped.
        max_length_ratio: training pairs with more characters on one side per character of the
            other are dropped.
        overwrite: replace a dataset that was made with other settings.
        joint_vocabulary: one vocabulary for both languages, or one of `vocab_size` for each.
        tokenizer: files of given SentencePiece models, one if joint and two if not; empty to
            train.
        byte_fallback: spell unknown characters in bytes.
        user_symbols: pieces that are never split.
        enable_filters: names of cleaning steps to switch on, besides the usual ones.
        disable_filters: names of cleaning steps to switch off.
        keep_rejected: write what is dropped, and why.
        row_length: tokens a side of the packed rows; 0 for no packed rows.
        segmentations: how many sampled segmentations of each pair the packed rows hold; 1 for
            the best one alone (Kudo 2018).
        sampling_alpha: exponent of the sampling; 0 draws all segmentations alike.
        augment: KIND:SHARE, the share of the examples in the packed rows that are perturbed in
            this way (`dataset.perturbation.KINDS`).
    """

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]
    source_lang: str
    target_lang: str
    output_dir: str
    task: str = "translation"
    documents: str = "blank_lines"
    vocab_size: int = 8000
    model_type: str = "unigram"
    character_coverage: float = 1.0
    tokenizer_sample: int = 200_000
    num_shards: int = 8
    seed: int = 1
    max_tokens: int = 250
    max_length_ratio: float = 9.0
    overwrite: bool = False
    joint_vocabulary: bool = True
    tokenizer: tuple[str, ...] = ()
    byte_fallback: bool = True
    user_symbols: tuple[str, ...] = ()
    enable_filters: tuple[str, ...] = ()
    disable_filters: tuple[str, ...] = ()
    keep_rejected: bool = False
    row_length: int = 256
    segmentations: int = 1
    sampling_alpha: float = 0.2
    augment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise `UsageError` for a value that makes no sense."""
        if self.task not in SEQUENCES:
            raise UsageError(f"--task={self.task}: expected one of {', '.join(SEQUENCES)}")
        if not self.train:
            example = {
                "translation": "text:a.en.gz,a.de.gz",
                "language_model": "text:a.txt",
                "classification": "tsv:a.tsv",
            }[self.task]
            raise UsageError(f"--train is missing; for example --train={example}")
        if not self.output_dir:
            raise UsageError("--output_dir is missing; name the dataset directory to make")
        for lang in self.languages.values():
            if not _LANG.fullmatch(lang) or lang in _TAKEN:
                raise UsageError(f"{lang!r} is not a language name such as en or pt_BR")
        if self.task == "translation" and self.source_lang == self.target_lang:
            raise UsageError(
                f"--source_lang and --target_lang are both {self.source_lang!r}; files are named "
                "after them, so give them different names"
            )
        if self.model_type not in MODEL_TYPES:
            raise UsageError(f"--model_type={self.model_type}: expected {' or '.join(MODEL_TYPES)}")
        if self.documents not in BOUNDARIES:
            raise UsageError(f"--documents={self.documents}: expected {' or '.join(BOUNDARIES)}")
        if self.task == "language_model":
            if not self.row_length:
                raise UsageError("--row_length=0: documents are cut into rows; set it to 1 or more")
            if self.segmentations > 1:
                raise UsageError("--segmentations is for pairs and labelled texts, not documents")
        if not 0.98 <= self.character_coverage <= 1:  # SentencePiece's limits
            raise UsageError(
                f"--character_coverage={self.character_coverage}: expected 0.98 <= x <= 1"
            )
        if not self.max_length_ratio >= 1:
            raise UsageError(f"--max_length_ratio={self.max_length_ratio}: must be at least 1")
        smallest = {
            "vocab_size": _SPECIALS + 1 + (256 if self.byte_fallback else 0),
            "tokenizer_sample": 1,
            "num_shards": 1,
            "max_tokens": 1,
            "row_length": 0,
            "segmentations": 1,
            "seed": 0,
        }
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise UsageError(f"--{name}={getattr(self, name)}: must be at least {least}")
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise UsageError(f"--{name}={getattr(self, name)}: must be at most {most}")

        self._check_tokenizer()
        self._check_augmentation()
        for name in (*self.enable_filters, *self.disable_filters):
            if name not in FILTERS and name not in CORPUS_FILTERS:
                known = ", ".join((*FILTERS, *CORPUS_FILTERS))
                raise UsageError(f"{name!r}: no such filter; there are {known}")
            if name in self.enable_filters and name in self.disable_filters:
                raise UsageError(
                    f"{name!r} is in --enable_filters and in --disable_filters; leave one out"
                )

    def _check_tokenizer(self) -> None:
        joint = self.joint_vocabulary or self.task != "translation"
        if self.tokenizer and len(self.tokenizer) != 2 - joint:
            raise UsageError(
                f"--tokenizer={','.join(self.tokenizer)}: expected "
                + (
                    "one model, or two with --nojoint_vocabulary"
                    if joint
                    else "two models, of the source and the target language"
                )
            )
        if not 0 <= self.sampling_alpha <= 10:
            raise UsageError(f"--sampling_alpha={self.sampling_alpha}: expected 0 <= x <= 10")
        if self.segmentations > 1 and not self.row_length:
            raise UsageError("--segmentations needs packed rows: set --row_length")
        if self.segmentations > 1 and self.model_type != "unigram" and not self.tokenizer:
            raise UsageError(
                "--segmentations samples from a unigram model; use --model_type=unigram"
            )

    def _check_augmentation(self) -> None:
        if self.augment and (not self.row_length or self.task == "language_model"):
            raise UsageError(
                "--augment is for pairs and labelled texts in packed rows: set --row_length"
            )
        shares: dict[str, float] = {}
        for text in self.augment:
            kind, _, share = text.partition(":")
            if kind not in KINDS or not _SHARE.fullmatch(share):
                raise UsageError(
                    f"--augment={text}: expected KIND:SHARE such as typos:0.05; the kinds are "
                    f"{', '.join(KINDS)}"
                )
            if kind in shares:
                raise UsageError(f"--augment={','.join(self.augment)}: {kind} is there twice")
            shares[kind] = float(share)
        if sum(shares.values()) > 1 + 1e-9:  # shares such as 0.55 are rounded
            raise UsageError(f"--augment={','.join(self.augment)}: the shares are more than 1")

    @property
    def augmentation(self) -> dict[str, float]:
        """Return kind of perturbation -> share of the examples."""
        pairs = (text.split(":") for text in self.augment)
        return {kind: float(share) for kind, share in pairs}

    @property
    def filters(self) -> tuple[str, ...]:
        """Names of the cleaning steps that are on."""
        usual = {*DEFAULT_FILTERS, *CORPUS_FILTERS, *self.enable_filters}
        unfit = set() if self.task == "translation" else set(PAIR_ONLY)
        if self.task == "language_model":
            unfit |= set(_NOT_OF_DOCUMENTS)
        on = usual - unfit - set(self.disable_filters)
        return tuple(name for name in (*FILTERS, *CORPUS_FILTERS) if name in on)

    def rules(self) -> CleaningRules:
        """Return what `cleaning` has to know."""
        return CleaningRules(
            languages=tuple(self.languages.values()),
            max_tokens=self.max_tokens,
            max_length_ratio=self.max_length_ratio,
            filters=self.filters,
            keep_lines=self.task == "language_model",
            max_piece_characters=max([MAX_PIECE_CHARACTERS, *map(len, self.user_symbols)]),
        )

    @property
    def languages(self) -> dict[str, str]:
        """Sequence -> its language."""
        langs = (self.source_lang, self.target_lang)
        return dict(zip(SEQUENCES[self.task], langs, strict=False))

    @property
    def labelled(self) -> bool:
        """Whether an example has a label."""
        return self.task == "classification"

    @property
    def unit(self) -> str:
        """What is counted as read, kept and dropped."""
        return UNITS[self.task]

    def specs(self) -> dict[str, tuple[str, ...]]:
        """Return split -> specs for the splits that were asked for."""
        specs = {"train": self.train, "valid": self.valid, "test": self.test}
        return {split: given for split, given in specs.items() if given}

    def recorded(self) -> dict[str, Any]:
        """Return the settings that `dataset.json` keeps: all that shape the result."""
        # What the tokenizer was counts, not where it lay: its checksum is among the inputs.
        left_out = ("output_dir", "overwrite", "tokenizer")
        values = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name not in left_out
        }
        if not self.augment:  # datasets from before it was there keep their fingerprint
            del values["augment"]
        values["filters"] = self.filters  # those that are on, so that other defaults are noticed
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }
