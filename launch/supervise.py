"""Runs a set of workers to its end: all of them or none, restarted when that can help."""

import math
import signal
import time
from collections.abc import Callable
from typing import Any

from launch.workers import Command, Worker, describe, say

# Exit codes of the trainer, and of the launcher.
DONE, FAILED, BAD_USAGE, STOPPED_ON_REQUEST = 0, 1, 2, 42

_POLL_SECONDS = 0.05
_SAME_SIGNAL_SECONDS = 0.1
_STOP_SECONDS = 10.0  # for the others, when one has died: they may hang in a collective
_STEADY_SECONDS = 600.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0


class _Signals:
    """Collects SIGINT and SIGTERM while it is open."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._last = -math.inf
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number, frame) -> None:
        # timeout(1) signals its child and then the child's group: twice the same, at once.
        now = time.monotonic()
        if now - self._last > _SAME_SIGNAL_SECONDS:
            self.received.append(number)
        self._last = now

    def wait(self, seconds: float) -> bool:
        """Sleeps, until a signal comes at most; returns whether one has come."""
        end = time.monotonic() + seconds
        while not self.received and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        return bool(self.received)


class _Attempt:
    """The workers from one start to the end of the last of them."""

    def __init__(self, signals: _Signals, grace_seconds: float):
        self._signals = signals
        self._grace = grace_seconds
        self._deadline = math.inf  # finite as soon as the workers are stopping
        self._asked = False

    def run(self, commands: list[Command]) -> int:
        """Starts the workers and watches them; returns the exit code. None of them is left."""
        workers: list[Worker] = []
        width = len(str(len(commands) - 1))
        try:
            for index, command in enumerate(commands):
                tag = f"[worker {index:>{width}}] "
                workers.append(Worker(command, f"worker {index}", tag))
            for worker in workers:
                worker.relay_output()
            return self._watch(workers)
        finally:
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.close()

    def _watch(self, workers: list[Worker]) -> int:
        running = workers
        while running:
            time.sleep(_POLL_SECONDS)
            if len(self._signals.received) > 1:
                number = self._signals.received[1]
                say(f"{signal.Signals(number).name} again: all workers are killed")
                return 128 + number
            if self._signals.received and not self._asked:
                self._pass_on(running)
            ended = [worker for worker in running if worker.poll() is not None]
            running = [worker for worker in running if worker not in ended]
            for worker in ended:
                self._note_end(worker, running)
            if time.monotonic() > self._deadline:
                self._kill_overdue(running)
        return outcome([worker.code for worker in workers], self._asked)

    def _pass_on(self, running: list[Worker]) -> None:
        self._asked = True
        name = signal.Signals(self._signals.received[0]).name
        say(f"{name}: the workers save and stop; once more kills them")
        self._stop(running, self._grace)

    def _note_end(self, worker: Worker, running: list[Worker]) -> None:
        code = worker.code
        if not code or worker.overdue:  # done, or told of already
            return
        if code == STOPPED_ON_REQUEST:
            # The others stop with it, by the trainer's own agreement, and need no signal.
            if math.isinf(self._deadline):
                say(f"{worker.name} stopped by itself, and the others with it")
            self._deadline = min(self._deadline, time.monotonic() + self._grace)
        elif math.isinf(self._deadline):
            others = "; the others are stopped" if running else ""
            say(f"{worker.name} {describe(code)}{others}")
            self._stop(running, _STOP_SECONDS)
        elif self._asked and code != -signal.SIGTERM:
            say(f"{worker.name} {describe(code)}")

    def _stop(self, running: list[Worker], seconds: float) -> None:
        """SIGTERM to all, once: to a trainer that is saving, a second one means "at once"."""
        if math.isinf(self._deadline):
            for worker in running:
                worker.terminate()
            self._deadline = time.monotonic() + seconds

    def _kill_overdue(self, running: list[Worker]) -> None:
        for worker in running:
            if not worker.overdue:
                say(f"{worker.name} has not ended in time and is killed")
                worker.overdue = True
                worker.kill()


def outcome(codes: list[int | None], asked: bool) -> int:
    """The exit code of a set of workers that have all ended.

    Args:
        codes: of each; negative for a signal.
        asked: the launcher was told to stop, and told them.
    """
    if BAD_USAGE in codes:
        return BAD_USAGE
    saved = {DONE, STOPPED_ON_REQUEST}
    if asked:
        saved.add(-signal.SIGTERM)  # it had nothing to save yet, and did not listen
    if not saved.issuperset(codes):
        return FAILED
    return STOPPED_ON_REQUEST if set(codes) != {DONE} else DONE


def pause_before(restart: int) -> float:
    """Seconds to wait before the `restart`-th restart, counted from 1: 1, 2, 4 ... 60."""
    return min(_FIRST_PAUSE_SECONDS * 2.0 ** min(restart - 1, 30), _LONGEST_PAUSE_SECONDS)


def supervise(
    make_commands: Callable[[], list[Command]], max_restarts: int, grace_seconds: float
) -> int:
    """Runs the workers until they are done, or restarts cannot help.

    A worker that ends with anything but 0 or 42 takes the others with it: SIGTERM, and SIGKILL
    10 s later. They start again together, after a pause. So do workers that end with 42 with
    nobody having asked the launcher. SIGINT and SIGTERM are passed on as SIGTERM; a second one
    kills. For the main thread only, which is where Python handles signals.

    Args:
        make_commands: returns one command a worker, at every start anew.
        max_restarts: how often they are started again; a run of more than 10 minutes resets it.
        grace_seconds: for all to end after the signal, or after the first that ended with 42.

    Returns:
        the exit code: 0 when all ended with 0; 2 when one did; 42 stopped on request, by a signal
        or, with no restarts left, by the workers; 1 when one died or had to be killed; 128 and the
        number of the second signal.
    """
    restarts = 0
    with _Signals() as signals:
        while True:
            began = time.monotonic()
            code = _Attempt(signals, grace_seconds).run(make_commands())
            if time.monotonic() - began > _STEADY_SECONDS:
                restarts = 0
            restarts += 1
            if code in (DONE, BAD_USAGE) or signals.received or restarts > max_restarts:
                break
            pause = pause_before(restarts)
            why = "stopped by themselves" if code == STOPPED_ON_REQUEST else "failed"
            say(f"the workers {why}; restart {restarts} of {max_restarts} in {pause:g} s")
            if signals.wait(pause):
                break
    _report(code)
    return code


def _report(code: int) -> None:
    if code == STOPPED_ON_REQUEST:
        say("stopped on request; start the same command again to go on")
    elif code == BAD_USAGE:
        say("not restarted: the error is in the flags or in the input")
    elif code == FAILED:
        say("failed; what was saved is there, and the same command goes on from it")
