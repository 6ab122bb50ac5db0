"""Where the seconds go between the start of the program and the first finished step."""

import time

import trainer


class Phases:
    """Names the stretches of time since the start of the program, one after the other."""

    def __init__(self, started: float):
        self._last = started
        self.seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """What happened since the phase before, or since the start, was `name`."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        return f"{sum(self.seconds.values()):.1f} s after the start of the program ({parts})"


PHASES = Phases(trainer.STARTED)
