"""Run a set of workers to the end: all of them or none, restarted when that can help."""

import math
import signal
import time
from collections.abc import Callable
from typing import Any

from common.errors import EXIT_DONE, EXIT_RETRY, EXIT_STOPPED, EXIT_USAGE
from launch.processes.workers import Command, Worker, describe, say

_POLL_SECONDS = 0.05
_SAME_SIGNAL_SECONDS = 0.1
_STOP_SECONDS = 10.0  # for the others, when one has died: they may hang in a collective
_STEADY_SECONDS = 600.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Signals:
    """Collects SIGINT, SIGTERM and SIGHUP (unless that is ignored, by nohup) while it is open."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._last = -math.inf
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
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
        """Sleep until a signal comes, at most so long; return whether one has come."""
        end = time.monotonic() + seconds
        while not self.received and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        return bool(self.received)


class _Attempt:
    """One run of all workers, from their start to the end of the last one."""

    def __init__(self, signals: _Signals, grace_seconds: float):
        self._signals = signals
        self._grace = grace_seconds
        self._deadline = math.inf  # finite as soon as the workers are stopping
        self._asked = False
        self.port_in_use = False  # a worker has ended because its port was taken

    def run(self, commands: list[Command]) -> int:
        """Start the workers and watch them; return the exit code once none of them is left."""
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
            # A worker with EXIT_RETRY may have ended because of another one, which comes first.
            for worker in sorted(ended, key=lambda worker: worker.code == EXIT_RETRY):
                self._note_end(worker, workers, running)
            if time.monotonic() > self._deadline:
                self._kill_overdue(running)
        self.port_in_use = any("port_in_use" in worker.status() for worker in workers)
        return outcome([worker.code for worker in workers], self._asked)

    def _pass_on(self, running: list[Worker]) -> None:
        self._asked = True
        name = signal.Signals(self._signals.received[0]).name
        say(f"{name}: the workers save and stop; once more kills them")
        self._stop(running, self._grace)

    def _note_end(self, worker: Worker, workers: list[Worker], running: list[Worker]) -> None:
        code = worker.code
        if not code or worker.overdue:  # done, or reported already
            return
        if code == EXIT_STOPPED:
            # The others stop with it, by the trainer's own agreement, and need no signal.
            if math.isinf(self._deadline):
                say(f"{worker.name} stopped by itself, and the others with it")
            self._deadline = min(self._deadline, time.monotonic() + self._grace)
        elif math.isinf(self._deadline):
            failure = self._first_failure(worker, workers)
            left = any(not other.overdue for other in running)
            say(f"{failure}{'; the others are stopped' if left else ''}")
            self._stop(running, _STOP_SECONDS)
        elif self._asked and code != -signal.SIGTERM:
            say(f"{worker.name} {describe(code)}")

    def _first_failure(self, worker: Worker, workers: list[Worker]) -> str:
        """Say how the run failed. `worker` has ended first, but may have reported another one."""
        status, code = worker.status(), worker.code or 0
        if code != EXIT_RETRY or "lost_worker" not in status:
            return f"{worker.name} {describe(code)}"
        accused = workers[status["lost_worker"]]
        accused_code = accused.poll()
        if accused_code and accused_code != EXIT_RETRY:
            return f"{accused.name} {describe(accused_code)}"
        said = f"{accused.name} {status['reason']}, says {worker.name}"
        if accused_code is not None:
            return said
        # It may be stopped or stuck, and deaf to SIGTERM.
        accused.overdue = True
        accused.kill()
        return f"{said}; it is killed"

    def _stop(self, running: list[Worker], seconds: float) -> None:
        """Send SIGTERM to all, once: to a trainer that saves, a second one means "at once"."""
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
    """Return the exit code for a set of workers that have all ended.

    Args:
        codes: their exit codes; negative for a signal.
        asked: whether the launcher was told to stop, and told them.
    """
    if EXIT_USAGE in codes:
        return EXIT_USAGE
    saved = {EXIT_DONE, EXIT_STOPPED}
    if asked:
        saved.add(-signal.SIGTERM)  # it did not listen yet and had nothing to save
    if not saved.issuperset(codes):
        return EXIT_RETRY
    return EXIT_STOPPED if set(codes) != {EXIT_DONE} else EXIT_DONE


def pause_before(restart: int) -> float:
    """Return the seconds to wait before a restart, counted from 1: 1, 2, 4 ... 60."""
    return min(_FIRST_PAUSE_SECONDS * 2.0 ** min(restart - 1, 30), _LONGEST_PAUSE_SECONDS)


def supervise(
    make_commands: Callable[[], list[Command]],
    max_restarts: int,
    grace_seconds: float,
    *,
    other_ports: bool,
) -> int:
    """Run the workers until they are done, or restarts cannot help.

    A worker that ends with anything but 0 or 42 takes the others with it: they get SIGTERM, and 10
    s later SIGKILL. If it reports that it ended because of another worker, that one is named, and
    killed at once if it still runs. All start again together after a pause; so do workers that end
    with 42 though nobody asked the launcher to stop. A signal is passed on as SIGTERM; a second one
    kills. Call this in the main thread, in which Python handles signals.

    Args:
        make_commands: returns one command per worker; called for every start.
        max_restarts: how often the workers are started again; a run of 10 minutes resets the count.
        grace_seconds: for all to end after the signal, or after the first that ended with 42.
        other_ports: whether `make_commands` picks free ports each time, so that a new start helps
            if somebody else took a port before the worker did.

    Returns:
        The exit code: 0 if all ended with 0; 2 if one did with 2; 42 if they stopped on request, by
        a signal or, with no restarts left, by themselves; 1 if one died or had to be killed; 128
        plus the number of the second signal.
    """
    restarts = 0
    with _Signals() as signals:
        while True:
            began = time.monotonic()
            attempt = _Attempt(signals, grace_seconds)
            code = attempt.run(make_commands())
            if code == EXIT_USAGE and other_ports and attempt.port_in_use:
                say("somebody else has taken a port; the next start picks others")
                code = EXIT_RETRY
            if time.monotonic() - began > _STEADY_SECONDS:
                restarts = 0
            restarts += 1
            if code in (EXIT_DONE, EXIT_USAGE) or signals.received or restarts > max_restarts:
                break
            pause = pause_before(restarts)
            why = "stopped by themselves" if code == EXIT_STOPPED else "failed"
            say(f"the workers {why}; restart {restarts} of {max_restarts} in {pause:g} s")
            if signals.wait(pause):  # nothing runs, and all that was saved is there
                code = EXIT_STOPPED
                break
    _report(code)
    return code


def _report(code: int) -> None:
    if code == EXIT_STOPPED:
        say("stopped on request; start the same command again to go on")
    elif code == EXIT_USAGE:
        say("not restarted: the error is in the flags or in the input")
    elif code == EXIT_RETRY:
        say("failed; what was saved is there, and the same command goes on from it")
