"""Notice within a set time that another worker has died, stands still or is cut off.

TensorFlow's coordination service notices a killed or stopped worker, but the survivors learn of it
only in their next collective operation, from a stack trace that hardly names the worker, and a
worker that is stuck while its threads answer is never noticed (TensorFlow 2.21, measured).

So a thread of our own keeps the connections of `trainer.distributed.meeting`: a star with the chief
in its middle. Each side sends a beat every few seconds; the chief judges and tells the others. A
process that dies closes its connection, which shows at once; a stopped or unreachable one is
silent. Then every worker prints one line and ends its process, so that all can be started again.
TensorFlow's own time-out is set to twice ours and remains as a second line of defence.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from common import status
from common.errors import EXIT_RETRY, EXIT_STOPPED, EXIT_USAGE
from trainer.distributed.meeting import Connections, name_of
from trainer.distributed.wire import Channel, Message, wait_for

_BEATS_IN_SILENCE = 6
_LONGEST_PAUSE = 5.0
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 5.0  # for a program to end by itself, with its own words, when another has ended
_SAVING_SECONDS = 60.0
_AGAIN = "ending, so that all can be started again from the last checkpoint"


class Progress:
    """What the main thread does: how often it has met the others, and for how long it has not.

    `trainer.distributed.cluster.sum_over_workers` is inside it while it waits for the others. Every
    worker comes there equally often: after each call of the train step and each batch of an
    evaluation.

    Attributes:
        connecting: TensorFlow is connecting the workers.
    """

    def __init__(self) -> None:
        self.count = 0
        self.inside = False
        self.connecting = False
        self._since = time.monotonic()

    def __enter__(self) -> None:
        self.count, self.inside, self._since = self.count + 1, True, time.monotonic()

    def __exit__(self, *error) -> None:
        self.inside, self._since = False, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since it came to the others, or went on."""
        return time.monotonic() - self._since


PROGRESS = Progress()
"""The progress of this process."""


@dataclass(frozen=True)
class _State:
    """What a beat tells: see `Progress`; `quiet` in seconds."""

    count: int = 0
    inside: bool = False
    quiet: float = 0.0
    place: str = ""


@dataclass(frozen=True)
class _Verdict:
    """Why and how all end: a line for people, the exit code, and the worker that is to blame."""

    text: str
    code: int = EXIT_RETRY
    lost: int | None = None
    reason: str = ""


@dataclass
class _Other:
    """What is known of another worker. Its messages set `left`, `failed`, `stopped` and `state`."""

    channel: Channel
    heard: float  # time.monotonic()
    left: bool = False  # its work is done
    failed: str = ""  # why, if its input or usage is wrong
    stopped: bool = False  # it was asked to stop before there was anything to save
    state: _State = field(default_factory=_State)
    gone: float | None = None  # since when its connection is closed


