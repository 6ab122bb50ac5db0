"""Text that was UTF-8, was read as Latin-1 or Windows-1252, and was saved again: "FÃ¼r", "donâ€™t".

Each byte of a character of two to four bytes has become a character of its own: first one of
"Â" to "ô", then symbols, punctuation and controls. Genuine text has some of these sequences too
("IRMÃ”" in quotes, "Å²" for an area), so only those are looked for that hardly any language has.
"""

import re

import numpy as np

from data_pipeline.cleaning.code_points import CodePointTable, Lines

# The bytes 0x80 to 0xBF in both encodings (Windows-1252 has no character for five of them).
_TRAIL = "".join(map(chr, range(0x80, 0xC0))) + bytes(range(0x80, 0xA0)).decode("cp1252", "ignore")
# Those that follow a capital letter in good text: closing quotes, dashes, no-break space.
_QUOTES = "\u2018\u2019\u201c\u201d\u2039\u203a\u00ab\u00bb\u2013\u2014\u2026\u00a0"
_SYMBOLS = "".join(c for c in _TRAIL if c not in _QUOTES)
# "Å²" is a unit, "Ä®" perhaps a brand, and a soft hyphen may follow any letter.
_RARE_SYMBOLS = "".join(c for c in _SYMBOLS if c not in "²³®©\u00ad")

_MOJIBAKE = re.compile(
    "|".join(
        [
            f"Ã[{_SYMBOLS}]",  # the letters of western Europe
            f"Â[{_SYMBOLS}\u00a0]",
            f"[ÂÃ][{_QUOTES}](?=[a-zß-ÿ])",
            f"[ÄÅ][{_RARE_SYMBOLS}]",  # the letters of central Europe
            f"(?:[\u00ce-\u00d1\u00d7-\u00d9][{_TRAIL}]){{2}}",  # Greek, Cyrillic, Hebrew, Arabic
            f"(?:[à-ï][{_TRAIL}]{{2}}){{2}}",  # Indic scripts, Thai, Chinese, Japanese, Korean
            "â[€\x80]",  # quotes and dashes
            "â[\u201a\x82]¬",  # the euro sign
            "â[„\x84]¢",  # the trade mark sign
            "ð[Ÿ\x9f]",  # emoji
            "ï»¿|ï¿½",  # byte order mark, replacement character
        ]
    )
)
_LEAD, _FOLLOW = 1, 2


def is_mojibake(text: str) -> bool:
    """Return whether a text, as it was read, has a sequence that gives it away."""
    return _MOJIBAKE.search(text) is not None


def _kind(character: str) -> int:
    if "\u00c2" <= character <= "\u00f4":
        return _LEAD
    return _FOLLOW if character in _TRAIL else 0


_KINDS = CodePointTable(_kind, np.uint8)


def find_mojibake(lines: Lines, texts: list[str]) -> np.ndarray:
    """Say `is_mojibake` of many texts.

    Args:
        lines: the texts as code points.
        texts: the texts as they were read; invisible controls may be part of a sequence.

    Returns:
        bool [texts].
    """
    result = np.zeros(len(texts), bool)
    if not lines.text.isascii():
        kinds = _KINDS(lines.codes)
        leads = np.flatnonzero(kinds == _LEAD)  # never the last character, which is a newline
        suspects = lines.touched(leads[kinds[leads + 1] == _FOLLOW])
        result[suspects] = [is_mojibake(texts[i]) for i in suspects]
    return result
