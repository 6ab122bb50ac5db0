"""Runs a set of workers to its end: all of them or none, restarted when that can help."""

import math
import re
import signal
import time
from collections.abc import Callable
from typing import Any

from launch.processes.workers import Command, Worker, describe, say

# Exit codes of the trainer, and of the launcher.
DONE, FAILED, BAD_USAGE, STOPPED_ON_REQUEST = 0, 1, 2, 42

_POLL_SECONDS = 0.05
_SAME_SIGNAL_SECONDS = 0.1
_STOP_SECONDS = 10.0  # for the others, when one has died: they may hang in a collective
_STEADY_SECONDS = 600.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0

# What the trainer says: trainer/distributed/heartbeat.py when it ends because of another worker,
# and trainer/distributed/wire.py when its port is in use.
_ACCUSATION = re.compile(
    r"error: worker (\d+) \([^ ]*\) ((?:has not answered|has died|keeps the others).*?);"
)
_PORT_IN_USE = re.compile(r"error: port \d+ of this machine is in use")


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
        self.port_in_use = False  # a worker has ended for that

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
            # Code 1 may be for the sake of another worker; what else there is says more.
            for worker in sorted(ended, key=lambda worker: worker.code == FAILED):
                self._note_end(worker, workers, running)
            if time.monotonic() > self._deadline:
                self._kill_overdue(running)
        self.port_in_use = any(_PORT_IN_USE.match(worker.error) for worker in workers)
        return outcome([worker.code for worker in workers], self._asked)

    def _pass_on(self, running: list[Worker]) -> None:
        self._asked = True
        name = signal.Signals(self._signals.received[0]).name
        say(f"{name}: the workers save and stop; once more kills them")
        self._stop(running, self._grace)

    def _note_end(self, worker: Worker, workers: list[Worker], running: list[Worker]) -> None:
        code = worker.code
        if not code or worker.overdue:  # done, or told of already
            return
        if code == STOPPED_ON_REQUEST:
            # The others stop with it, by the trainer's own agreement, and need no signal.
            if math.isinf(self._deadline):
                say(f"{worker.name} stopped by itself, and the others with it")
            self._deadline = min(self._deadline, time.monotonic() + self._grace)
        elif math.isinf(self._deadline):
            worker.read_to_end()
            failure = self._first_failure(worker, workers)
            left = any(not other.overdue for other in running)
            say(f"{failure}{'; the others are stopped' if left else ''}")
            self._stop(running, _STOP_SECONDS)
        elif self._asked and code != -signal.SIGTERM:
            say(f"{worker.name} {describe(code)}")

    def _first_failure(self, worker: Worker, workers: list[Worker]) -> str:
        """How the run failed, where `worker` has ended first: it may name another one."""
        accusation = _ACCUSATION.match(worker.error)
        code = worker.code or 0
        if code != FAILED or not accusation or int(accusation[1]) >= len(workers):
            return f"{worker.name} {describe(code)}"
        accused = workers[int(accusation[1])]
        accused_code = accused.poll()
        if accused_code and accused_code != FAILED:
            return f"{accused.name} {describe(accused_code)}"
        said = f"{accused.name} {accusation[2]}, says {worker.name}"
        if accused_code is not None:
            return said
        # It may be stopped or stuck, and deaf to SIGTERM.
        accused.overdue = True
        accused.kill()
        return f"{said}; it is killed"

    def _stop(self, running: list[Worker], seconds: float) -> None:
        """SIGTERM to all, once: to a trainer that is saving, a second one means "at once"."""
        if math.isinf(self._deadline):
            for worker in running:
                if not worker.overdue:
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
    make_commands: Callable[[], list[Command]],
    max_restarts: int,
    grace_seconds: float,
    other_ports: bool = False,
) -> int:
    """Runs the workers until they are done, or restarts cannot help.

    A worker that ends with anything but 0 or 42 takes the others with it: SIGTERM, and SIGKILL
    10 s later. Where it says that it ended because of another one, that one is named, and killed at
    once if it still runs. They start again together, after a pause. So do workers that end with 42
    with nobody having asked the launcher. SIGINT and SIGTERM are passed on as SIGTERM; a second one
    kills. For the main thread only, which is where Python handles signals.

    Args:
        make_commands: returns one command a worker, at every start anew.
        max_restarts: how often they are started again; a run of more than 10 minutes resets it.
        grace_seconds: for all to end after the signal, or after the first that ended with 42.
        other_ports: `make_commands` picks free ports each time, so that a port that somebody else
            took before the worker did is a reason to start again.

    Returns:
        the exit code: 0 when all ended with 0; 2 when one did; 42 stopped on request, by a signal
        or, with no restarts left, by the workers; 1 when one died or had to be killed; 128 and the
        number of the second signal.
    """
    restarts = 0
    with _Signals() as signals:
        while True:
            began = time.monotonic()
            attempt = _Attempt(signals, grace_seconds)
            code = attempt.run(make_commands())
            if code == BAD_USAGE and other_ports and attempt.port_in_use:
                say("somebody else has taken a port; the next start picks others")
                code = FAILED
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
