"""Worker processes on this machine: started, read line by line, stopped, and none left behind."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import IO, TextIO

_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>
_LAST_LINES_SECONDS = 2.0
# Loaded here: between fork and exec is no time to import anything.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_OUTPUT = threading.Lock()


@dataclass(frozen=True)
class Command:
    """What one worker runs.

    Args:
        argv: the program and its arguments.
        env: its whole environment.
        cores: numbers of the CPU cores it may use; None for those of this process.
    """

    argv: list[str]
    env: dict[str, str]
    cores: frozenset[int] | None = None


def say(text: str) -> None:
    """Prints a line of the launcher itself, to stderr."""
    _write(sys.stderr, f"[launch] {text}\n".encode())


def describe(code: int) -> str:
    """How a process ended, from its `returncode`: "died of SIGKILL", "ended with code 3"."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"died of {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"died of signal {-code}"


class Worker:
    """A process in a session of its own, out of reach of the terminal's Ctrl-C.

    On Linux it dies with this process, whatever ends that; processes that the worker itself starts
    do not, but they are killed when the worker ends first.

    Args:
        command: what it runs.
        name: as messages call it.
        tag: what its lines begin with.

    Attributes:
        overdue: it was killed, and that was said.
        error: the last line that it began with "error: ", without the tag. All of them are there
            once `read_to_end` has returned.
    """

    def __init__(self, command: Command, name: str, tag: str):
        self.name = name
        self.overdue = False
        self.error = ""
        self._tag = tag.encode()
        self._readers: list[threading.Thread] = []
        self._process = subprocess.Popen(
            command.argv,
            env=command.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_child_setup(command.cores),
        )

    def relay_output(self) -> None:
        """Begins to pass its lines on; for after the last fork, which wants a single thread."""
        pipes = ((self._process.stdout, sys.stdout), (self._process.stderr, sys.stderr))
        for pipe, stream in pipes:
            reader = threading.Thread(target=self._relay, args=(pipe, stream), daemon=True)
            reader.start()
            self._readers.append(reader)

    @property
    def code(self) -> int | None:
        """The exit code that `poll` saw; negative for a signal, None while it runs."""
        return self._process.returncode

    def poll(self) -> int | None:
        """Looks whether it has ended; if so, ends what it started and left running."""
        if self.code is None and self._process.poll() is not None:
            self._kill_group()
        return self.code

    def terminate(self) -> None:
        """Asks it to save and stop; the process alone, which knows what to do with its own."""
        os.kill(self._process.pid, signal.SIGTERM)  # Popen's way would reap it behind `poll`

    def kill(self) -> None:
        """Ends it and everything that it started; does not wait. Nothing if it has ended."""
        if self.code is None:
            self._kill_group()

    def close(self) -> None:
        """Waits a moment for a killed process and for its last lines."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_LINES_SECONDS)
        self.read_to_end()

    def read_to_end(self) -> None:
        """Waits a moment for the last lines of a process that has ended."""
        for reader in self._readers:
            reader.join(_LAST_LINES_SECONDS)

    def _relay(self, pipe: IO[bytes], stream: TextIO) -> None:
        with pipe:
            for line in pipe:
                line = line.removesuffix(b"\n")
                _write(stream, self._tag + line + b"\n")
                if line.startswith(b"error: "):
                    self.error = line.decode(errors="replace")

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _child_setup(cores: frozenset[int] | None):
    """Returns what the child does between fork and exec."""
    parent = os.getpid()

    def setup() -> None:
        if _LIBC is not None:
            # SIGKILL, because a worker that waits for another in a collective hears nothing else.
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the request
                os._exit(1)
        if cores is not None:
            os.sched_setaffinity(0, cores)

    return setup


def _write(stream: TextIO, line: bytes) -> None:
    with _OUTPUT:  # one lock for both streams: a terminal shows them as one
        try:
            stream.buffer.write(line)
            stream.buffer.flush()
        except OSError:
            # Whoever read our output is gone, or the disk is full. The run goes on without it, but
            # the pipes must still be emptied: a worker with a full pipe stands still.
            with open(os.devnull, "wb") as devnull:
                os.dup2(devnull.fileno(), stream.fileno())
