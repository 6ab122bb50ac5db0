"""What happens to a sentence pair before it is tokenised: normalisation and named filters."""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

# A SentencePiece piece is at most this many characters long, so a text with more than
# MAX_PIECE_CHARACTERS * max_tokens characters has more than max_tokens tokens: it can be dropped
# without spending time on tokenising it.
MAX_PIECE_CHARACTERS = 16

# SentencePiece writes a space as this character, so it cannot tell the two apart in a text.
_SPACE_MARK = "\u2581"

# Short sentences differ in length for good reasons ("No." - "Das kommt nicht in Frage."); this
# many characters are forgiven before the ratio counts.
RATIO_ALLOWANCE = 20


def normalize_text(text: str) -> str:
    """Brings a text to the form that is tokenised.

    Unicode NFC; every run of white space (no-break spaces, U+0085, U+2028, U+2029, tabs and other
    characters of the classes Z and B/S included) becomes one space, none at the ends;
    SentencePiece's own mark for a space, U+2581, becomes an underscore.

    Args:
        text: any text.

    Returns:
        The normalised text; `normalize_text` of it is itself.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).replace(_SPACE_MARK, "_")
    return " ".join(text.split())


@dataclass(frozen=True)
class CleaningRules:
    """The limits of the filters.

    Attributes:
        max_tokens: most tokens on a side, without specials.
        max_length_ratio: most characters of the longer side per character of the shorter one
            (after `RATIO_ALLOWANCE` characters).
    """

    max_tokens: int
    max_length_ratio: float


def is_empty(source: str, target: str, rules: CleaningRules) -> bool:
    """A side has no text."""
    return not source or not target


def has_too_many_characters(source: str, target: str, rules: CleaningRules) -> bool:
    """A side is so long that it cannot fit into `max_tokens` tokens."""
    return max(len(source), len(target)) > MAX_PIECE_CHARACTERS * rules.max_tokens


def has_bad_length_ratio(source: str, target: str, rules: CleaningRules) -> bool:
    """The sides differ so much in length that they can hardly be translations of each other."""
    shorter, longer = sorted((len(source), len(target)))
    return longer > RATIO_ALLOWANCE + rules.max_length_ratio * shorter


Filter = Callable[[str, str, CleaningRules], bool]

# The filters that look at one pair before tokenising, in order: reason -> test.
FILTERS: dict[str, Filter] = {
    "empty": is_empty,
    "too_many_characters": has_too_many_characters,
    "length_ratio": has_bad_length_ratio,
}

# The reasons found where the whole corpus is known, and after tokenising.
DUPLICATE = "duplicate"
TOO_MANY_TOKENS = "too_many_tokens"

# Every reason for dropping a training pair, in the order in which they are looked for.
REASONS = (*FILTERS, DUPLICATE, TOO_MANY_TOKENS)


def reject_reason(source: str, target: str, rules: CleaningRules) -> str | None:
    """Says why a pair is dropped.

    Args:
        source: normalised source text.
        target: normalised target text.
        rules: the limits.

    Returns:
        The name of the first filter in `FILTERS` that applies, or None for a good pair.
    """
    for reason, applies in FILTERS.items():
        if applies(source, target, rules):
            return reason
    return None
