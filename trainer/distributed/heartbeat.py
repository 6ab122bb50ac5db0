"""Notices within a set time that another worker has died, stands still or is cut off.

What TensorFlow 2.21 does by itself, measured with two processes on one machine: its coordination
service, which MultiWorkerMirroredStrategy switches on (and with it off its own check of health),
takes a worker for dead after 10 s without a heartbeat. Killed or stopped workers were noticed after
8 s, and after 28 s with `heartbeat_timeout_in_ms` at 30,000; a killed chief at once, by the closed
connection. What the survivors get is an error inside the next collective operation, with a stack
trace that names the worker as /job:worker/task:1 or not at all; a survivor that is in none, because
it compiles or translates, learns nothing until it comes to one (38 s instead of 8 s, in a trial
with a pause). A worker that is stuck, but whose threads answer, is never noticed.

So a thread of our own holds the connections of `trainer.distributed.meeting`: a star with the chief
in its middle. Each side sends a beat every few seconds; the chief judges and tells the others. A
process that dies closes its connection, which shows at once; a stopped or unreachable one is
silent. Every worker then prints one line and ends its process, for whoever started it to start all
again. TensorFlow's own time-out is set to twice ours and remains as a second line.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from trainer.distributed.meeting import Connections, name_of, read
from trainer.distributed.wire import Lines, Message, wait_for
from trainer.runtime.signals import STOPPED_ON_REQUEST

LOST = 1
"""Exit code of a worker that ends because another one is lost."""
BAD_USAGE = 2

_BEATS_IN_SILENCE = 6
_LONGEST_PAUSE = 5.0
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 5.0  # for the program to end by itself, with its own words, when another has ended
_SAVING_SECONDS = 60.0


class Progress:
    """What the main thread does: how often it has met the others, and since when it is where it is.

    `trainer.distributed.cluster.sum_over_workers` holds it open while it waits for the others.
    Every worker comes there equally often: after each call of the train step, each batch of an
    evaluation.
    """

    def __init__(self) -> None:
        self.count = 0
        self.inside = False
        self._since = time.monotonic()

    def __enter__(self) -> None:
        self.count, self.inside, self._since = self.count + 1, True, time.monotonic()

    def __exit__(self, *error) -> None:
        self.inside, self._since = False, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it came to the others, or went on."""
        return time.monotonic() - self._since


PROGRESS = Progress()
"""That of this process."""


@dataclass(frozen=True)
class _State:
    """What a beat tells: see `Progress`; `quiet` in seconds."""

    count: int = 0
    inside: bool = False
    quiet: float = 0.0
    place: str = ""


@dataclass
class _Other:
    """What is known of another worker."""

    lines: Lines
    heard: float  # time.monotonic()
    left: bool = False  # it has said that it needs nobody any more
    gone: float | None = None  # since when its connection is closed
    failed: str | None = None  # why, if it has said so
    stopped: bool = False  # it was asked to stop before there was anything to save
    state: _State = field(default_factory=_State)


@dataclass(frozen=True)
class _Verdict:
    text: str
    code: int = LOST


