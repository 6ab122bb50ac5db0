"""Holds a process still, so that its files can be looked at and do not change meanwhile."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

_LONGEST = 5.0  # seconds; a thread that waits for a disk stops when the disk has answered
_HELD = set("TtZXx")  # states of a thread that runs nothing


def hold(pid: int) -> None:
    """SIGSTOP; returns when all threads of the process stand still. Nothing if it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + _LONGEST
    while not _states(pid) <= _HELD and time.monotonic() < deadline:
        pass


def let_go(pid: int) -> None:
    """SIGCONT. Nothing if the process has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def held(pid: int) -> Iterator[None]:
    """Holds the process for the length of the block."""
    try:
        hold(pid)
        yield
    finally:
        let_go(pid)


@contextlib.contextmanager
def in_the_gaps(pid: int) -> Iterator[None]:
    """Lets a process run only while this thread sleeps: on the same core, and behind all others.

    It comes forward by a nap of this thread, and what the files show in between is what they are.
    Where the system does not let it back to its usual priority (that may need root), it stays
    behind other programs; the numbers that it computes are the same.
    """
    usual, here = {}, os.sched_getaffinity(0)
    core = {max(here)}
    try:
        os.sched_setaffinity(0, core)
        for thread in _threads(pid):
            with contextlib.suppress(ProcessLookupError):
                usual[thread] = os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, core)
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        yield
    finally:
        os.sched_setaffinity(0, here)
        for thread in _threads(pid):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, usual.get(thread, here))
                with contextlib.suppress(PermissionError):
                    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _states(pid: int) -> set[str]:
    states = set()
    for thread in _threads(pid):
        try:
            path = f"/proc/{pid}/task/{thread}/stat"
            with open(path, encoding="ascii", errors="replace") as file:
                states.add(file.read().rpartition(") ")[2][:1])  # after the name, in brackets
        except (FileNotFoundError, ProcessLookupError):  # a thread that ended
            continue
    return states
