"""Text in the catalogues that translators keep: `tmx:` and `gettext:`."""

import codecs
import io
import itertools
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from xml.parsers import expat

from common.errors import UsageError
from data_pipeline.sources.chunk import Chunk, Wanted, chunk_rows
from data_pipeline.sources.text_files import expand_list, file_fingerprint, read_blocks

# TMX 1.4b, section "Content markup": elements whose content is code of the document's format.
_MARKUP = frozenset({"bpt", "ept", "ph", "it", "ut"})
# How well a language of the file fits a wanted one.
_NOT_YET, _PREFIX, _EXACT = 0, 1, 2
_MAX_LANGS_SHOWN = 8

# Long enough for any XML declaration.
_XML_HEAD = 1024
_XML_DECLARATION = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_EXPATS_OWN = {"utf-8", "utf-16", "iso-8859-1", "us-ascii"}

# A line of a .po file that is neither empty nor a comment.
_PO_LINE = re.compile(
    r'(msgctxt |msgid |msgid_plural |msgstr |msgstr\[\d+\] )?\s*"([^"\\]|\\.)*"\s*'
)
_LINE_END = re.compile(r"\r\n?|\n")  # str.splitlines would also cut at U+2028, \x0b, \x0c, \x85
_CHARSET = re.compile(rb"Content-Type:[^\n]*?charset=([A-Za-z0-9._-]+)")
# Babel raises at a malformed date, which many catalogues have and nobody needs here. Another name
# of the same length (a .mo file has offsets) hides the header.
_HIDDEN_HEADERS = {
    b"POT-Creation-Date:": b"X-T-Creation-Date:",
    b"PO-Revision-Date:": b"X--Revision-Date:",
}


@dataclass(frozen=True)
class TmxSource:
    """A translation memory, TMX 1.4 (https://www.gala-global.org/tmx-14b).

    A unit without one of the languages is a pair with an empty side. Codes and other markup
    inside a segment are left out.

    Attributes:
        path: the file; plain, `.gz` or `.zst`.
        source_lang: a code such as `en`; units in `en-US` fit too, but `en` is preferred.
        target_lang: likewise.
    """

    path: str
    source_lang: str
    target_lang: str

    def chunks(self) -> Iterator[Chunk]:
        """Yield the units in order, in bounded memory.

        Raises:
            UsageError: the file cannot be read, is not TMX, or no unit has both languages.
        """
        return chunk_rows(self.path, self._pairs())

    def _pairs(self) -> Iterator[tuple[str, str]]:
        blocks = read_blocks(self.path)
        head = b""
        for block in blocks:
            head += block
            if len(head) >= _XML_HEAD:
                break
        blocks = itertools.chain([head], blocks)
        encoding = _foreign_encoding(head)
        if encoding:
            blocks = _as_utf8(self.path, blocks, encoding)
        langs = (self.source_lang, self.target_lang)
        reader = _TmxReader(self.path, langs, "UTF-8" if encoding else None)
        for block in blocks:
            yield from reader.feed(block)
        yield from reader.feed(b"", is_last=True)

    def fingerprint(self) -> str:
        """Return a string that changes when the text does."""
        return f"tmx {file_fingerprint(self.path)} {self.source_lang}-{self.target_lang}"


