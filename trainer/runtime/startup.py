"""Measure where the time between the start of the program and the first finished step goes."""

import time

import trainer

MEETING = "meeting"
"""The phase in which the workers wait for each other."""


class Phases:
    """Consecutive stretches of time since the start of the program, each with a name.

    Args:
        started: the start, as `time.monotonic` gives it.

    Attributes:
        seconds: of each phase, by name.
    """

    def __init__(self, started: float):
        self._last = started
        self.seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """End a phase, which began where the one before it ended; add its seconds to `name`."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        return f"{sum(self.seconds.values()):.1f} s after the start of the program ({parts})"


PHASES = Phases(trainer.STARTED)
