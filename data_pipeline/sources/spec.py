"""Parallel text as it comes: the `--train`, `--valid` and `--test` specs.

A spec is `scheme:rest`, perhaps after a weight, `2*scheme:rest`. `SCHEMES` maps each scheme to the
function that turns the rest into sources; a source yields chunks of undecoded lines, so that
reading is cheap and the work on the text can be shared among Beam workers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qsl

from common.errors import UsageError
from data_pipeline.sources.catalogs import parse_gettext, parse_tmx
from data_pipeline.sources.chunk import Chunk, chunk_pairs
from data_pipeline.sources.text_files import parse_text, parse_tsv
from data_pipeline.sources.tfds import parse_tfds

_BUILTIN_SIZES = {"train": 50_000, "valid": 1_000, "test": 1_000}
_BUILTIN_SEED = 1


class Source(Protocol):
    """Where parallel text comes from; can be pickled, for it travels to the Beam workers."""

    def chunks(self) -> Iterator[Chunk]:
        """Yields the text in a fixed order; `UsageError` if it cannot be read."""

    def fingerprint(self) -> str:
        """Returns a string that changes when the text does; `UsageError` as above."""


@dataclass(frozen=True)
class BuiltinSource:
    """The generated corpus of `data_pipeline.builtin.corpus`.

    Attributes:
        split: train, valid or test; they share no source sentence.
        size: number of pairs.
        seed: seed of the generator.
        source_lang: locale of the source side.
        target_lang: locale of the target side.
    """

    split: str
    size: int
    seed: int
    source_lang: str
    target_lang: str

    def chunks(self) -> Iterator[Chunk]:
        """Yields the pairs in the generator's order; `UsageError` for an unknown locale."""
        # Babel and num2words take a moment to import and only this source needs them.
        from data_pipeline.builtin.corpus import generate

        pairs = generate(
            self.split,
            self.size,
            seed=self.seed,
            source_locale=self.source_lang,
            target_locale=self.target_lang,
        )
        return chunk_pairs(f"builtin:{self.split}", pairs)

    def fingerprint(self) -> str:
        """Returns a string that changes when the text does."""
        return (
            f"builtin {self.split} size={self.size} seed={self.seed} "
            f"{self.source_lang}-{self.target_lang}"
        )


def split_weight(spec: str) -> tuple[float, str]:
    """Takes the weight off a spec.

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


def parse_spec(spec: str, source_lang: str, target_lang: str) -> list[Source]:
    """Turns a spec of the command line, without its weight, into sources.

    Args:
        spec: such as `text:a.en.gz,a.de.gz`; file names may be globs.
        source_lang: the source language, for sources that hold several or generate.
        target_lang: the target language.

    Returns:
        The sources, at least one, in a fixed order.

    Raises:
        UsageError: unknown scheme, malformed spec, or a file that does not exist.
    """
    scheme, colon, rest = spec.partition(":")
    if not colon or scheme not in SCHEMES:
        known = ", ".join(f"{name}:" for name in SCHEMES)
        raise UsageError(f"{spec!r}: unknown kind of source; known ones start with {known}")
    return list(SCHEMES[scheme](rest, source_lang, target_lang))


def _parse_builtin(rest: str, source_lang: str, target_lang: str) -> list[BuiltinSource]:
    spec = f"'builtin:{rest}'"
    split, _, query = rest.partition("?")
    if split not in _BUILTIN_SIZES:
        raise UsageError(f"{spec}: expected builtin:train, builtin:valid or builtin:test")
    options = {"size": _BUILTIN_SIZES[split], "seed": _BUILTIN_SEED}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in options:
            raise UsageError(f"{spec}: unknown option {name!r}; known are size and seed")
        if not (value.isascii() and value.isdigit()):
            raise UsageError(f"{spec}: {name} must be a whole number, not {value!r}")
        options[name] = int(value)
    if options["size"] < 1:
        raise UsageError(f"{spec}: size must be at least 1")
    return [BuiltinSource(split, options["size"], options["seed"], source_lang, target_lang)]


# What each scheme means: the rest of the spec, source and target language -> sources.
SCHEMES: dict[str, Callable[[str, str, str], Sequence[Source]]] = {
    "text": parse_text,
    "tsv": parse_tsv,
    "tmx": parse_tmx,
    "gettext": parse_gettext,
    "tfds": parse_tfds,
    "builtin": _parse_builtin,
}
