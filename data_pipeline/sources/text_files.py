"""Plain text files, compressed or not: `text:` and `tsv:`, and what other sources need of files."""

import codecs
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from common import files
from common.errors import UsageError
from data_pipeline.sources import chunk as chunks
from data_pipeline.sources.chunk import Chunk, Wanted

# Small enough that the decompressed block is small too: often four times as large, but gzip may
# compress a thousand bytes into one.
_BLOCK_BYTES = 16 << 10
_MOST_WINDOW = 1 << 31  # bytes; that of zstd --long=31
# How compressed files begin, RFC 1952 and RFC 8878 (with the skippable frames that pzstd writes);
# no text in UTF-8 does.
_MAGIC = {
    ".gz": re.compile(rb"\x1f\x8b"),
    ".zst": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
}


@dataclass(frozen=True)
class TextSource:
    """Two files, line by line translations of each other.

    Attributes:
        source_path: the source side; plain, `.gz` or `.zst`.
        target_path: the target side.
    """

    source_path: str
    target_path: str

    def chunks(self) -> Iterator[Chunk]:
        """Yield the lines of both files in order.

        Raises:
            UsageError: a file cannot be read, or the files differ in their number of lines.
        """
        return _chunk_lines((self.source_path, self.target_path))

    def fingerprint(self) -> str:
        """Return a string that changes when the text does."""
        return f"text {file_fingerprint(self.source_path)} {file_fingerprint(self.target_path)}"


@dataclass(frozen=True)
class TsvSource:
    """One file with an example a line: source, tab, target, or text, tab, label.

    Further columns are ignored.

    Attributes:
        path: the file; plain, `.gz` or `.zst`.
        meaning: what the columns are, for messages.
    """

    path: str
    meaning: str = "source, tab, target"

    def chunks(self) -> Iterator[Chunk]:
        """Yield the lines in order; `UsageError` if the file cannot be read."""
        return _chunk_lines((self.path,), fields=2, meaning=self.meaning)

    def fingerprint(self) -> str:
        """Return a string that changes when the text does."""
        return f"tsv {file_fingerprint(self.path)}"


def parse_text(rest: str, wanted: Wanted) -> list[TextSource]:
    """Return the sources of `text:SOURCE_FILE,TARGET_FILE`."""
    patterns = rest.split(",")
    if len(patterns) != 2 or not all(patterns):
        raise UsageError(f"'text:{rest}': expected two files, text:SOURCE_FILE,TARGET_FILE")
    sources, targets = (_expand(pattern) for pattern in patterns)
    if len(sources) != len(targets):
        raise UsageError(
            f"'text:{rest}': {patterns[0]} matches {len(sources)} files but {patterns[1]} matches "
            f"{len(targets)}; they are paired in alphabetical order"
        )
    return [TextSource(*paths) for paths in zip(sources, targets, strict=True)]


def parse_tsv(rest: str, wanted: Wanted) -> list[TsvSource]:
    """Return the sources of `tsv:FILE,...`."""
    labelled = wanted.task == "classification"
    meaning = "text, tab, label" if labelled else "source, tab, target"
    return [TsvSource(path, meaning) for path in expand_list("tsv", rest)]


def expand_list(scheme: str, rest: str) -> list[str]:
    """Return the files that a comma list of names and globs stands for.

    Args:
        scheme: of the spec, for messages.
        rest: the list.

    Raises:
        UsageError: a file does not exist, or a place in the list is empty.
    """
    # The whole is tried as a name first: commas are legal in file names.
    patterns = [rest] if rest and _exists(rest) else rest.split(",")
    if not all(patterns):
        raise UsageError(f"'{scheme}:{rest}': expected a file, {scheme}:FILE or {scheme}:FILE,FILE")
    return [path for pattern in patterns for path in _expand(pattern)]


def read_blocks(path: str) -> Iterator[bytes]:
    """Yield the content of a file in blocks, decompressed if its name ends in `.gz` or `.zst`.

    Members of a gzip file and frames of a zstd file that follow each other are read as one.

    Raises:
        UsageError: the file cannot be read, is damaged or is not what its name says.
    """
    from zstandard import ZstdDecompressor, ZstdError

    try:
        with (
            files.storage_errors(f"{path} cannot be read"),
            files.open_binary(path) as file,
        ):
            suffix = _check_kind(path, file.peek(4)[:4])
            blocks = iter(lambda: file.read(_BLOCK_BYTES), b"")
            if suffix == ".gz":
                # 31: a gzip header and a window of any size.
                yield from _decompress(blocks, lambda: zlib.decompressobj(31))
            elif suffix == ".zst":
                yield from _decompress(
                    blocks, ZstdDecompressor(max_window_size=_MOST_WINDOW).decompressobj
                )
            else:
                yield from blocks
    except (zlib.error, ZstdError, EOFError) as error:
        kind = "gzip" if path.endswith(".gz") else "zstd"
        raise UsageError(f"{path}: damaged {kind} file ({error}); copy it again") from error


def file_fingerprint(path: str) -> str:
    """Return the SHA-256 of a local file, or size and time of a remote one."""
    import tensorflow as tf

    with files.storage_errors(f"{path} cannot be read"):
        if "://" not in path:
            return files.sha256(path)
        # Hashing would read the file over the network once more.
        status = tf.io.gfile.stat(path)
        return f"size={status.length},mtime={status.mtime_nsec}"