class _TmxReader:
    """Turn the blocks of a TMX file into pairs; keeps one unit at a time."""

    def __init__(self, path: str, langs: tuple[str, str], encoding: str | None):
        """Set what to read; `encoding` overrides what the file declares."""
        self._path = path
        self._langs = langs
        self._is_tmx = False
        self._pairs: list[tuple[str, str]] = []
        self._units = self._complete_units = self._segments = 0
        # Language as the file writes it -> (side, how well it fits).
        self._fits: dict[str, list[tuple[int, int]]] = {}
        self._lang = ""
        self._texts, self._ranks = ["", ""], [_NOT_YET, _NOT_YET]
        # Inside a segment: whether text is kept, for every open element.
        self._keep: list[bool] = []
        self._text: list[str] = []
        self._parser = parser = expat.ParserCreate(encoding)
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        # Entities that stand for others can blow a small file up to gigabytes, and TMX needs none.
        parser.EntityDeclHandler = self._refuse_entity
        parser.SkippedEntityHandler = self._refuse_entity

    def feed(self, block: bytes, is_last: bool = False) -> list[tuple[str, str]]:
        """Return the pairs of the units that end in `block`, the next one of the file."""
        try:
            self._parser.Parse(block, is_last)
        except UsageError:
            raise
        except expat.ExpatError as error:
            raise UsageError(
                f"{self._path}, line {error.lineno}: not well-formed XML "
                f"({expat.ErrorString(error.code)}); fix the file or export it again"
            ) from error
        except ValueError as error:  # from the decoder that Python lends to expat
            raise UsageError(
                f"{self._path}: {error}; convert the file to UTF-8, its XML declaration included"
            ) from error
        if is_last and self._units and not self._complete_units:
            found = sorted(filter(None, self._fits))
            more = ", ..." if len(found) > _MAX_LANGS_SHOWN else ""
            raise UsageError(
                f"{self._path}: no unit has both {self._langs[0]!r} and {self._langs[1]!r}; its "
                f"languages are {', '.join(found[:_MAX_LANGS_SHOWN]) or 'not named'}{more}"
            )
        pairs, self._pairs = self._pairs, []
        return pairs

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if self._keep:
            # sub is text of its own inside markup, such as the words of a footnote.
            self._keep.append(name == "sub" or (self._keep[-1] and name not in _MARKUP))
        elif name == "seg":
            self._keep, self._text = [True], []
        elif name == "tuv":
            # Before TMX 1.4 the attribute was called lang.
            self._lang = attributes.get("xml:lang") or attributes.get("lang", "")
        elif name == "tu":
            self._texts, self._ranks = ["", ""], [_NOT_YET, _NOT_YET]
            self._segments = 0
        elif not self._is_tmx:
            if name != "tmx":
                raise UsageError(f"{self._path}: not a TMX file; its first element is <{name}>")
            self._is_tmx = True

    def _characters(self, text: str) -> None:
        if self._keep and self._keep[-1]:
            self._text.append(text)

    def _end(self, name: str) -> None:
        if self._keep:
            self._keep.pop()
            if not self._keep:
                self._end_segment()
        elif name == "tu":
            self._units += 1
            self._complete_units += all(self._ranks)
            if not self._segments:
                raise UsageError(
                    f"{self._path}, line {self._parser.CurrentLineNumber}: a unit ends here that "
                    "has no <seg>; fix the file or export it again"
                )
            self._pairs.append((self._texts[0], self._texts[1]))

    def _end_segment(self) -> None:
        self._segments += 1
        if self._lang not in self._fits:
            self._fits[self._lang] = _fitting_sides(self._lang, self._langs)
        for side, rank in self._fits[self._lang]:
            if rank > self._ranks[side]:
                self._texts[side] = "".join(self._text).strip()
                self._ranks[side] = rank

    def _refuse_entity(self, name: str, *_: object) -> None:
        raise UsageError(
            f"{self._path}, line {self._parser.CurrentLineNumber}: entity {name!r}; write the "
            "character itself, for this program reads no entities but those of XML"
        )


def _foreign_encoding(head: bytes) -> str | None:
    """Return the encoding that an XML file declares, if expat does not know it."""
    declared = _XML_DECLARATION.match(head)
    if not declared or declared[1].lower().decode("ascii") in _EXPATS_OWN:
        return None
    return declared[1].decode("ascii")


