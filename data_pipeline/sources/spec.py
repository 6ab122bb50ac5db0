"""Text as it comes: the `--train`, `--valid` and `--test` specs.

A spec is `scheme:rest`, perhaps after a weight, `2*scheme:rest`. `SCHEMES` maps each scheme to the
function that turns the rest into sources; a source yields chunks of undecoded lines, so that
reading is cheap and workers can share the work on the text.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qsl

from common.errors import UsageError
from data_pipeline.sources.catalogs import parse_gettext, parse_tmx
from data_pipeline.sources.chunk import Chunk, Wanted, chunk_rows
from data_pipeline.sources.documents import parse_documents
from data_pipeline.sources.text_files import parse_text, parse_tsv
from data_pipeline.sources.tfds import parse_tfds

_BUILTIN_SIZES = {"train": 50_000, "valid": 1_000, "test": 1_000}
_BUILTIN_SEED = 1
_MOST_DIGITS = 18


class Source(Protocol):
    """Where text comes from. It can be pickled, because it travels to the workers."""

    def chunks(self) -> Iterator[Chunk]:
        """Yield the text in a fixed order; `UsageError` if it cannot be read."""

    def fingerprint(self) -> str:
        """Return a string that changes when the text does; `UsageError` as above."""


@dataclass(frozen=True)
class BuiltinSource:
    """The generated corpus of `data_pipeline.builtin.corpus`.

    Attributes:
        split: train, valid or test; they share no sentence.
        size: number of sentences.
        seed: of the generator.
        languages: locales of the source and the target side, or of the text.
        task: translation yields pairs, language_model paragraphs, and classification sentences
            with the kind of statement that they are.
    """

    split: str
    size: int
    seed: int
    languages: tuple[str, ...]
    task: str = "translation"

    def chunks(self) -> Iterator[Chunk]:
        """Yield the text in the generator's order; `UsageError` for an unknown locale."""
        # Babel and num2words take a moment to import, and only this source needs them.
        from data_pipeline.builtin import corpus

        generators: dict[str, Callable[..., Iterator[tuple[str, ...]]]] = {
            "translation": corpus.generate,
            "language_model": corpus.generate_paragraphs,
            "classification": corpus.generate_labelled,
        }
        rows = generators[self.task](self.split, self.size, self.seed, *self.languages)
        return chunk_rows(f"builtin:{self.split}", rows, COLUMNS[self.task])

    def fingerprint(self) -> str:
        """Return a string that changes when the text does."""
        kind = "" if self.task == "translation" else f" {self.task}"
        return (
            f"builtin {self.split} size={self.size} seed={self.seed} "
            f"{'-'.join(self.languages)}{kind}"
        )


def split_weight(spec: str) -> tuple[float, str]:
    """Take the weight off a spec.

    Args:
        spec: such as `2*text:a.en,a.de`; without a weight it counts once.

    Returns:
        (weight, rest of the spec).

    Raises:
        UsageError: the weight is not a number above 0.
    """
    head, star, rest = spec.partition("*")
    if not star or ":" in head:  # a star behind the scheme is a glob
        return 1.0, spec
    try:
        weight = float(head)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UsageError(
            f"{spec!r}: the weight before the * must be a number above 0, not {head!r}"
        )
    return weight, rest


def parse_spec(
    spec: str, *languages: str, task: str = "translation", documents: str = "blank_lines"
) -> list[Source]:
    """Turn a spec of the command line, without its weight, into sources.

    Args:
        spec: such as `text:a.en.gz,a.de.gz`; file names may be globs.
        languages: of the source and the target, or of the text; for sources that hold several
            languages or generate.
        task: whose examples are wanted.
        documents: where the documents of a language model begin.

    Returns:
        The sources, at least one, in a fixed order.

    Raises:
        UsageError: unknown scheme, malformed spec, or a file that does not exist.
    """
    scheme, colon, rest = spec.partition(":")
    schemes = SCHEMES[task]
    if not colon or scheme not in schemes:
        known = ", ".join(f"{name}:" for name in schemes)
        raise UsageError(
            f"{spec!r}: unknown kind of source for --task={task}; known ones start with {known}"
        )
    return list(schemes[scheme](rest, Wanted(task, languages, documents)))


def _parse_builtin(rest: str, wanted: Wanted) -> list[BuiltinSource]:
    spec = f"'builtin:{rest}'"
    split, _, query = rest.partition("?")
    if split not in _BUILTIN_SIZES:
        raise UsageError(f"{spec}: expected builtin:train, builtin:valid or builtin:test")
    options = {"size": _BUILTIN_SIZES[split], "seed": _BUILTIN_SEED}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in options:
            raise UsageError(f"{spec}: unknown option {name!r}; known are size and seed")
        if not (value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS):
            raise UsageError(f"{spec}: {name} must be a whole number, not {value[:40]!r}")
        options[name] = int(value)
    if options["size"] < 1:
        raise UsageError(f"{spec}: size must be at least 1")
    return [BuiltinSource(split, options["size"], options["seed"], wanted.languages, wanted.task)]


# Task -> columns of text in an example.
COLUMNS = {"translation": 2, "language_model": 1, "classification": 2}

# Task -> scheme -> what turns the rest of a spec into sources.
SCHEMES: dict[str, dict[str, Callable[[str, Wanted], Sequence[Source]]]] = {
    "translation": {
        "text": parse_text,
        "tsv": parse_tsv,
        "tmx": parse_tmx,
        "gettext": parse_gettext,
        "tfds": parse_tfds,
        "builtin": _parse_builtin,
    },
    "language_model": {
        "text": parse_documents,
        "tfds": parse_tfds,
        "builtin": _parse_builtin,
    },
    "classification": {
        "tsv": parse_tsv,
        "tfds": parse_tfds,
        "builtin": _parse_builtin,
    },
}
