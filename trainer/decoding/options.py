"""Options of beam search and of sampling."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from configs.schema import DecodeConfig

MAX_SOURCE = 1024
"""Tokens of a source sentence with its end token; what is longer is cut."""

NEVER = -1e30
"""A score that no hypothesis reaches; finite, so that scores can be added to it."""


@dataclass(frozen=True)
class SearchOptions:
    """How to look for the best translation.

    Attributes:
        beam_size: K, hypotheses kept for each sentence; 1 is greedy search.
        length_penalty: alpha of the length normalisation.
        normalization: "gnmt" divides the log probability by ((5 + length) / 6) ** alpha (Wu et al.
            2016, equation 14), "length" by length ** alpha; the length counts the end token.
        coverage_penalty: beta of the coverage penalty (the same equation).
        max_length_ratio, max_length_offset: a translation ends after ratio * source + offset
            tokens; both lengths count the end token.
        min_length: tokens that a translation has at least, without its end token.
        repetition_penalty: factor on the log probability of a token that the hypothesis holds
            already; 1 for none.
        no_repeat_ngram: no hypothesis holds the same n-gram of tokens twice; 0 for no such rule.
        groups: of diverse beam search (Vijayakumar et al. 2016); a divisor of `beam_size`.
        diversity: what a group loses for each earlier group that has just chosen the same token.
        suppressed: ids that a translation cannot hold.
        batch_tokens: source positions in a batch, padding included.
    """

    beam_size: int = 4
    length_penalty: float = 0.6
    normalization: str = "gnmt"
    coverage_penalty: float = 0.0
    max_length_ratio: float = 2.0
    max_length_offset: int = 16
    min_length: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    groups: int = 1
    diversity: float = 0.0
    suppressed: tuple[int, ...] = ()
    batch_tokens: int = 4096

    def __post_init__(self):
        if self.beam_size < 1 or self.beam_size % self.groups:
            raise ValueError(f"{self.groups} groups cannot share a beam of {self.beam_size}")
        if self.normalization not in ("gnmt", "length"):
            raise ValueError(f"normalization is gnmt or length, not {self.normalization!r}")

    def longest(self, source_length: int) -> int:
        """Return the most tokens a translation of so many source tokens may have."""
        return max(1, int(source_length * self.max_length_ratio) + self.max_length_offset)


def search_options(config: DecodeConfig, beam_size: int = 0, **changes: Any) -> SearchOptions:
    """Return the options of a configuration, with some changed.

    Args:
        config: of a trained model.
        beam_size: another beam than its own; 0 for its own.
        **changes: fields of `SearchOptions` -> other values.
    """
    names = {field.name for field in fields(SearchOptions)}
    values = {name: value for name, value in asdict(config).items() if name in names} | changes
    return SearchOptions(**(values | ({"beam_size": beam_size} if beam_size else {})))


@dataclass(frozen=True)
class SamplingOptions:
    """How to draw translations at random.

    Attributes:
        samples: how many for each sentence.
        temperature: divides the log probabilities; below 1 for likelier text.
        top_k: draw among this many of the likeliest tokens; 0 for all.
        top_p: draw among the fewest tokens whose probabilities add up to it (Holtzman et al.
            2020); 1 for all.
        seed: decides, with the number of the sentence and of the sample, what is drawn.
    """

    samples: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1

    def __post_init__(self):
        if self.samples < 1 or self.temperature <= 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                "sampling takes samples >= 1, temperature > 0, top_k >= 0 and 0 < top_p <= 1"
            )
