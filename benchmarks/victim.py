"""A training that is struck at a chosen moment, watched by what it prints and writes."""

import dataclasses
import os
import random
import re
import signal
import subprocess
import threading
import time

PHASES = ("start", "compile", "step", "evaluation", "write", "rename")
_STEP = re.compile(r"step +([0-9,]+)/")
_VALID = re.compile(r"valid +([0-9,]+) ")
_TAG = re.compile(r"^\[worker +\d+\] ")
_MISSES = 3  # checkpoints whose renaming is not seen, before it is let be
_DEADLINE = 120.0  # for a struck training to end, and for a moment to come


@dataclasses.dataclass
class Times:
    """Seconds that phases take in the undisturbed run."""

    start: float = 0.0
    compile: float = 0.0
    evaluation: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.start:.1f} s to start, {self.compile:.1f} s to compile, "
            f"{self.evaluation:.1f} s to evaluate"
        )


@dataclasses.dataclass
class Hit:
    """Where a signal hit: the phase, the last step seen, and which process."""

    phase: str
    step: int
    target: str


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
        self._checkpoints = os.path.join(model_dir, "checkpoints")
        self.lines: list[str] = []
        self.times = Times()
        self._news = threading.Condition()
        self._step, self._evaluated = 0, 0
        self._compiles = self._launches = False
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
        if phase == "start":
            time.sleep(dice.uniform(0.0, times.start))
        elif phase == "compile":
            self._wait(lambda: self._compiles)
            time.sleep(dice.uniform(0.0, times.compile))
        elif phase == "step":
            steps = self._first_step() + dice.randrange(1, 12)
            self._wait(lambda: self._step >= steps)
            time.sleep(dice.uniform(0.0, 0.05))
        elif phase == "evaluation":
            self._wait(self._before_evaluation)
            time.sleep(dice.uniform(0.0, times.evaluation))
        else:
            self._first_step()
            phase = self._watch_files(phase, dice)
        with self._news:
            step = self._step
        if self.code is not None:
            return None
        target = self._send(signal.Signals[name], dice)
        try:
            self._process.wait(_DEADLINE)
        except subprocess.TimeoutExpired:
            print(f"the training did not end within {_DEADLINE:.0f} s of {name}", flush=True)
            self._process.kill()
        self._reader.join()
        return Hit(phase, step, target)

    def expected_codes(self, name: str, phase: str) -> set[int]:
        """How a training may end that was struck."""
        if name == "SIGKILL":
            # The launcher, unless it was hit itself, reports that a worker died.
            return {-signal.SIGKILL, 1} if self._launches else {-signal.SIGKILL}
        # While Python still imports TensorFlow, nobody listens and there is nothing to save.
        unheard = {-signal.SIGTERM} | ({1} if self._launches else set())
        return {42} | (unheard if phase == "start" else set())

    def _wait(self, condition) -> None:
        with self._news:
            self._news.wait_for(lambda: condition() or self.code is not None, _DEADLINE)

    def _first_step(self) -> int:
        self._wait(lambda: self._step)
        return self._step

    def _before_evaluation(self) -> bool:
        """Whether the line before an evaluation stands there: known from the one before it."""
        every = _every("evaluate_every", self._process.args)
        return bool(self._step) and self._step % every == 0 and self._evaluated < self._step

    def _watch_files(self, phase: str, dice: random.Random) -> str:
        """Waits until a checkpoint is being written, or about to be renamed into place.

        Returns:
            the phase that was met; "step" if no checkpoint came in time.
        """
        skipped = dice.randrange(3)  # checkpoints to let pass
        deadline, seen = time.monotonic() + _DEADLINE, ""
        while self.code is None and time.monotonic() < deadline:
            new = self._unfinished()
            if not new or new == seen:
                continue
            seen, skipped = new, skipped - 1
            if skipped >= 0:
                continue
            if phase == "write":
                time.sleep(dice.uniform(0.0, 0.02))
                return "write"
            # It exists for a tenth of a millisecond: no time to list a directory.
            manifest = os.path.join(self._checkpoints, f"{new}.json")
            while not os.path.exists(manifest):
                if os.path.exists(f"{manifest}.incomplete"):
                    return "rename"
                if self.code is not None:
                    break
            if skipped < -_MISSES:
                break
        return "step"

    def _unfinished(self) -> str:
        """The newest checkpoint of which there are files, but no manifest; "" for none."""
        try:
            names = os.listdir(self._checkpoints)
        except FileNotFoundError:
            return ""
        done = {name.removesuffix(".json") for name in names if name.endswith(".json")}
        parts = {re.split(r"[._]", name)[0] for name in names} - done
        return max(parts, key=lambda name: int(name.rpartition("-")[2]), default="")

    def _send(self, number: int, dice: random.Random) -> str:
        targets = [("the trainer", self._process.pid)]
        if self._launches:
            targets = [("the launcher", self._process.pid)]
            workers = _children(self._process.pid)
            targets += [(f"worker {index}", pid) for index, pid in enumerate(workers)]
        target, pid = dice.choice(targets)
        try:
            os.kill(pid, number)
        except ProcessLookupError:  # a worker that ended at this moment
            os.kill(self._process.pid, number)
        return target


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return sorted(int(child) for child in file.read().split())


def _every(name: str, argv) -> int:
    """A number of the configuration, as the command says it."""
    values = [str(item).partition("=")[2] for item in argv if f".{name}=" in str(item)]
    return int(values[-1]) if values else 1000