class Watch:
    """Watches the other workers once `start` is called; does nothing before that, or alone.

    Args:
        silence: seconds without a sign of life after which a worker is taken for dead.
        stall: seconds without progress of any worker after which all end.
        stop_reason: returns why this worker was asked to stop, if it was; it then ends with 42.
        end: ends the process; another one for tests.
        progress: of this process; another one for tests.

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
        self._beat = min(silence / _BEATS_IN_SILENCE, _LONGEST_PAUSE)
        self._connecting_seconds, self._began = stall, 0.0
        self._last_turn = self._next_beat = 0.0
        self._lock = threading.Lock()
        self._left = self._stopped = False
        self._hurry = threading.Event()
        self._ending = threading.Event()
        self.saving: Callable[[], object] = lambda: None

    def start(
        self,
        addresses: Sequence[str],
        index: int,
        connections: Connections,
        connecting_seconds: float | None = None,
    ) -> None:
        """Begin to watch.

        Args:
            addresses: as for `meeting.meet`.
            index: as for `meeting.meet`.
            connections: what `meeting.meet` has returned.
            connecting_seconds: for TensorFlow to connect the workers; None for `stall`.
        """
        self._addresses, self._index = addresses, index
        self._began = self._last_turn = time.monotonic()
        if connecting_seconds is not None:
            self._connecting_seconds = connecting_seconds
        self._others = {i: _Other(channel, self._began) for i, channel in connections.items()}
        threading.Thread(target=self._run, daemon=True, name="heartbeat").start()

    def leave(self) -> None:
        """Say that this worker has done its work, so that nobody worries about its end."""
        self._left = True
        self._send({"left": True})

    def fail(self, reason: str) -> None:
        """Say why this worker ends: its input or usage is wrong, in one line."""
        self._send({"failed": reason})

    def stop(self) -> None:
        """Say that this worker ends now because it was asked to, with nothing to save.

        The others end likewise, so this worker no longer watches them.
        """
        self._stopped = True
        self._send({"stopped": True})

    def explain(self) -> None:
        """Wait for a reason why the program has failed: another worker may be lost.

        If one is, this does not return: the process ends with a line that says so. Otherwise it
        returns after some seconds.
        """
        if self._others:
            self._hurry.set()
            if self._ending.wait(2 * _GRACE_SECONDS):
                time.sleep(2 * _SAVING_SECONDS)

    def _run(self) -> None:
        verdict = None
        while verdict is None:
            if self._stopped:
                return
            present = [other.channel for other in self._others.values() if other.gone is None]
            wait_for(present, min(self._beat, _POLL_SECONDS))
            verdict = self._turn(time.monotonic())
        self._finish(verdict)

    def _turn(self, now: float) -> _Verdict | None:
        """Hear the others, send a beat when it is time, and judge."""
        if now - self._last_turn > self._silence / 2:
            # This process was stopped or starved: it knows nothing of the others' silence.
            for other in self._others.values():
                other.heard = now
        self._last_turn = now
        verdict = self._receive(now)
        if now >= self._next_beat:
            self._send({"state": asdict(self._state())})
            self._next_beat = now + self._beat
        return verdict or self._judge(now)

    def _state(self) -> _State:
        progress = self._progress
        quiet, inside = progress.seconds, progress.inside
        place = _place() if quiet > self._stall / 2 and not inside else ""
        return _State(progress.count, inside, quiet, place)

    def _send(self, message: Message) -> None:
        with self._lock:
            for other in self._others.values():
                if other.gone is None:
                    other.channel.send(message)

    def _receive(self, now: float) -> _Verdict | None:
        """Note what the others say; return the chief's verdict if it has come."""
        for other in self._others.values():
            if other.gone is not None:
                continue
            for message in other.channel.read():
                other.heard = now
                if "verdict" in message:
                    return _Verdict(**message["verdict"])
                other.left = message.get("left", other.left)
                other.failed = message.get("failed", other.failed)
                other.stopped = message.get("stopped", other.stopped)
                if "state" in message:
                    other.state = _State(**message["state"])
            if other.channel.ended:
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
                    EXIT_STOPPED,
                )
            if other.gone is not None and now - other.gone >= grace:
                if other.failed:
                    return _Verdict(f"{name} has ended: {other.failed}", EXIT_USAGE)
                return self._blame([index], "has died, or its connection is lost")
            if now - other.heard > self._silence:
                return self._blame([index], f"has not answered for {self._silence:g} s")
        if self._progress.connecting and now - self._began > self._connecting_seconds:
            return _Verdict(
                f"all workers have met, but TensorFlow could not connect them within "
                f"{self._connecting_seconds:g} s: look for a firewall between them"
            )
        return self._judge_progress() if self._index == 0 and not self._left else None

    def _blame(self, workers: Sequence[int], reason: str, where: str = "") -> _Verdict:
        names = ", ".join(name_of(index, self._addresses) for index in workers)
        return _Verdict(f"{names} {reason}{where}; {_AGAIN}", lost=workers[0], reason=reason)

    def _judge_progress(self) -> _Verdict | None:
        """Judge whether all stand still, and who keeps the others waiting."""
        states = {i: other.state for i, other in self._others.items() if not other.left}
        states[0] = self._state()
        if min(state.quiet for state in states.values()) < self._stall:
            return None
        fewest = min(state.count for state in states.values())
        late = [i for i in sorted(states) if states[i].count == fewest and not states[i].inside]
        places = sorted({states[i].place for i in late} - {""})
        where = f" (at {', '.join(places)})" if places else ""
        if 0 < len(late) < len(states):
            reason = f"keeps the others waiting and has made no progress for {self._stall:g} s"
            return self._blame(late, reason, where)
        return _Verdict(f"no worker has made progress for {self._stall:g} s{where}; {_AGAIN}")

    def _finish(self, verdict: _Verdict) -> None:
        self._ending.set()
        if self._index == 0:
            self._send({"verdict": asdict(verdict)})
        saving = threading.Thread(target=self.saving, daemon=True)
        saving.start()
        saving.join(_SAVING_SECONDS)
        reason, code, text = self._stop_reason(), verdict.code, f"error: {verdict.text}"
        if code == EXIT_STOPPED:
            text = verdict.text
        elif reason:
            # This worker was asked to stop; the one that left first probably was too.
            text, code = f"{reason}, and {verdict.text}", EXIT_STOPPED
        elif verdict.lost is not None:
            status.report(lost_worker=verdict.lost, reason=verdict.reason)
        sys.stderr.write(f"{text}\n")  # in one piece, as all workers may share it
        sys.stderr.flush()
        sys.stdout.flush()
        self._end_process(code)


def _place() -> str:
    """Return where the main thread is: file, line and function."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return ""
    last = traceback.extract_stack(frame)[-1]
    return f"{last.filename}:{last.lineno}, in {last.name}"