def _expand(pattern: str) -> list[str]:
    """Return the files that match, sorted; `UsageError` if there is none."""
    from tensorflow.io import gfile

    # A name is tried as it stands first: brackets are legal in file names.
    paths = [pattern] if _exists(pattern) else sorted(gfile.glob(pattern))
    if not paths:
        raise UsageError(f"{pattern}: no such file")
    for path in paths:
        if gfile.isdir(path):
            raise UsageError(f"{path}: is a directory; name a file or a glob such as {path}/*")
    return paths


def _exists(path: str) -> bool:
    with files.storage_errors(f"{path} cannot be read"):
        return files.exists(path)


def _check_kind(path: str, head: bytes) -> str | None:
    """Return `.gz`, `.zst` or None; `UsageError` if the first bytes do not fit the name."""
    named = next((suffix for suffix in _MAGIC if path.endswith(suffix)), None)
    found = next((suffix for suffix, magic in _MAGIC.items() if magic.match(head)), None)
    if named and named != found:
        raise UsageError(
            f"{path}: is not a {named} file, in spite of its name; rename it or compress it"
        )
    if found and not named:
        raise UsageError(f"{path}: is compressed; give it a name that ends in {found}")
    return named


def _decompress(blocks: Iterator[bytes], new_decompressor: Callable[[], Any]) -> Iterator[bytes]:
    """Yield the content of members or frames, one after the other.

    Args:
        blocks: of the compressed file.
        new_decompressor: makes an object like `zlib.decompressobj`, for one member.

    Raises:
        EOFError: the file ends inside a member or frame.
    """
    decompressor = new_decompressor()
    for block in blocks:
        while block:
            if decompressor.eof:
                # Zeros may fill up the end of a file; a member cannot begin with one.
                block = block.lstrip(b"\0")
                if not block:
                    break
                decompressor = new_decompressor()
            yield decompressor.decompress(block)
            block = decompressor.unused_data
    if not decompressor.eof:
        raise EOFError("it ends too early")


def read_lines(path: str) -> Iterator[tuple[bytes, int]]:
    """Yield (whole lines, each with its newline; their number), many lines at a time.

    Raises:
        UsageError: the file cannot be read, or its lines end with carriage returns alone.
    """
    # Parts of a line that goes on, joined once: the time is linear in its length.
    unfinished: list[bytes] = []
    mark = codecs.BOM_UTF8
    feeds = returns = 0
    for block in read_blocks(path):
        end = block.rfind(b"\n") + 1
        if end:
            lines = b"".join((*unfinished, block[:end])).removeprefix(mark)
            unfinished, mark = [], b""
            count = lines.count(b"\n")
            feeds += count
            returns += _lone_returns(lines)
            yield lines, count
        unfinished.append(block[end:])
    if last := b"".join(unfinished).removeprefix(mark):
        yield last + b"\n", 1
        returns += _lone_returns(last.removesuffix(b"\r"))
    if returns > feeds:
        raise UsageError(
            f"{path}: its lines end with carriage returns ({returns:,}, but {feeds:,} line feeds), "
            "as on old Macintosh computers; convert it, for example with tr '\\r' '\\n'"
        )


def _lone_returns(lines: bytes) -> int:
    return lines.count(b"\r") - lines.count(b"\r\n") if b"\r" in lines else 0


class _LineBuffer:
    """The next lines of a file."""

    def __init__(self, path: str):
        self._unread = read_lines(path)
        self._blocks: deque[tuple[bytes, int]] = deque()
        self._lines = self._bytes = 0

    def fill(self) -> int:
        """Read on if need be; return how many lines the next chunk may have, 0 at the end."""
        while self._lines < chunks.CHUNK_LINES and self._bytes < chunks.CHUNK_BYTES:
            block, lines = next(self._unread, (b"", 0))
            if not block:
                break
            self._blocks.append((block, lines))
            self._lines += lines
            self._bytes += len(block)
        return min(self._lines, chunks.CHUNK_LINES)

    def take(self, count: int) -> bytes:
        """Return the next `count` lines, at least one, separated by newlines."""
        taken = []
        while count:
            block, lines = self._blocks.popleft()
            if lines > count:
                rest = block.split(b"\n", count)[-1]
                self._blocks.appendleft((rest, lines - count))
                block, lines = block[: -len(rest)], count
            taken.append(block)
            count -= lines
            self._lines -= lines
            self._bytes -= len(block)
        return b"".join(taken)[:-1]


def _chunk_lines(paths: tuple[str, ...], fields: int = 0, meaning: str = "") -> Iterator[Chunk]:
    """Yield the lines of files that have equally many; `fields` and `meaning` as in `Chunk`."""
    buffers = [_LineBuffer(path) for path in paths]
    first_line = 1
    while True:
        counts = [buffer.fill() for buffer in buffers]
        count = min(counts)
        if not count:
            break
        blocks = tuple(buffer.take(count) for buffer in buffers)
        yield Chunk(paths, first_line, blocks, fields, meaning)
        first_line += count
    if any(counts):
        _raise_unequal(paths)


def _raise_unequal(paths: tuple[str, ...]) -> None:
    counts = [sum(lines for _, lines in read_lines(path)) for path in paths]
    raise UsageError(
        f"{paths[0]} has {counts[0]} lines but {paths[1]} has {counts[1]}; "
        "line n of one must be the translation of line n of the other"
    )
