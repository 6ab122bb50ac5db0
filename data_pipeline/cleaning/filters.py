"""The tests that drop a training pair, each for a whole chunk of pairs at once."""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_pipeline.cleaning import language
from data_pipeline.cleaning.code_points import CodePointTable, Lines

MAX_PIECE_CHARACTERS = 16
"""The length of the longest piece that SentencePiece learns."""

# Short sentences differ in length for good reasons ("No." - "Das kommt nicht in Frage."); this
# many characters are forgiven before the ratio counts.
RATIO_ALLOWANCE = 20
# Pairs of equal sides are kept if shorter than this, or if they have fewer words: names, numbers
# and short loans translate to themselves.
_MIN_IDENTICAL_CHARACTERS, _MIN_IDENTICAL_WORDS = 20, 4
# Least share of letters among the characters that are not white space. Shorter texts may have any
# share: dates, times and prices are good pairs (0.3 of 25 drops none of the built-in, Tatoeba and
# Multi30k ones).
_MIN_LETTER_SHARE, _MIN_LETTER_SHARE_CHARACTERS = 0.3, 25
# Least share of letters in the language's scripts among all letters; a text with fewer letters may
# have any share.
_MIN_SCRIPT_SHARE, _MIN_SCRIPT_LETTERS = 0.5, 3


@dataclass(frozen=True)
class CleaningRules:
    """The filters and their limits.

    Attributes:
        languages: of each text, such as "en" or "pt_BR" (`language.scripts_of`).
        max_tokens: most tokens of a text, without specials.
        max_length_ratio: most characters of the longer side per character of the shorter one
            (after `RATIO_ALLOWANCE` characters).
        filters: names of the filters that are switched on.
        keep_lines: the texts are documents; their line breaks and spaces stay.
        max_piece_characters: of the longest piece. A text with more than that times `max_tokens`
            characters has too many tokens, and need not be tokenised to know it.
    """

    languages: tuple[str, ...]
    max_tokens: int
    max_length_ratio: float
    filters: tuple[str, ...]
    keep_lines: bool = False
    max_piece_characters: int = MAX_PIECE_CHARACTERS


@dataclass(frozen=True)
class Side:
    """One side of a chunk of n pairs.

    Attributes:
        texts: the normalised texts, n.
        lines: the same as code points.
        scripts: which letters are expected, None if the language is not known.
        mojibake: bool [n], found before normalisation.
    """

    texts: list[str]
    lines: Lines
    scripts: CodePointTable | None
    mojibake: np.ndarray


def is_empty(source: Side, target: Side, rules: CleaningRules) -> np.ndarray:
    """A side has no text."""
    return (source.lines.lengths == 0) | (target.lines.lengths == 0)


def has_too_many_characters(source: Side, target: Side, rules: CleaningRules) -> np.ndarray:
    """A side is so long that it cannot fit into `max_tokens` tokens."""
    longer = np.maximum(source.lines.lengths, target.lines.lengths)
    return longer > rules.max_piece_characters * rules.max_tokens


def has_bad_length_ratio(source: Side, target: Side, rules: CleaningRules) -> np.ndarray:
    """The sides differ so much in length that they can hardly be translations of each other."""
    shorter = np.minimum(source.lines.lengths, target.lines.lengths)
    longer = np.maximum(source.lines.lengths, target.lines.lengths)
    return longer > RATIO_ALLOWANCE + rules.max_length_ratio * shorter


def is_identical(source: Side, target: Side, rules: CleaningRules) -> np.ndarray:
    """Both sides are the same sentence: it was not translated."""
    lengths = source.lines.lengths
    result = (lengths == target.lines.lengths) & (lengths >= _MIN_IDENTICAL_CHARACTERS)
    for i in np.flatnonzero(result).tolist():
        text = source.texts[i]
        long_enough = text.count(" ") + 1 >= _MIN_IDENTICAL_WORDS
        result[i] = long_enough and text == target.texts[i]
    return result


def has_replacement_character(source: Side, target: Side, rules: CleaningRules) -> np.ndarray:
    """A side has U+FFFD, which stands for characters that were lost."""
    return _either(source, target, lambda side: _find(side.lines, "\ufffd"))


def has_mojibake(source: Side, target: Side, rules: CleaningRules) -> np.ndarray:
    """A side was UTF-8 read as Latin-1 or Windows-1252, such as "FÃ¼r"."""
    return source.mojibake | target.mojibake


def has_few_letters(source: Side, target: Side, rules: CleaningRules) -> np.ndarray:
    """A side consists mostly of digits, punctuation or symbols."""

    def find(side: Side) -> np.ndarray:
        letters = side.lines.count(_LETTERS(side.lines.codes).view(bool))
        solid = side.lines.lengths - side.lines.count(side.lines.codes == ord(" "))
        few = letters < _MIN_LETTER_SHARE * solid
        return few & (side.lines.lengths >= _MIN_LETTER_SHARE_CHARACTERS)

    return _either(source, target, find)


def has_wrong_script(source: Side, target: Side, rules: CleaningRules) -> np.ndarray:
    """Most letters of a side are of a script that its language is not written in."""

    def find(side: Side) -> np.ndarray:
        if side.scripts is None:
            return np.zeros(len(side.texts), bool)
        kinds = side.scripts(side.lines.codes)
        foreign = side.lines.count(kinds == language.FOREIGN)
        if not foreign.any():
            return foreign > 0
        letters = foreign + side.lines.count(kinds == language.EXPECTED)
        wrong = letters - foreign < _MIN_SCRIPT_SHARE * letters
        return wrong & (letters >= _MIN_SCRIPT_LETTERS)

    return _either(source, target, find)


Filter = Callable[[Side, Side, CleaningRules], np.ndarray]

# The filters that need no more than the pair, in order.
PAIR_FILTERS: dict[str, Filter] = {
    "empty": is_empty,
    "too_many_characters": has_too_many_characters,
    "length_ratio": has_bad_length_ratio,
    "identical": is_identical,
    "replacement_character": has_replacement_character,
    "mojibake": has_mojibake,
    "non_letters": has_few_letters,
    "wrong_script": has_wrong_script,
}


def _either(source: Side, target: Side, find: Callable[[Side], np.ndarray]) -> np.ndarray:
    return find(source) | find(target)


def _find(lines: Lines, character: str) -> np.ndarray:
    result = np.zeros(len(lines.ends), bool)
    if character in lines.text:
        result[lines.touched(np.flatnonzero(lines.codes == ord(character)))] = True
    return result


def is_letter(character: str) -> bool:
    """Return whether a character is a letter or a mark; the vowels of Indic scripts are marks."""
    return unicodedata.category(character)[0] in "LM"


_LETTERS = CodePointTable(is_letter, np.uint8)
