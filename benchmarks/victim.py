"""A training that is struck at a chosen moment, watched by what it prints and writes."""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable

from benchmarks.checkpoint_watch import CheckpointWatch
from benchmarks.freeze import held, in_the_gaps

PHASES = ("start", "compile", "step", "evaluation", "write", "rename")
_STEP = re.compile(r"step +([0-9,]+)/")
_VALID = re.compile(r"valid +([0-9,]+) ")
_TAG = re.compile(r"^\[worker +\d+\] ")
_DEADLINE = 120.0  # seconds for a struck training to end, and at least for a moment to come
_TRIES = 6  # checkpoints, for a moment that lasts a tenth of a millisecond
_NAP = 1e-5  # seconds between two looks at the files, as far as the system sleeps so short


@dataclasses.dataclass
class Times:
    """Seconds that phases take in the undisturbed run."""

    start: float = 0.0
    compile: float = 0.0
    evaluation: float = 0.0
    whole: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.start:.1f} s to start, {self.compile:.1f} s to compile, "
            f"{self.evaluation:.1f} s to evaluate"
        )


@dataclasses.dataclass
class Hit:
    """Where a signal hit, and what came of it.

    Attributes:
        phase: one of `PHASES`, as the output and the files showed it when the signal was sent.
        step: the last one seen.
        target: the process that was hit.
        ended: whether the training ended within the deadline.
        left: files of unfinished checkpoints that it left behind.
    """

    phase: str
    step: int
    target: str
    ended: bool
    left: int


