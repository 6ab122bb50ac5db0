"""A chunk of parallel text: what the sources yield and the Beam workers share."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from common.errors import UsageError

# Beam's cost is per element, so an element is a chunk of lines; the limit in bytes keeps a chunk
# of very long lines small.
CHUNK_LINES = 10_000
CHUNK_BYTES = 8 << 20

_ALL_BUT_SEPARATORS = bytes(set(range(256)) - set(b"\t\n"))


@dataclass(frozen=True)
class Chunk:
    """Consecutive lines of one source, undecoded.

    Attributes:
        paths: where each side comes from, or the one file that holds both (`tsv:`).
        first_line: number of the first line in those files, from 1; in a file that does not have
            a pair a line (`tmx:`, `gettext:`, `tfds:`), the number of the first pair.
        blocks: the lines of each path as one UTF-8 string, separated by newlines.
    """

    paths: tuple[str, ...]
    first_line: int
    blocks: tuple[bytes, ...]

    def columns(self) -> tuple[list[str], list[str]]:
        """Decodes the chunk.

        Returns:
            The source and the target of every line, without line ends but otherwise as read.

        Raises:
            UsageError: a line is not UTF-8, or a TSV line has no tab; names file and line.
        """
        texts = [
            self._decode(path, block) for path, block in zip(self.paths, self.blocks, strict=True)
        ]
        if len(texts) == 1:
            return self._split_tabs(texts[0])
        # Only \n ends a line: str.splitlines would also cut at U+2028, \x0b, \x0c, \x85.
        source, target = (text.split("\n") for text in texts)
        return source, target

    def pairs(self) -> list[tuple[str, str]]:
        """Returns the columns as (source, target) of every line."""
        return list(zip(*self.columns(), strict=True))

    def _decode(self, path: str, block: bytes) -> str:
        try:
            text = block.decode("utf-8")
        except UnicodeDecodeError as error:
            number = self.first_line + block.count(b"\n", 0, error.start)
            raise UsageError(
                f"{path}, line {number}: not valid UTF-8 (byte 0x{block[error.start]:02x}); "
                "convert the file, for example with iconv -t UTF-8"
            ) from error
        if "\r" in text:
            text = text.replace("\r\n", "\n").removesuffix("\r")
        return text

    def _split_tabs(self, text: str) -> tuple[list[str], list[str]]:
        block = self.blocks[0]
        tabs = block.partition(b"\n")[0].count(b"\t")
        ends = b"\t" * tabs
        if tabs and block.translate(None, _ALL_BUT_SEPARATORS) == (
            (ends + b"\n") * block.count(b"\n") + ends
        ):
            # Every line has as many tabs: one split for all, half the time of one for each.
            fields = text.replace("\n", "\t").split("\t")
            return fields[:: tabs + 1], fields[1 :: tabs + 1]
        return self._split_uneven_tabs(text)

    def _split_uneven_tabs(self, text: str) -> tuple[list[str], list[str]]:
        source, target = [], []
        for number, line in enumerate(text.split("\n"), self.first_line):
            fields = line.split("\t", 2)
            if len(fields) < 2:
                raise UsageError(
                    f"{self.paths[0]}, line {number}: no tab; a tsv: line is source, tab, target"
                )
            source.append(fields[0])
            target.append(fields[1])
        return source, target


def chunk_pairs(path: str, pairs: Iterable[tuple[str, str]]) -> Iterator[Chunk]:
    """Yields pairs that are decoded already as chunks.

    Args:
        path: where they come from.
        pairs: (source, target); a line end inside a text becomes a space.
    """
    number, size = 1, 0
    sides: tuple[list[bytes], list[bytes]] = ([], [])
    for pair in pairs:
        for side, text in zip(sides, pair, strict=True):
            line = one_line(text).encode("utf-8")
            side.append(line)
            size += len(line)
        if len(sides[0]) == CHUNK_LINES or size >= CHUNK_BYTES:
            yield Chunk((path, path), number, (b"\n".join(sides[0]), b"\n".join(sides[1])))
            number, size, sides = number + len(sides[0]), 0, ([], [])
    if sides[0]:
        yield Chunk((path, path), number, (b"\n".join(sides[0]), b"\n".join(sides[1])))


def one_line(text: str) -> str:
    r"""Returns the text with a space for every \n, \r and \r\n."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\n", " ")
