"""Reading lines as they come, what is wrong with some of them, and how many are done."""

import codecs
import os
import re
import select
import stat
import sys
import time
from collections.abc import Iterator

from common.console import StreamError, warn

_BLOCK_BYTES = 1 << 16
# After the last mark of a sentence, with its closing quotes and brackets, a space, unless a small
# letter follows; or after a mark of Chinese and Japanese, where no space is needed. A full stop
# after a single capital or a short title ends nothing.
_SENTENCE_END = re.compile(
    r"""(?<=[.!?\u2026\u061f\u0964])(?<!\b[A-Z]\.)(?<!\b[MD]r\.)(?<!\bMrs\.)(?<!\bSt\.)\s+(?![a-z])"""
    r"""|(?<=[.!?\u2026]["')\]\u201c\u201d\u2019\u00bb])\s+(?![a-z])"""
    r"""|(?<=[\u3002\uff01\uff1f])(?![\u300d\u300f\u201d\uff09])\s*"""
)


def split_sentences(line: str) -> list[str]:
    """Return the sentences of a line, without the spaces between them; one at least.

    By the marks alone: an abbreviation before a capital may be taken for an end.
    """
    return [part for part in _SENTENCE_END.split(line) if part.strip()] or [line]


class LineReader:
    """Reads UTF-8 lines from a file descriptor: those that are there, without waiting for more.

    Only a line feed ends a line; U+2028 and the like are text. A line that is not UTF-8 is read as
    an empty one. Input without any line feed, but with carriage returns, is split at these.

    Args:
        descriptor: what to read; it stays open.
        most: lines in a batch.

    Attributes:
        lines: read so far.
        bytes: of these lines, with their ends.
        not_utf8: lines so far that were not UTF-8.
    """

    def __init__(self, descriptor: int, most: int):
        self._descriptor, self._most = descriptor, most
        self.lines = self.bytes = self.not_utf8 = 0

    def _read(self) -> bytes:
        try:
            return os.read(self._descriptor, _BLOCK_BYTES)
        except OSError as error:
            raise StreamError("standard input", error) from error

    def batches(self) -> Iterator[list[str]]:
        """Yield at least one line each time, and as many as are there at once, up to `most`."""
        rest, waiting, first = b"", [], True
        while block := self._read():
            if first:
                block, first = block.removeprefix(codecs.BOM_UTF8), False
            *ended, rest = (rest + block).split(b"\n")
            waiting += ended
            while len(waiting) >= self._most:
                yield self._decode(waiting[: self._most])
                waiting = waiting[self._most :]
            if waiting and not select.select([self._descriptor], [], [], 0)[0]:
                yield self._decode(waiting)
                waiting = []
        if rest:
            waiting += self._split_at_returns(rest) if not self.lines and not waiting else [rest]
        for start in range(0, len(waiting), self._most):
            yield self._decode(waiting[start : start + self._most])

    @staticmethod
    def _split_at_returns(text: bytes) -> list[bytes]:
        returns = text.rstrip(b"\r").count(b"\r")
        if not returns:
            return [text]
        warn(
            f"the input has no line feed, but {returns:,} carriage return(s): it is split at these"
        )
        return text.removesuffix(b"\r").split(b"\r")

    def _decode(self, lines: list[bytes]) -> list[str]:
        texts = []
        for line in lines:
            try:
                texts.append(line.decode("utf-8"))
            except UnicodeDecodeError:
                texts.append("")
                self.not_utf8 += 1
        self.lines += len(lines)
        self.bytes += sum(map(len, lines)) + len(lines)
        return texts

    def warn_of_encoding(self) -> None:
        """Say in one warning how many lines were not UTF-8, if any was."""
        if self.not_utf8:
            warn(
                f"{self.not_utf8:,} of {self.lines:,} lines are not UTF-8 and were taken for empty "
                "ones; convert the input with iconv"
            )


class Progress:
    """How far the work is, on standard error: over itself on a terminal, else in lines of a log.

    Args:
        reader: of the lines.
        descriptor: that it reads; of a file the share is said that is done.
        silent: say nothing.
    """

    def __init__(self, reader: LineReader, descriptor: int, silent: bool = False):
        status = os.fstat(descriptor)
        self._size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        self._reader, self._lines, self._silent = reader, 0.0, silent
        self._began = self._said = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def add(self, lines: float) -> None:
        """Count lines that are done; say so if nothing was said for a second, or 20 in a log."""
        self._lines += lines
        if time.monotonic() - self._said >= (1 if self._terminal else 20):
            self._write()

    def end_batch(self) -> None:
        """Count all that was read as done, also the lines that were empty."""
        self.add(self._reader.lines - self._lines)

    def end(self) -> None:
        """Say how many lines there were, if any."""
        if self._reader.lines and not self._silent:
            self._write()
            print(file=sys.stderr, end="\n" if self._terminal else "", flush=True)

    def _write(self) -> None:
        if self._silent:
            return
        self._said = time.monotonic()
        speed = self._lines / max(1e-6, self._said - self._began)
        text = f"{self._lines:,.0f} lines, {speed:,.1f} a second"
        if self._size:
            share = self._reader.bytes / self._size * self._lines / self._reader.lines
            text += f", {min(1.0, share):.0%}"
        text = f"\r{text:<60}" if self._terminal else f"{text}\n"
        print(text, end="", file=sys.stderr, flush=True)
