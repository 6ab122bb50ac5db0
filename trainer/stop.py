"""Stopping on request: a signal is remembered, and the loop ends where all is consistent."""

import signal
from typing import Any

STOPPED_ON_REQUEST = 42
"""Exit code: everything is saved, start me again."""


class StopRequest:
    """Remembers that SIGTERM or SIGINT came; a second signal ends the program at once."""

    def __init__(self):
        self.signal: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error):
        self._restore()

    def _remember(self, number, frame):
        self.signal = signal.Signals(number).name
        self._restore()

    def _restore(self):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
