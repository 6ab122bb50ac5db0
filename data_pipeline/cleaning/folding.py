"""The form in which sentences are compared when looking for near-duplicates and leaks."""

import unicodedata
from collections.abc import Sequence

import numpy as np

from data_pipeline.cleaning.code_points import CodePointTable, Lines

# Marks without meaning of their own: variation selectors and the combining grapheme joiner.
_NO_MARKS = {*map(chr, range(0xFE00, 0xFE10)), *map(chr, range(0xE0100, 0xE01F0)), "\u034f"}
_DROP = 0
_DIGIT = 1
_OF_NUMBERS = {".": ".", ",": ",", ":": ":", "-": "-", "/": "\u2044"}  # as in the form of ½


def fold(texts: Sequence[str]) -> list[str]:
    """Reduce texts to what is compared: case, punctuation, white space and width do not count.

    Every character is case-folded and brought to its compatibility form (NFKC), then letters,
    marks (the vowels of Indic scripts are marks), numbers and symbols such as "€" are kept. So is
    one of .,:-/ directly before a digit, for "1.5" is not "15". A text with none of them, such as
    "?!", folds to itself without surrounding white space.

    Args:
        texts: any texts without newlines.

    Returns:
        The form of each text.
    """
    lines = Lines.of(texts)
    if not unicodedata.is_normalized("NFC", lines.text):
        lines = Lines(unicodedata.normalize("NFC", lines.text))
    return fold_lines(lines)


def fold_lines(lines: Lines) -> list[str]:
    """As `fold`, for lines that are in NFC."""
    folded = _FOLDED(lines.codes)
    kinds = _KINDS(lines.codes)
    of_number = np.flatnonzero((kinds[:-1] > _DIGIT) & (kinds[1:] == _DIGIT))
    folded[of_number] = kinds[of_number]
    text = folded[folded != _DROP].tobytes().decode("utf-32-le")
    # The few characters that become several were left as they are.
    for character, several in _EXPANSIONS.items():
        if character in text:
            text = text.replace(character, several)
    forms = text.split("\n")[:-1]
    if "" in forms:
        texts = lines.text.split("\n")[:-1]
        return [form or text.strip() for form, text in zip(forms, texts, strict=True)]
    return forms


def fold_character(character: str) -> str:
    """Return the folded form of one character; empty if it does not count."""
    form = unicodedata.normalize("NFKC", character).casefold()
    # Folding may leave the compatibility form ("ϔ"), so both are done twice.
    form = unicodedata.normalize("NFKC", form).casefold()
    return "".join(c for c in form if _counts(c))


def _counts(character: str) -> bool:
    category = unicodedata.category(character)
    # A modifier symbol, such as an acute accent on its own, mostly stands for an apostrophe.
    return category[0] in "LMNS" and category != "Sk" and character not in _NO_MARKS


# Character -> its folded form, for those characters seen whose form has several characters.
_EXPANSIONS: dict[str, str] = {}


def _fold_code(character: str) -> int:
    if character == "\n":
        return ord("\n")
    form = fold_character(character)
    if len(form) > 1:
        _EXPANSIONS[character] = form
        return ord(character)
    return ord(form) if form else _DROP


_FOLDED = CodePointTable(_fold_code, np.uint32)


def _kind(character: str) -> int:
    """Return `_DIGIT`, or the code of a mark that is part of the number behind it, or 0."""
    if character.isdigit():
        return _DIGIT
    form = unicodedata.normalize("NFKC", character)
    return ord(_OF_NUMBERS.get(form, "\0"))


_KINDS = CodePointTable(_kind, np.uint32)