def _as_utf8(path: str, blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Yield the blocks of a file in UTF-8.

    Raises:
        UsageError: Python does not know the encoding, or a byte is not of that encoding.
    """
    try:
        "".encode(encoding)  # fails for codecs that are no encodings of text
        decoder = codecs.getincrementaldecoder(encoding)()
        for block in blocks:
            yield decoder.decode(block).encode()
        yield decoder.decode(b"", final=True).encode()
    except LookupError as error:
        raise UsageError(
            f"{path}: its encoding {encoding!r} is not known here; convert the file to UTF-8, its "
            "XML declaration included"
        ) from error
    except UnicodeError as error:
        raise UsageError(
            f"{path}: is not text in {encoding} ({getattr(error, 'reason', error)}); fix the "
            "encoding in its XML declaration, or convert the file with iconv -t UTF-8"
        ) from error


def _fitting_sides(lang: str, wanted: tuple[str, str]) -> list[tuple[int, int]]:
    """Return (side, how well `lang` fits it) for no, one or both sides."""
    lang, *sides = (code.lower().replace("_", "-") for code in (lang, *wanted))
    # So en-GB, if it is one of the two, is not taken for plain en, the other.
    exact = [(side, _EXACT) for side, code in enumerate(sides) if lang == code]
    return exact or [
        (side, _PREFIX) for side, code in enumerate(sides) if lang.startswith(f"{code}-")
    ]


@dataclass(frozen=True)
class GettextSource:
    """The messages of a program: source text and translation (GNU gettext, .po or .mo).

    Entries that are fuzzy, obsolete or not translated are no pairs. Of an entry with plural forms
    the singular goes with the first form and the plural with the last.

    Attributes:
        path: the file; `.po` or `.mo`, perhaps with `.gz` or `.zst` behind it.
    """

    path: str

    def chunks(self) -> Iterator[Chunk]:
        """Yield the entries in the order of the file; `UsageError` if it cannot be read."""
        return chunk_rows(self.path, self._pairs())

    def _pairs(self) -> Iterator[tuple[str, str]]:
        # Babel takes a moment to import and few runs need it.
        from babel.messages.mofile import read_mo
        from babel.messages.pofile import PoFileError, read_po

        content = b"".join(read_blocks(self.path))
        charset = _charset(self.path, content)
        for header, hidden in _HIDDEN_HEADERS.items():
            content = content.replace(header, hidden, 1)
        try:
            if _kind(self.path) == ".mo":
                catalog = read_mo(io.BytesIO(content))
            else:
                catalog = read_po(_po_lines(self.path, content.decode(charset)), abort_invalid=True)
        except UsageError:
            raise
        except PoFileError as error:
            raise UsageError(f"{self.path}, line {error.lineno + 1}: {error}; fix it") from error
        except (ValueError, LookupError, TypeError, AttributeError, struct.error, OSError) as error:
            raise UsageError(f"{self.path}: damaged catalogue ({error})") from error
        for message in catalog:
            if not message.id or message.fuzzy:
                continue
            sources, targets = (_forms(text) for text in (message.id, message.string))
            # A plural entry has two sources and as many targets as the language has forms.
            for source, target in zip(sources[:2], (targets[0], targets[-1]), strict=False):
                if source and target:
                    yield source.strip(), target.strip()

    def fingerprint(self) -> str:
        """Return a string that changes when the text does."""
        return f"gettext {file_fingerprint(self.path)}"


def _charset(path: str, content: bytes) -> str:
    """Return the encoding of a catalogue; `UsageError` if Python does not know it."""
    found = _CHARSET.search(content)
    if not found:
        return "utf-8"
    charset = found[1].decode("ascii")
    try:
        "".encode(charset)
        return charset
    except (LookupError, UnicodeError) as error:  # "undefined" is one that Python knows
        problem = (
            "the placeholder CHARSET of its template"
            if charset == "CHARSET"
            else f"{charset!r}, which is not known here"
        )
        raise UsageError(
            f"{path}: its header names as encoding {problem}; write the real one, such as "
            "charset=UTF-8"
        ) from error


def _forms(text: str | Sequence[str] | None) -> Sequence[str]:
    if isinstance(text, str):
        return [text]
    return text or [""]


def _po_lines(path: str, content: str) -> Iterator[str]:
    """Yield the lines of a .po file as Babel can read them.

    Babel does not look whether a string is closed and knows no `#~|` (the old text of an obsolete
    entry).
    """
    for number, line in enumerate(_LINE_END.split(content.removeprefix("\ufeff")), 1):
        line = line.strip()
        if line.startswith("#~|"):
            line = ""
        elif line and not line.startswith("#") and not _PO_LINE.fullmatch(line):
            raise UsageError(f"{path}, line {number}: not a line of a .po file: {line[:40]}")
        yield line


def _kind(path: str) -> str:
    """Return the extension of a name, such as `.po`, ignoring `.gz` and `.zst`."""
    name = path.removesuffix(".gz").removesuffix(".zst")
    return name[-3:]


def parse_tmx(rest: str, wanted: Wanted) -> list[TmxSource]:
    """Return the sources of `tmx:FILE,...`."""
    source_lang, target_lang = wanted.languages
    return [TmxSource(path, source_lang, target_lang) for path in expand_list("tmx", rest)]


def parse_gettext(rest: str, wanted: Wanted) -> list[GettextSource]:
    """Return the sources of `gettext:FILE,...`."""
    paths = expand_list("gettext", rest)
    for path in paths:
        if _kind(path) not in (".po", ".mo"):
            raise UsageError(f"{path}: gettext: reads files that end in .po or .mo")
    return [GettextSource(path) for path in paths]
