"""The form in which text is tokenised, in training and in use alike."""

import re
import unicodedata

# What no reader sees: C0 and C1 controls that are not white space, soft hyphen, zero-width space,
# word joiner, byte order mark, and the marks of writing direction. Zero-width joiner and
# non-joiner stay: Persian, Indic scripts and emoji are spelled with them.
INVISIBLE = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c"
    "\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff"
)
INVISIBLE_CHARACTER = re.compile(f"[{INVISIBLE}]")

# SentencePiece writes a space as this character, so it cannot tell the two apart in a text.
SPACE_MARK = "\u2581"


def normalize_text(text: str) -> str:
    """Return a text in the form that is tokenised.

    Remove invisible characters (`INVISIBLE`); compose to Unicode NFC; turn every run of white
    space (no-break spaces, U+0085, U+2028, U+2029, tabs and the other characters of the classes Z
    and B/S) into one space, with none at the ends; turn SentencePiece's own mark for a space,
    U+2581, into an underscore. Normalising twice changes nothing.
    """
    if not (text.isascii() and text.isprintable()):
        text = compose(remove_invisible(text))
    return collapse_spaces(text)


def remove_invisible(text: str) -> str:
    """Remove the characters of `INVISIBLE`."""
    return INVISIBLE_CHARACTER.sub("", text)


def compose(text: str) -> str:
    """Return a text in Unicode normalisation form C."""
    return unicodedata.normalize("NFC", text)


def collapse_spaces(text: str) -> str:
    """Turn every run of white space into one space, none at the ends, and U+2581 into "_"."""
    return " ".join(text.replace(SPACE_MARK, "_").split())


# A document of several lines is one line of the files of the data job: this stands for its line
# breaks there. In the form that is tokenised no text has this character.
LINE_BREAK = "\x0b"
_LINE_ENDS = re.compile("\r\n|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


def normalize_document(text: str) -> str:
    """Return a text in the form that a language model's tokenizer keeps, lines included.

    Remove invisible characters and compose as `normalize_text` does; write every line end as
    "\\n", a tab as a space and U+2581 as "_". Other spaces stay, at the start of a line too.
    """
    if not (text.isascii() and text.isprintable()):
        text = keep_lines(compose(remove_invisible(text)))
    return text


def keep_lines(text: str) -> str:
    """Write every line end as "\\n", a tab as a space and U+2581 as "_"."""
    return _LINE_ENDS.sub("\n", text).replace("\t", " ").replace(SPACE_MARK, "_")
