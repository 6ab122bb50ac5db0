"""One process at a time in a directory: its file in_use.json names the process that holds it.

Object stores have no locks, and the locks of network file systems are unreliable. So the
holder writes a new time stamp every few seconds. Another process finds the holder dead

* on the same machine: when there is no process of that number and start time;
* elsewhere: when the time stamp stays the same for `_EXPIRY_SECONDS`, which it waits for. Clocks of
  two machines are compared only to save that wait, where the stamp is very old.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from common import files
from common.console import say
from common.errors import EXIT_RETRY, UsageError

FILE = "in_use.json"
_REFRESH_SECONDS = 10.0
_EXPIRY_SECONDS = 45.0
_LONG_DEAD_SECONDS = 600.0  # more than any two clocks differ
_SETTLE_SECONDS, _REMOTE_SETTLE_SECONDS = 0.2, 2.0  # longer than from a read to a write


@contextlib.contextmanager
def held(directory: str) -> Iterator[None]:
    """Hold a directory, which is made if it is missing; no other process can hold it meanwhile.

    A process that loses it all the same, as after it was suspended for minutes, is ended with code
    1 before it can write among the files of the new holder.

    Args:
        directory: local or remote.

    Raises:
        UsageError: when a process that is alive holds it, or it cannot be written.
    """
    path = os.path.join(directory, FILE)
    mine = {**_this_process(), "token": secrets.token_hex(8)}
    with files.storage_errors(f"{directory} cannot be written"):
        made = not files.exists(directory)
        _take(directory, path, mine)
    done = threading.Event()
    thread = threading.Thread(target=_refresh, args=(path, mine, done), daemon=True, name="lock")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(*_storage_errors()):
            files.remove(path)
        if made and "://" not in directory:
            with contextlib.suppress(OSError):  # not empty
                os.rmdir(directory)


def _storage_errors() -> tuple[type[Exception], ...]:
    from tensorflow import errors

    return OSError, errors.OpError


def _take(directory: str, path: str, mine: dict[str, Any]) -> None:
    from tensorflow.io import gfile

    holder = _read(path)
    if holder is None:
        gfile.makedirs(directory)
        if _claim(path, mine):
            return
        holder = _read(path)
    if holder and holder["token"] != mine["token"] and _is_alive(path, holder):
        raise _refusal(directory, holder)
    _write(path, mine)
    # Of two that have found nobody alive, the one that has written last holds it.
    time.sleep(_REMOTE_SETTLE_SECONDS if "://" in directory else _SETTLE_SECONDS)
    holder = _read(path) or mine
    if holder["token"] != mine["token"]:
        raise _refusal(directory, holder)


def _claim(path: str, mine: dict[str, Any]) -> bool:
    """Make the file, unless there is one, and return whether that worked.

    Only one process can, and needs no wait to know that. Object stores, and file systems without
    hard links, cannot do it.
    """
    if "://" in path:
        return False
    draft = files.temporary_name(path)
    _write(draft, mine)
    try:
        os.link(draft, path)
    except OSError:
        return False
    finally:
        os.remove(draft)
    return True


def _refusal(directory: str, holder: dict[str, Any]) -> UsageError:
    return UsageError(
        f"{directory} is in use by process {holder['pid']} on {holder['host']} "
        f"({holder['command']}); stop that process first, or name another directory"
    )


def _write(path: str, holder: dict[str, Any]) -> None:
    files.write_json(path, {**holder, "time": time.time()})


def _read(path: str) -> dict[str, Any] | None:
    """Return who holds the directory; None if nobody does."""
    from tensorflow import errors

    try:
        holder = files.read_json(path)
    except errors.NotFoundError:
        return None
    except ValueError:  # the machine lost its power
        return None
    return holder if isinstance(holder, dict) and {"token", "time"} <= holder.keys() else None


def _is_alive(path: str, holder: dict[str, Any]) -> bool:
    """Return whether the holder still runs, if need be after a wait for a new time stamp."""
    here = _this_process()
    if here["machine"] and all(holder[key] == here[key] for key in ("host", "machine")):
        return _start_time(holder["pid"]) == holder["started"]
    if time.time() - holder["time"] > _LONG_DEAD_SECONDS:
        return False
    say(
        f"{path} names process {holder['pid']} on {holder['host']}: waiting up to "
        f"{_EXPIRY_SECONDS:.0f} s for a sign of life"
    )
    end = time.monotonic() + _EXPIRY_SECONDS
    while time.monotonic() < end:
        time.sleep(_REFRESH_SECONDS / 10)
        now = _read(path)
        if now is None:
            return False
        if (now["token"], now["time"]) != (holder["token"], holder["time"]):
            return True
    return False


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
        "command": " ".join(sys.orig_argv[1:4]),
    }


def _machine() -> str | None:
    """Return what tells this boot and this container's processes from others; None if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return None


def _start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the boot; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # after the name, which may hold any
    except OSError:
        return None
    return None if fields[0] in b"ZX" else int(fields[19])  # a zombie does nothing any more


def _refresh(path: str, mine: dict[str, Any], done: threading.Event) -> None:
    while not done.wait(_REFRESH_SECONDS):
        with contextlib.suppress(*_storage_errors()):  # a full disk, an outage: again next time
            holder = _read(path) or mine
            if holder["token"] != mine["token"]:
                say(
                    f"error: process {holder['pid']} on {holder['host']} has taken "
                    f"{os.path.dirname(path)}, since this one gave no sign of life; ending at once"
                )
                os._exit(EXIT_RETRY)
            _write(path, mine)
