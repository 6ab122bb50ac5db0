"""Running text in files, for a language model: `text:`."""

from collections.abc import Iterator
from dataclasses import dataclass

from common.errors import UsageError
from data_pipeline.dataset.normalization import LINE_BREAK
from data_pipeline.sources.chunk import Chunk, Wanted, chunk_lines, not_utf8
from data_pipeline.sources.text_files import expand_list, file_fingerprint, read_lines

# Name -> where a document begins.
BOUNDARIES = {
    "blank_lines": "after every run of blank lines",
    "file": "with every file",
    "line": "with every line",
}
# A document is in memory as a whole, several times over.
LARGEST_DOCUMENT = 64 << 20  # bytes


@dataclass(frozen=True)
class DocumentSource:
    """The documents of one file.

    Attributes:
        path: the file; plain, `.gz` or `.zst`.
        boundaries: a key of `BOUNDARIES`.
    """

    path: str
    boundaries: str

    def chunks(self) -> Iterator[Chunk]:
        """Yield the documents in order, each as one line with `LINE_BREAK` between its lines.

        Raises:
            UsageError: the file cannot be read, is not UTF-8, or has too large a document.
        """
        return chunk_lines(self.path, ([document] for document in self._documents()), 1)

    def _documents(self) -> Iterator[bytes]:
        mark = LINE_BREAK.encode()
        lines: list[bytes] = []
        first = size = 0
        for number, line in enumerate(self._lines(), 1):
            if not line.strip() and (self.boundaries != "file" or not lines):
                if lines:
                    yield self._document(first, lines)
                lines, size = [], 0
                continue
            if not lines:
                first = number
            lines.append(line.replace(mark, b" "))
            size += len(line) + 1
            if size > LARGEST_DOCUMENT:
                raise UsageError(
                    f"{self.path}: the document that begins in line {first} has more than "
                    f"{LARGEST_DOCUMENT >> 20} MB; split it with blank lines, or make each line a "
                    "document with --documents=line"
                )
            if self.boundaries == "line":
                yield self._document(first, lines)
                lines, size = [], 0
        if lines:
            yield self._document(first, lines)

    def _lines(self) -> Iterator[bytes]:
        for block, _ in read_lines(self.path):
            for line in block.split(b"\n")[:-1]:
                yield line.removesuffix(b"\r")

    def _document(self, first_line: int, lines: list[bytes]) -> bytes:
        while not lines[-1].strip():
            lines.pop()
        document = LINE_BREAK.encode().join(lines)
        try:
            document.decode("utf-8")
        except UnicodeDecodeError as error:
            line = first_line + document.count(LINE_BREAK.encode(), 0, error.start)
            raise not_utf8(self.path, line, document[error.start]) from error
        # A lone carriage return ends a line too.
        return document.replace(b"\r", LINE_BREAK.encode())

    def fingerprint(self) -> str:
        """Return a string that changes when the text does."""
        return f"documents {self.boundaries} {file_fingerprint(self.path)}"


def parse_documents(rest: str, wanted: Wanted) -> list[DocumentSource]:
    """Return the sources of `text:FILE,...`."""
    return [DocumentSource(path, wanted.documents) for path in expand_list("text", rest)]