class Watch:
    """Watches over the other workers, once `start` is called; before that, and alone, nothing.

    Args:
        silence: seconds without a sign of life after which a worker is taken for dead.
        stall: seconds without progress of any worker after which all end.
        stop_reason: why this worker was asked to stop, if it was; it then ends with code 42.
        end: ends the process; for tests.

    Attributes:
        saving: waits for what is being written; called before the process ends, for a minute at
            most.
    """

    def __init__(
        self,
        silence: float,
        stall: float,
        stop_reason: Callable[[], str | None] = lambda: None,
        end: Callable[[int], object] = os._exit,
        progress: Progress = PROGRESS,
    ):
        self._silence, self._stall = silence, stall
        self._stop_reason, self._end_process, self._progress = stop_reason, end, progress
        self._others: dict[int, _Other] = {}
        self._addresses: Sequence[str] = ()
        self._index = 0
        self._lock = threading.Lock()
        self._left = False
        self._hurry = threading.Event()
        self._ending = threading.Event()
        self.saving: Callable[[], object] = lambda: None

    def start(self, addresses: Sequence[str], index: int, connections: Connections) -> None:
        """Begins to watch, with what `rendezvous.meet` has returned."""
        self._addresses, self._index = addresses, index
        now = time.monotonic()
        self._others = {i: _Other(lines, now) for i, lines in connections.items()}
        threading.Thread(target=self._run, daemon=True, name="heartbeat").start()

    def leave(self) -> None:
        """Says that this worker has done its work: its end is none to worry about."""
        self._left = True
        self._send({"left": True})

    def fail(self, reason: str) -> None:
        """Says why this worker ends: its input or usage is wrong, in one line."""
        self._send({"failed": reason})

    def stop(self) -> None:
        """Says that this worker ends now because it was asked to, with nothing to be saved."""
        self._send({"stopped": True})

    def explain(self) -> None:
        """For a program that has failed and may have failed because another worker is lost.

        If one is, it does not return: the process ends with the line that says so. Else it returns
        after some seconds.
        """
        if self._others:
            self._hurry.set()
            if self._ending.wait(2 * _GRACE_SECONDS):
                time.sleep(2 * _SAVING_SECONDS)

    def _run(self) -> None:
        beat = min(self._silence / _BEATS_IN_SILENCE, _LONGEST_PAUSE)
        next_beat = last = time.monotonic()
        verdict = None
        while verdict is None:
            open_lines = [o.lines for o in self._others.values() if o.gone is None]
            wait_for(open_lines, min(beat, _POLL_SECONDS))
            now = time.monotonic()
            if now - last > self._silence / 2:
                # This process was stopped, or starved: it knows nothing of the others' silence.
                for other in self._others.values():
                    other.heard = now
            last = now
            verdict = self._receive(now)
            if now >= next_beat:
                self._send({"state": asdict(self._state())})
                next_beat = now + beat
            verdict = verdict or self._judge(now)
        self._finish(verdict)

    def _state(self) -> _State:
        progress = self._progress
        quiet, inside = progress.seconds, progress.inside
        place = _place() if quiet > self._stall / 2 and not inside else ""
        return _State(progress.count, inside, quiet, place)

    def _send(self, message: Message) -> None:
        with self._lock:
            for other in self._others.values():
                if other.gone is None:
                    other.lines.send(message)

    def _receive(self, now: float) -> _Verdict | None:
        for other in self._others.values():
            if other.gone is not None:
                continue
            for message in read(other.lines):
                other.heard = now
                if "end" in message:
                    return _Verdict(str(message["end"]), int(message["code"]))
                other.left = other.left or "left" in message
                other.stopped = other.stopped or "stopped" in message
                if "failed" in message:
                    other.failed = str(message["failed"])
                if "state" in message:
                    other.state = _State(**message["state"])
            if other.lines.ended:
                other.gone = now
        return None

    def _judge(self, now: float) -> _Verdict | None:
        grace = 0.0 if self._hurry.is_set() else _GRACE_SECONDS
        for index, other in self._others.items():
            name = name_of(index, self._addresses)
            if other.left:
                continue
            if other.gone is not None and other.stopped:
                return _Verdict(
                    f"{name} was asked to stop; nothing to save yet, start again to go on",
                    STOPPED_ON_REQUEST,
                )
            if other.gone is not None and now - other.gone >= grace:
                if other.failed:
                    return _Verdict(f"{name} has ended: {other.failed}", BAD_USAGE)
                return _Verdict(f"{name} has died, or its connection is lost; {_AGAIN}")
            if now - other.heard > self._silence:
                return _Verdict(f"{name} has not answered for {self._silence:g} s; {_AGAIN}")
        return self._judge_progress() if self._index == 0 and not self._left else None

    def _judge_progress(self) -> _Verdict | None:
        """Whether all stand still, and who keeps the others waiting."""
        states = {i: other.state for i, other in self._others.items() if not other.left}
        states[0] = self._state()
        if min(state.quiet for state in states.values()) < self._stall:
            return None
        fewest = min(state.count for state in states.values())
        late = [i for i, state in states.items() if state.count == fewest and not state.inside]
        who = "no worker has made progress"
        if 0 < len(late) < len(states):
            names = ", ".join(name_of(i, self._addresses) for i in sorted(late))
            who = f"{names} keeps the others waiting and has made no progress"
        places = sorted({states[i].place for i in late} - {""})
        where = f" (at {', '.join(places)})" if places else ""
        return _Verdict(f"{who} for {self._stall:g} s{where}; {_AGAIN}")

    def _finish(self, verdict: _Verdict) -> None:
        self._ending.set()
        if self._index == 0:
            self._send({"end": verdict.text, "code": verdict.code})
        saving = threading.Thread(target=self.saving, daemon=True)
        saving.start()
        saving.join(_SAVING_SECONDS)
        reason, code, text = self._stop_reason(), verdict.code, f"error: {verdict.text}"
        if code == STOPPED_ON_REQUEST:
            text = verdict.text
        elif reason:
            # It was asked to stop, and so was, by all appearance, the one that has gone before.
            text, code = f"{reason}, and {verdict.text}", STOPPED_ON_REQUEST
        print(text, file=sys.stderr, flush=True)
        sys.stdout.flush()
        self._end_process(code)


_AGAIN = "ending, so that all can be started again from the last checkpoint"


def _place() -> str:
    """Where the main thread is: file, line and function."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return ""
    last = traceback.extract_stack(frame)[-1]
    return f"{last.filename}:{last.lineno}, in {last.name}"
