"""Normalisation of many lines at once, and of HTML entities in training text."""

import html
import re
import unicodedata
from collections.abc import Callable, Sequence
from html.entities import html5

import numpy as np

from data_pipeline.cleaning.code_points import CodePointTable, Lines
from data_pipeline.dataset.normalization import (
    INVISIBLE_CHARACTER,
    LINE_BREAK,
    SPACE_MARK,
    collapse_spaces,
    compose,
    keep_lines,
    remove_invisible,
)

_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


def unescape_entities(text: str) -> str:
    """Replace HTML entities such as `&amp;`, `&#39;` and `&nbsp;`, also when escaped twice.

    Only whole entities with their semicolon: `AT&T`, `&copy=1` and `&nonsense;` stay.
    """
    return _ENTITY.sub(_unescape, _ENTITY.sub(_unescape, text))


def _unescape(entity: re.Match[str]) -> str:
    name = entity[0][1:]
    # html.unescape would also replace a known beginning of an unknown name: "&notit;" -> "¬it;".
    return html.unescape(entity[0]) if name[0] == "#" or name in html5 else entity[0]


def _keep_line_breaks(text: str) -> str:
    return keep_lines(text).replace("\n", LINE_BREAK)


# Steps by name, in order. The first two can be switched off for training text. The last is for
# documents, in place of the one before it.
STEPS: dict[str, Callable[[str], str]] = {
    "html_entities": unescape_entities,
    "control_characters": remove_invisible,
    "nfc": compose,
    "white_space": collapse_spaces,
    "line_breaks": _keep_line_breaks,
}

_SPACE, _ODD, _AMPERSAND = 1, 2, 4


def _kind(character: str) -> int:
    kind = _SPACE if character.isspace() else 0
    if kind and character not in " \n":
        kind |= _ODD
    if character == SPACE_MARK or INVISIBLE_CHARACTER.match(character):
        kind |= _ODD
    return kind | (_AMPERSAND if character == "&" else 0)


_KINDS = CodePointTable(_kind, np.uint8)


def normalize_lines(
    lines: Lines, texts: Sequence[str], steps: Sequence[str]
) -> tuple[list[str], dict[str, set[int]]]:
    """Apply `STEPS` to every line, but spend time only on lines that may change.

    Args:
        lines: the texts as code points.
        texts: the texts, without newlines.
        steps: names of the steps to apply.

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
    """Return the numbers of all texts that a step may change, and few others, sorted."""
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