class Victim:
    """A running training.

    Args:
        argv: its command: the trainer, or the launcher with several.
        model_dir: where it writes.

    Attributes:
        lines: what it printed so far.
        times: of its phases, complete when it has ended undisturbed.
    """

    def __init__(self, argv: list[str], model_dir: str):
        self._model_dir = model_dir
        self._watch = CheckpointWatch(os.path.join(model_dir, "checkpoints"))
        self.lines: list[str] = []
        self.times = Times()
        self._news = threading.Condition()
        self._step, self._evaluated = 0, 0
        self._compiles = self._silent = False
        self._began = time.monotonic()
        self._launches = "launch.local" in argv
        self._process = subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def finish(self) -> int:
        """Waits for its end; returns the exit code."""
        code = self._process.wait()
        self._reader.join()
        self.times.whole = time.monotonic() - self._began
        return code

    def _read(self) -> None:
        evaluates_since = 0.0
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = _TAG.sub("", line)
            now = time.monotonic()
            with self._news:
                self.lines.append(line)
                if text.startswith("tracing and compiling"):
                    self._compiles = True
                    self.times.start = now - self._began
                elif match := _STEP.match(text):
                    if not self._step:
                        self.times.compile = now - self._began - self.times.start
                    self._step = int(match[1].replace(",", ""))
                    evaluates_since = now
                elif match := _VALID.match(text):
                    self._evaluated = int(match[1].replace(",", ""))
                    self.times.evaluation = max(self.times.evaluation, now - evaluates_since)
                self._news.notify_all()
        with self._news:
            self._silent = True  # it has ended, or is about to
            self._news.notify_all()

    def strike(self, name: str, phase: str, times: Times, dice: random.Random) -> Hit | None:
        """Waits for a random moment of a phase, sends the signal, waits for the end.

        Args:
            name: of the signal.
            phase: one of `PHASES`; another one is hit where this one does not come in time.
            times: how long the phases take.
            dice: decides the moment, and with several workers whom it hits.

        Returns:
            where it hit; None if the training had ended before.
        """
        patience = max(_DEADLINE, times.whole)
        if phase in ("write", "rename"):
            self._wait(lambda: self._step, patience)
        else:
            self._approach(phase, times, patience, dice)
        if phase in ("write", "rename") and self._step:
            hit = self._strike_checkpoint(name, phase, patience, dice)
        else:
            hit = self._send(name, "", dice)
        if hit is None:
            return None
        try:
            self._process.wait(_DEADLINE)
        except subprocess.TimeoutExpired:
            hit.ended = False
            self._process.kill()
            self._process.wait()
        self._reader.join()
        hit.left = len(self._watch.unfinished())
        return hit

    def _approach(self, phase: str, times: Times, patience: float, dice: random.Random) -> None:
        """Returns at a random moment of a phase that the output tells of."""
        if phase == "start":
            time.sleep(dice.uniform(0.0, times.start))
        elif phase == "compile":
            self._wait(lambda: self._compiles, patience)
            time.sleep(dice.uniform(0.0, times.compile))
        elif phase == "step":
            self._wait(lambda: self._step, patience)
            steps = self._step + dice.randrange(1, 12)
            self._wait(lambda: self._step >= steps, patience)
            time.sleep(dice.uniform(0.0, 0.05))
        else:
            self._wait(self._evaluates, patience)
            time.sleep(dice.uniform(0.0, times.evaluation))

    def _strike_checkpoint(
        self, name: str, phase: str, patience: float, dice: random.Random
    ) -> Hit | None:
        """Strikes while a checkpoint is written, or about to be renamed into place.

        The process that writes is held while its files are looked at: what they show is then true
        of the moment at which the signal comes.
        """
        writer = self._writer()
        deadline = time.monotonic() + patience
        skipped = dice.randrange(3)  # checkpoints to let pass
        # Those that come and go unseen count too, or the training would be over before a hit.
        last = self._step + (skipped + _TRIES) * self._setting("checkpoint_every")

        def goes_on() -> bool:
            return self.code is None and self._step <= last and time.monotonic() < deadline

        for number in range(skipped + _TRIES):
            step = self._await_writing(goes_on)
            if not step:
                break
            if number >= skipped:
                if phase == "rename":
                    self._creep(writer, step, goes_on)
                else:
                    time.sleep(dice.uniform(0.0, 0.02 / (1 + number - skipped)))
                with held(writer):
                    if self._watch.phase(step) == phase:  # still
                        return self._send(name, phase, dice)
            while goes_on() and self._watch.phase(step):
                time.sleep(0.001)
        return self._send(name, "", dice)

    def _await_writing(self, goes_on: Callable[[], bool]) -> int:
        """The step of the next checkpoint, as soon as there is a file of it; 0 if none comes."""
        while goes_on():
            if step := self._watch.writing():
                return step
        return 0

    def _creep(self, writer: int, step: int, goes_on: Callable[[], bool]) -> None:
        """Waits until the manifest has its temporary name, and stops the writer there.

        It has that name for a tenth of a millisecond, too short to be seen by looking now and then.
        """
        while goes_on() and not os.path.exists(self._watch.path(step, ".index")):
            time.sleep(1e-4)
        with in_the_gaps(writer):
            while goes_on() and (phase := self._watch.phase(step)):
                if phase == "rename":
                    os.kill(writer, signal.SIGSTOP)
                    return
                time.sleep(_NAP)

    def _wait(self, condition, seconds: float) -> None:
        with self._news:
            self._news.wait_for(lambda: condition() or self._silent, seconds)

    def _evaluates(self) -> bool:
        """Whether the line before an evaluation stands there, and that of the evaluation not."""
        if not self._step:
            return False
        return self._step % self._setting("evaluate_every") == 0 and self._evaluated < self._step

    def _setting(self, name: str) -> int:
        """One of `config.train`."""
        with open(os.path.join(self._model_dir, "config.json"), encoding="utf-8") as file:
            return json.load(file)["config"]["train"][name]

    def _seen(self) -> str:
        """The phase that the output shows."""
        with self._news:
            if not self._step:
                return "compile" if self._compiles else "start"
            return "evaluation" if self._evaluates() else "step"

    def _writer(self) -> int:
        """The process that writes checkpoints: the chief, whom the launcher starts first."""
        workers = _children(self._process.pid) if self._launches else []
        return min(workers, default=self._process.pid)

    def _send(self, name: str, phase: str, dice: random.Random) -> Hit | None:
        """Sends the signal; None if there is nobody any more. `phase`: "" for the one seen."""
        hit = Hit(phase or self._seen(), self._step, "the trainer", ended=True, left=0)
        targets = [(hit.target, self._process.pid)]
        if self._launches:
            targets = [("the launcher", self._process.pid)]
            workers = _children(self._process.pid)
            targets += [(f"worker {index}", pid) for index, pid in enumerate(workers)]
        hit.target, pid = dice.choice(targets)
        if self._silent:
            self.finish()
            return None
        try:
            os.kill(pid, signal.Signals[name])
        except ProcessLookupError:  # a worker that ended at this moment, and the others with it
            self.finish()
            return None
        return hit


def expected_codes(name: str, hit: Hit) -> set[int]:
    """How a training may end that was struck."""
    number, launches = signal.Signals[name], hit.target != "the trainer"
    # That one of its workers died is what the launcher answers with 1.
    struck = 1 if launches and hit.target != "the launcher" else -number
    if name == "SIGKILL":
        return {struck}
    # While Python still imports TensorFlow, nobody listens and there is nothing to save.
    return {42, struck} if hit.phase == "start" else {42}


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return sorted(int(child) for child in file.read().split())
    except (FileNotFoundError, ProcessLookupError):
        return []
