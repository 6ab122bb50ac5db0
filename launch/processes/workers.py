"""Worker processes on this machine: started, read line by line, stopped, and none left behind."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import IO, Any, TextIO

from common import status

_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>
_CLOSE_SECONDS = 60.0  # only a process that has left its group can hold the pipes for so long
# Loaded here, as nothing may be imported between fork and exec.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_OUTPUT = threading.Lock()


@dataclass(frozen=True)
class Command:
    """What one worker runs.

    Args:
        argv: the program and its arguments.
        env: its whole environment, but for the status file, which `Worker` adds.
        cores: the numbers of the CPU cores it may use; None for those of this process.
    """

    argv: list[str]
    env: dict[str, str]
    cores: frozenset[int] | None = None


def say(text: str) -> None:
    """Print a line of the launcher itself to stderr."""
    _write(sys.stderr, f"[launch] {text}\n".encode())


def describe(code: int) -> str:
    """Say how a process ended: "died of SIGKILL" for -9, "ended with code 3" for 3."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"died of {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"died of signal {-code}"


class Worker:
    """A process in a session of its own, out of reach of the terminal's Ctrl-C.

    On Linux it dies with this process, whatever ends that; the processes that it starts itself do
    not, but are killed when the worker ends first.

    Args:
        command: what it runs.
        name: what messages call it.
        tag: what its lines begin with.

    Attributes:
        overdue: it was killed, and that was said.
    """

    def __init__(self, command: Command, name: str, tag: str):
        self.name = name
        self.overdue = False
        self._tag = tag.encode()
        self._folder = tempfile.TemporaryDirectory(prefix="worker-")
        self._status = os.path.join(self._folder.name, "status.json")
        self._readers: list[threading.Thread] = []
        self._process = subprocess.Popen(
            command.argv,
            env={**command.env, status.VARIABLE: self._status},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_child_setup(command.cores),
        )

    def relay_output(self) -> None:
        """Begin to pass its lines on. Call it after the last fork, which wants a single thread."""
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
        """Return its exit code once it has ended, and kill what it started and left running."""
        if self.code is None and self._process.poll() is not None:
            self._kill_group()
        return self.code

    def terminate(self) -> None:
        """Ask it, but not the processes that it has started, to save and stop."""
        os.kill(self._process.pid, signal.SIGTERM)  # Popen's way would reap it behind `poll`

    def kill(self) -> None:
        """Kill it and everything that it started, unless it has ended; do not wait."""
        if self.code is None:
            self._kill_group()

    def status(self) -> dict[str, Any]:
        """Return what it has reported (see `common.status`); {} if nothing."""
        return status.read(self._status)

    def close(self) -> None:
        """Wait for a killed process and for its last lines."""
        until = time.monotonic() + _CLOSE_SECONDS
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_SECONDS)
        for reader in self._readers:
            reader.join(max(0.0, until - time.monotonic()))
        self._folder.cleanup()

    def _relay(self, pipe: IO[bytes], stream: TextIO) -> None:
        with pipe:
            for line in pipe:
                _write(stream, self._tag + line.removesuffix(b"\n") + b"\n")

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _child_setup(cores: frozenset[int] | None):
    """Return what the child does between fork and exec."""
    parent = os.getpid()

    def setup() -> None:
        if _LIBC is not None:
            # SIGKILL: a worker that waits for another one in a collective hears nothing else.
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
            # Whoever read our output has left, or the disk is full. The run goes on without it,
            # but the pipes must still be emptied, as a worker with a full pipe stands still.
            with open(os.devnull, "wb") as devnull:
                os.dup2(devnull.fileno(), stream.fileno())
