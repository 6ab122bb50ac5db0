"""A chunk of text: what the sources yield and the workers share."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from common.errors import UsageError
from data_pipeline.dataset.normalization import LINE_BREAK

# Beam's cost is per element, so an element is a chunk of lines; the limit in bytes keeps a chunk
# of very long lines small.
CHUNK_LINES = 10_000
CHUNK_BYTES = 8 << 20

_ALL_BUT_SEPARATORS = bytes(set(range(256)) - set(b"\t\n"))


@dataclass(frozen=True)
class Wanted:
    """What a task wants from its sources.

    Attributes:
        task: "translation", "language_model" or "classification".
        languages: of the source and the target, or of the text.
        documents: where the documents of a language model begin, a key of
            `documents.BOUNDARIES`.
    """

    task: str
    languages: tuple[str, ...]
    documents: str = "blank_lines"


@dataclass(frozen=True)
class Chunk:
    """Consecutive lines of one source, undecoded.

    Attributes:
        paths: where each column comes from, or the one file that holds all (`tsv:`).
        first_line: number of the first line in those files, from 1; for a file whose examples are
            not lines (`tmx:`, `gettext:`, `tfds:`), the number of the first example.
        blocks: the lines of each path as one UTF-8 string, separated by newlines. A line of a
            language model is a document, with `LINE_BREAK` between its lines.
        fields: columns of a `tsv:` file that are used; 0 if every path is one column.
        meaning: what these columns are, for messages.
    """

    paths: tuple[str, ...]
    first_line: int
    blocks: tuple[bytes, ...]
    fields: int = 0
    meaning: str = "source, tab, target"

    def columns(self) -> list[list[str]]:
        """Decode the chunk.

        Returns:
            Each column's text of every line, without line ends but otherwise as read.

        Raises:
            UsageError: a line is not UTF-8, or a TSV line has no tab; names file and line.
        """
        texts = [
            self._decode(path, block) for path, block in zip(self.paths, self.blocks, strict=True)
        ]
        if self.fields:
            return self._split_tabs(texts[0])
        # Only \n ends a line: str.splitlines would also cut at U+2028, \x0b, \x0c, \x85.
        return [text.split("\n") for text in texts]

    def rows(self) -> list[tuple[str, ...]]:
        """Return the columns as the texts of every line."""
        return list(zip(*self.columns(), strict=True))

    def _decode(self, path: str, block: bytes) -> str:
        try:
            text = block.decode("utf-8")
        except UnicodeDecodeError as error:
            number = self.first_line + block.count(b"\n", 0, error.start)
            raise not_utf8(path, number, block[error.start]) from error
        if "\r" in text:
            text = text.replace("\r\n", "\n").removesuffix("\r")
        return text

    def _split_tabs(self, text: str) -> list[list[str]]:
        block = self.blocks[0]
        tabs = block.partition(b"\n")[0].count(b"\t")
        ends = b"\t" * tabs
        if tabs >= self.fields - 1 and block.translate(None, _ALL_BUT_SEPARATORS) == (
            (ends + b"\n") * block.count(b"\n") + ends
        ):
            # Every line has as many tabs: one split for all takes half the time of one for each.
            fields = text.replace("\n", "\t").split("\t")
            return [fields[column :: tabs + 1] for column in range(self.fields)]
        return self._split_uneven_tabs(text)

    def _split_uneven_tabs(self, text: str) -> list[list[str]]:
        columns: list[list[str]] = [[] for _ in range(self.fields)]
        for number, line in enumerate(text.split("\n"), self.first_line):
            fields = line.split("\t", self.fields)
            if len(fields) < self.fields:
                raise UsageError(
                    f"{self.paths[0]}, line {number}: no tab; a tsv: line is {self.meaning}"
                )
            for column, field in zip(columns, fields, strict=False):
                column.append(field)
        return columns


def not_utf8(path: str, line: int, byte: int) -> UsageError:
    """Return the error for a line that is not UTF-8."""
    return UsageError(
        f"{path}, line {line}: not valid UTF-8 (byte 0x{byte:02x}); "
        "convert the file, for example with iconv -f LATIN1 -t UTF-8"
    )


def chunk_rows(path: str, rows: Iterable[Sequence[str]], columns: int = 2) -> Iterator[Chunk]:
    """Yield text that is decoded already as chunks.

    Args:
        path: where it comes from.
        rows: the texts of an example; a line end inside a text becomes a space.
        columns: texts of an example.
    """
    lines = ([one_line(text).encode("utf-8") for text in row] for row in rows)
    return chunk_lines(path, lines, columns)


def chunk_lines(path: str, rows: Iterable[Sequence[bytes]], columns: int) -> Iterator[Chunk]:
    """Yield lines as chunks.

    Args:
        path: where they come from.
        rows: the lines of an example, without line ends.
        columns: lines of an example.
    """
    number, size = 1, 0
    blocks: list[list[bytes]] = [[] for _ in range(columns)]

    def chunk() -> Chunk:
        return Chunk((path,) * columns, number, tuple(map(b"\n".join, blocks)))

    for row in rows:
        for block, line in zip(blocks, row, strict=True):
            block.append(line)
            size += len(line)
        if len(blocks[0]) == CHUNK_LINES or size >= CHUNK_BYTES:
            yield chunk()
            number, size, blocks = number + len(blocks[0]), 0, [[] for _ in range(columns)]
    if blocks[0]:
        yield chunk()


def one_line(text: str, line_break: str = " ") -> str:
    r"""Return the text with `line_break` for every \n, \r and \r\n."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\n", line_break)


def document_line(text: str) -> str:
    """Return a document as one line, without empty lines at its ends."""
    return one_line(text, LINE_BREAK).strip(LINE_BREAK)
