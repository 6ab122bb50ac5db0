"""Where the wall-clock time of a run goes, over all its starts.

At every moment the main thread of the chief is in one part of the work, so the parts add up to the
time since the first start. The lines of metrics.jsonl carry them from one start to the next. "Down"
begins with the last line that a killed start has written.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

PARTS = (
    "steps",
    "input",
    "evaluation",
    "checkpoint",
    "compilation",
    "start",
    "waiting",
    "repeated",
    "down",
)
_LOST = ("steps", "input", "evaluation", "checkpoint")  # what runs again after a kill


class Ledger:
    """Attributes all time since the start of this process to `PARTS`.

    "steps" are those that count, without the time in which they wait for a batch, "input";
    "waiting" is for other workers to come; "repeated" is work after the checkpoint that a later
    start went on from.

    Args:
        began: the start of this process, by time.monotonic().

    Attributes:
        began: the same, in Unix time.
    """

    def __init__(self, began: float):
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = "start", began
        self.began = time.time() - (time.monotonic() - began)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Attribute the time of a block to a part."""
        before = self._switch(part)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, part: str) -> str:
        with self._lock:
            before, now = self._part, time.monotonic()
            self._seconds[before] += now - self._since
            self._part, self._since = part, now
        return before

    def move(self, seconds: float, origin: str, target: str) -> None:
        """Attribute seconds of one part to another."""
        with self._lock:
            self._seconds[origin] -= seconds
            self._seconds[target] += seconds

    def spent(self) -> dict[str, float]:
        """Return the seconds of every part up to now."""
        with self._lock:
            now = dict(self._seconds)
            now[self._part] += time.monotonic() - self._since
        return {part: round(seconds, 3) for part, seconds in now.items()}

    def resume(self, lines: Sequence[dict[str, Any]], step: int, started: float) -> None:
        """Add the earlier starts of the run.

        Args:
            lines: of metrics.jsonl, with those after `step`, which run again.
            step: the step that this start goes on from.
            started: Unix time of the first start.
        """
        told = [line for line in lines if "spent" in line]
        with self._lock:
            for part, seconds in (told[-1]["spent"] if told else {}).items():
                self._seconds[part] += seconds
            last = told[-1]["time"] if told else started
            self._seconds["down"] += max(0.0, self.began - last)
        if told:
            self._repeat(told, step, told[-1]["spent"])

    def rewind(self, lines: Sequence[dict[str, Any]], step: int) -> None:
        """Note that the run goes back to a step, in this process."""
        self._repeat([line for line in lines if "spent" in line], step, self.spent())

    def _repeat(self, told: Sequence[dict[str, Any]], step: int, now: dict[str, float]) -> None:
        kept = [line["spent"] for line in told if line["step"] <= step]
        for part in _LOST:
            self.move(now[part] - (kept[-1][part] if kept else 0.0), part, "repeated")


def goodput(spent: dict[str, float]) -> float:
    """Return the share of the time that went into steps that count."""
    return spent["steps"] / (sum(spent.values()) or 1.0)


def summary(spent: dict[str, float], cores: int) -> str:
    """Return where the time of a run went, in a line.

    Args:
        spent: part -> seconds.
        cores: CPU cores that the run could use.
    """
    total = sum(spent.values())
    shown = {part: seconds / total for part, seconds in spent.items() if seconds > 0.005 * total}
    shares = ", ".join(f"{part} {share:.0%}" for part, share in shown.items())
    hours = f"{total * cores / 3600:.2f} core-hours on {cores} cores"
    return f"{total:,.1f} s{f': {shares}' if shares else ''}; {hours}"
