"""Calls of the train step, and how long each of them takes.

On an accelerator a call may return before its results are there. A thread of its own waits for
them and reads the clock, so that neither the loop nor the devices wait for the measurement.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class Timing:
    """When a call ran, by time.monotonic().

    Attributes:
        ended: when its results were there.
        seconds: from its start, or the end of the call before if that was later.
    """

    ended: float
    seconds: float


@dataclass(frozen=True)
class Call:
    """A call of `Steps.train`.

    Attributes:
        results: what it returned, perhaps not computed yet.
        steps: number of steps.
        timing: the result is there when the call is done.
    """

    results: dict[str, tf.Tensor]
    steps: int
    timing: Future[Timing]


class CallTimer:
    """Measures calls that are made one after the other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "call-timer")
        self._last_end = 0.0

    def watch(self, results: dict[str, tf.Tensor], steps: int, began: float) -> Call:
        """Return a call whose time is being measured.

        Args:
            results: of `Steps.train`.
            steps: number of steps.
            began: when the call was made, by time.monotonic().
        """
        return Call(results, steps, self._thread.submit(self._time, results, began))

    def _time(self, results: dict[str, tf.Tensor], began: float) -> Timing:
        for value in results.values():
            value.numpy()
        began, self._last_end = max(began, self._last_end), time.monotonic()
        return Timing(self._last_end, self._last_end - began)
