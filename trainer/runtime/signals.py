"""Stopping on request: a signal is remembered, and the loop ends where all is consistent."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from common.console import say

STOPPED_ON_REQUEST = 42
"""Exit code: everything is saved, start me again."""

_SAME_SIGNAL_SECONDS = 0.2
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopAskedError(Exception):
    """Raised out of an evaluation that a request to stop has cut short."""


class StopRequest:
    """Takes SIGTERM and SIGINT while it is open; a second one ends the process at once.

    A thread of its own reads them. Python runs its handlers in the main thread, which may be
    inside TensorFlow, compiling, for minutes.

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
        self._previous = {number: signal.getsignal(number) for number in _SIGNALS}
        self.listen()
        threading.Thread(target=self._read, args=(reader,), daemon=True, name="signals").start()
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_writer)
        os.close(self._writer)  # which ends the thread

    def listen(self) -> None:
        """Takes the signals, again where somebody else has taken them.

        TensorFlow does: with several workers its runtime puts its own handler of SIGTERM in place.
        What came in between, `trainer.distributed.cluster.hear_signals` learns.
        """
        for number in _SIGNALS:
            signal.signal(number, lambda number, frame: None)

    def _read(self, reader: int) -> None:
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number in _SIGNALS:
                    self._take(number)
        os.close(reader)

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
                os._exit(STOPPED_ON_REQUEST)
            if self._signalled and again:
                say(f"{name} again: ending at once")
                os._exit(128 + number)
            self._signalled = True
            self.reason = self.reason or name

    def request(self, reason: str) -> None:
        """Asks to stop, from any thread, for another reason than a signal."""
        with self._lock:
            self.reason = self.reason or reason

    def hold(self) -> None:
        """From now on there is something to save, and signals wait until that is done."""
        with self._lock:
            self._holding = True
