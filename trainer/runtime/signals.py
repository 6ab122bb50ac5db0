"""Stopping on request: a signal is remembered, and the loop ends where everything is consistent."""

import ctypes
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from common.console import say
from common.errors import EXIT_STOPPED

_SAME_SIGNAL_SECONDS = 0.2
_GUARD_SECONDS = 0.1
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# Python's C-API, as `signal.signal` may be called in the main thread only.
_get_handler = ctypes.pythonapi.PyOS_getsig
_set_handler = ctypes.pythonapi.PyOS_setsig
_get_handler.argtypes, _get_handler.restype = [ctypes.c_int], ctypes.c_void_p
_set_handler.argtypes, _set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p


class StopAskedError(Exception):
    """Raised out of an evaluation that a request to stop has cut short."""


class StopRequest:
    """Takes SIGTERM, SIGINT and SIGHUP while it is open; a second one ends the process at once.

    SIGHUP comes when a terminal is closed. Under nohup, which ignores it, it stays ignored.

    A thread reads the signals: Python runs its handlers in the main thread, which may be inside
    TensorFlow, compiling or connecting, for minutes. The thread also puts our handlers back in
    place when TensorFlow replaces that of SIGTERM, as it does on starting several workers; see also
    `trainer.distributed.cluster.hear_signals`.

    Until `hold` is called there is nothing to save, and the first signal ends the process with
    code 42.

    Attributes:
        reason: why to stop, for people; None as long as nobody asks.
        leaving: called before the process ends with nothing to save.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.leaving: Callable[[], object] = lambda: None
        self._holding = self._signalled = False
        self._last = -math.inf
        self._previous: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "StopRequest":
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._previous_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if number != signal.SIGHUP or handler != signal.SIG_IGN:
                self._previous[number] = handler
                signal.signal(number, lambda number, frame: None)
        threading.Thread(target=self._read, args=(reader,), daemon=True, name="signals").start()
        return self

    def __exit__(self, *error) -> None:
        with self._lock:
            previous, self._previous = self._previous, {}
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_writer)
        os.close(self._writer)  # which ends the thread

    def _read(self, reader: int) -> None:
        ours = _get_handler(signal.SIGTERM)
        while True:
            if not select.select([reader], [], [], _GUARD_SECONDS)[0]:
                self._put_back(ours)
                continue
            numbers = os.read(reader, 64)
            if not numbers:
                break
            for number in numbers:
                if number in _SIGNALS:
                    self._take(number)
        os.close(reader)

    def _put_back(self, ours: int) -> None:
        with self._lock:
            for number in self._previous:
                if _get_handler(number) != ours:
                    _set_handler(number, ours)

    def _take(self, number: int) -> None:
        # timeout(1) signals its child and then the child's group: twice the same, at once.
        now = time.monotonic()
        again = now - self._last > _SAME_SIGNAL_SECONDS
        self._last = now
        name = signal.Signals(number).name
        with self._lock:
            if not self._holding:
                say(f"{name}: nothing to save yet; start again to go on")
                self.leaving()
                os._exit(EXIT_STOPPED)
            if self._signalled and again:
                say(f"{name} again: ending at once")
                os._exit(128 + number)
            self._signalled = True
            self.reason = self.reason or name

    def request(self, reason: str) -> None:
        """Ask to stop, from any thread, for another reason than a signal."""
        with self._lock:
            self.reason = self.reason or reason

    def hold(self) -> None:
        """Let signals wait, from now on, until what there is to save has been saved."""
        with self._lock:
            self._holding = True
