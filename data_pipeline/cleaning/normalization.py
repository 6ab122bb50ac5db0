"""The form in which text is tokenised, for one text and for many lines at once."""

import html
import re
import unicodedata
from collections.abc import Callable, Sequence
from html.entities import html5

import numpy as np

from data_pipeline.cleaning.code_points import CodePointTable, Lines

# What no reader sees: C0 and C1 controls that are not white space, soft hyphen, zero-width space,
# word joiner, byte order mark, and the marks of writing direction. Zero-width joiner and
# non-joiner stay: Persian, Indic scripts and emoji are spelled with them.
INVISIBLE = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c"
    "\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff"
)
_INVISIBLE = re.compile(f"[{INVISIBLE}]")

# SentencePiece writes a space as this character, so it cannot tell the two apart in a text.
_SPACE_MARK = "\u2581"

_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


def normalize_text(text: str) -> str:
    """Brings a text to the form that is tokenised, in training and in translation alike.

    Invisible characters (`INVISIBLE`) go; Unicode NFC; every run of white space (no-break spaces,
    U+0085, U+2028, U+2029, tabs and other characters of the classes Z and B/S included) becomes
    one space, none at the ends; SentencePiece's own mark for a space, U+2581, becomes an
    underscore.

    Args:
        text: any text.

    Returns:
        The normalised text; `normalize_text` of it is itself.
    """
    if not (text.isascii() and text.isprintable()):
        text = compose(remove_invisible(text))
    return collapse_spaces(text)


def unescape_entities(text: str) -> str:
    """Replaces HTML entities such as `&amp;`, `&#39;` and `&nbsp;`, also when escaped twice.

    Only whole entities with their semicolon: `AT&T`, `&copy=1` and `&nonsense;` stay.
    """
    return _ENTITY.sub(_unescape, _ENTITY.sub(_unescape, text))


def _unescape(entity: re.Match[str]) -> str:
    name = entity[0][1:]
    # html.unescape would also replace a known beginning of an unknown name: "&notit;" -> "¬it;".
    return html.unescape(entity[0]) if name[0] == "#" or name in html5 else entity[0]


def remove_invisible(text: str) -> str:
    """Removes the characters of `INVISIBLE`."""
    return _INVISIBLE.sub("", text)


def compose(text: str) -> str:
    """Brings a text to Unicode normalisation form C."""
    return unicodedata.normalize("NFC", text)


def collapse_spaces(text: str) -> str:
    """Makes every run of white space one space, none at the ends, and U+2581 an underscore."""
    return " ".join(text.replace(_SPACE_MARK, "_").split())


# Steps by name, in order. The first two can be switched off for training text.
STEPS: dict[str, Callable[[str], str]] = {
    "html_entities": unescape_entities,
    "control_characters": remove_invisible,
    "nfc": compose,
    "white_space": collapse_spaces,
}

_SPACE, _ODD, _AMPERSAND = 1, 2, 4


def _kind(character: str) -> int:
    kind = _SPACE if character.isspace() else 0
    if kind and character not in " \n":
        kind |= _ODD
    if character == _SPACE_MARK or _INVISIBLE.match(character):
        kind |= _ODD
    return kind | (_AMPERSAND if character == "&" else 0)


_KINDS = CodePointTable(_kind, np.uint8)


def normalize_lines(
    lines: Lines, texts: Sequence[str], steps: Sequence[str]
) -> tuple[list[str], dict[str, set[int]]]:
    """Applies `STEPS` to every line, but spends time on those lines only that may change.

    Args:
        lines: the texts as code points.
        texts: the texts, without newlines.
        steps: the names of the steps to apply.

    Returns:
        The new texts, and step -> numbers of the texts that it changed.
    """
    result = list(texts)
    changed: dict[str, set[int]] = {name: set() for name in STEPS if name in steps}
    for number in _suspects(lines, result):
        text = result[number]
        for name, lines_changed in changed.items():
            new = STEPS[name](text)
            if new != text:
                lines_changed.add(number)
                text = new
        result[number] = text
    return result, changed


def _suspects(lines: Lines, texts: Sequence[str]) -> list[int]:
    """Returns the numbers of all texts that a step may change, and few others, sorted."""
    kinds = _KINDS(lines.codes)
    is_space = (kinds & _SPACE).view(bool)
    odd = (kinds & (_ODD | _AMPERSAND)) != 0
    # A space at the start of a line or after another space, or before the newline. The newline
    # counts as a space, so an empty line looks odd, which does no harm.
    odd[1:] |= is_space[1:] & is_space[:-1]
    odd[:1] |= is_space[:1]
    suspects = lines.touched(np.flatnonzero(odd)).tolist()
    if not unicodedata.is_normalized("NFC", lines.text):
        is_normal = unicodedata.is_normalized
        suspects += [i for i, text in enumerate(texts) if not is_normal("NFC", text)]
        suspects = sorted(set(suspects))
    return suspects
