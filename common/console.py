"""The standard streams: messages of one line, and what happens when a stream cannot be used.

Standard error, and the standard output of a job, never end the process: text that cannot be
written is lost, whether a pipe is closed, a disk is full or the locale lacks a character. Where
standard output is the result of a command, `StreamError` says that it could not be written.
"""

import contextlib
import io
import os
import re
import select
import sys
from typing import Any


class StreamError(Exception):
    """Standard input cannot be read or standard output cannot be written.

    Not an `OSError`, so that nobody takes it for the failure of a file.
    """

    def __init__(self, stream: str, error: OSError):
        verb = "read" if stream == "standard input" else "written"
        super().__init__(f"{stream} cannot be {verb}: {error.strerror or error}")
        self.closed_pipe = isinstance(error, BrokenPipeError)


class _Input(io.FileIO):
    """Standard input as bytes; failures raise `StreamError`."""

    def readinto(self, buffer: Any) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise StreamError("standard input", error) from error

    def readall(self) -> bytes:
        try:
            return super().readall()
        except OSError as error:
            raise StreamError("standard input", error) from error


class _Output(io.FileIO):
    """Standard output or error as bytes; after a failure, all text is lost.

    Args:
        number: the file descriptor.
        must_write: raise `StreamError` at the first failure.
    """

    def __init__(self, number: int, must_write: bool):
        super().__init__(number, "w", closefd=False)
        self._must_write = must_write

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a reader has made it non-blocking
                select.select([], [self], [])
            return written
        except OSError as error:
            if self._must_write:
                self._must_write = False  # Python flushes once more when it ends
                raise StreamError("standard output", error) from error
            return len(data)


def write_stdout(content: bytes) -> None:
    """Write a part of a command's result, so that its reader has it at once."""
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def guard_streams(result_on_stdout: bool) -> None:
    """Replace the standard streams of this process by ones that fail as this module says.

    Does nothing to a stream that somebody has redirected in Python, such as a test.

    Args:
        result_on_stdout: whether standard output is what the command is for, so that its failure
            ends the command.
    """
    keep_descriptors()
    if sys.stdin is sys.__stdin__:
        sys.stdin = io.TextIOWrapper(
            io.BufferedReader(_Input(0, closefd=False)), encoding=_encoding(sys.stdin)
        )
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text_output(_Output(1, result_on_stdout), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text_output(_Output(2, False), sys.stderr)


def _encoding(stream: Any) -> str:
    return stream.encoding if stream else "utf-8"


def _is_unbuffered(stream: Any) -> bool:
    return stream is not None and stream.write_through  # python -u


def _text_output(output: _Output, before: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(output),
        encoding=_encoding(before),
        errors="backslashreplace",
        line_buffering=output.isatty() or output.fileno() == 2 or _is_unbuffered(before),
    )


def keep_descriptors() -> None:
    """Occupy the descriptors of standard streams that are closed, so that no file gets them.

    TensorFlow would write its messages into a checkpoint that happened to be descriptor 2. As in
    Gnulib's stdopen, each is opened in the opposite mode, so that any use of it fails.
    """
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest free number, which is this one


def error_text(error: Exception) -> str:
    """Return an error as one line, without the names of operations that TensorFlow adds."""
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    return " ".join(re.sub(r"\{\{.*?\}\}| \[Op:.*", "", text).split())


def warn(text: str) -> None:
    """Print a warning as one line on standard error."""
    with contextlib.suppress(OSError):  # in a process of a worker pool, whose streams are bare
        print(f"warning: {' '.join(text.split())}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Print a line on standard output, unbuffered."""
    print(text, flush=True)


def say_on_stderr(text: str) -> None:
    """Print a line on standard error, unbuffered: progress beside a result on standard output."""
    print(text, file=sys.stderr, flush=True)
