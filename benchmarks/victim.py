"""A training that is struck at a chosen moment. Only the files that it writes are looked at."""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PHASES = ("start", "compile", "step", "evaluation", "write", "rename")
_DEADLINE = 120.0  # seconds for a struck training to end, and at least for a moment to come
_TRIES = 6  # checkpoints, for a moment that lasts a tenth of a millisecond
_LOOK_SECONDS = 0.005
_SLICE_SECONDS = 1e-4
_TAIL_BYTES = 1 << 16  # of metrics.jsonl, in which the lines of the last steps are
_PART = re.compile(r"ckpt-(\d+)[._]")


@dataclasses.dataclass
class Times:
    """Seconds that the phases of the undisturbed run take."""

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
        phase: one of `PHASES`, as the files showed it when the signal was sent.
        step: the last one reported.
        target: the process that was hit.
        ended: whether the training ended within the deadline.
        left: files of unfinished checkpoints that it left behind.
    """

    phase: str
    step: int
    target: str
    ended: bool = True
    left: int = 0


class CheckpointFiles:
    """The files of checkpoints in a directory, as one start of a training writes them."""

    def __init__(self, directory: str):
        self._directory = directory
        self._before = self._files()  # of earlier starts, which do not change any more

    def writing(self) -> tuple[int, str]:
        """Return the step of the checkpoint that is being written, 0 if none is; and the phase.

        That is "write", or "rename" when only the name of the manifest is still a temporary one.
        """
        files = self._files()
        finished = [_step_of(name) for name in files if name.endswith(".json")]
        new = [_step_of(name) for name, _ in files.items() - self._before.items()]
        # One that lacks its manifest and is older than a finished one is being removed.
        step = max((step for step in new if step > max(finished, default=0)), default=0)
        return step, "rename" if f"ckpt-{step}.json.incomplete" in files else "write"

    def unfinished(self) -> list[str]:
        """Return the names of files, of any start, that belong to no finished checkpoint."""
        files = self._files()
        parts = [name for name in sorted(files) if _step_of(name)]
        return [name for name in parts if f"ckpt-{_step_of(name)}.json" not in files]

    def _files(self) -> dict[str, int]:
        """Map names to the time of the last change, in nanoseconds."""
        found = {}
        for name in _names(self._directory):
            with suppress(FileNotFoundError):  # renamed or removed since it was listed
                found[name] = os.stat(os.path.join(self._directory, name)).st_mtime_ns
        return found


class Victim:
    """A running training.

    Args:
        argv: its command: the trainer, or the launcher of several workers.
        model_dir: where it writes. What it prints is added to the file `log` beside it.
    """

    def __init__(self, argv: list[str], model_dir: str):
        self._model_dir, self.log = model_dir, f"{model_dir.rstrip('/')}.log"
        self._boards = os.path.join(model_dir, "tensorboard", "train")
        self._old_boards = set(_names(self._boards))
        self._checkpoints = CheckpointFiles(os.path.join(model_dir, "checkpoints"))
        self._launches = "launch.local" in argv
        self._patience = float("inf")  # seconds to wait for a moment
        self._began = time.time()
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def finish(self) -> int:
        """Wait for its end; return the exit code."""
        return self._process.wait()

    def measure(self) -> Times:
        """Wait for its end; return the times of the phases of a run from its beginning."""
        times = Times()
        self._wait(lambda: self._look()[0] != "start")
        times.start = time.time() - self._began
        self.finish()
        times.whole = time.time() - self._began
        before = None
        for line in self._metrics(whole=True):
            if line["split"] == "valid" and before:
                times.evaluation = max(times.evaluation, line["time"] - before)
            elif line["split"] == "train":
                if before is None:
                    times.compile = line["time"] - self._began - times.start
                before = line["time"]
        return times

    def output(self) -> str:
        """Return the end of what it has printed."""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return "".join(file.readlines()[-20:])

    def strike(self, name: str, phase: str, times: Times, dice: random.Random) -> Hit | None:
        """Wait for a random moment of a phase, send a signal, and wait for the end.

        Args:
            name: of the signal.
            phase: one of `PHASES`; another one is hit if this one does not come in time.
            times: how long the phases take.
            dice: decides the moment, and with several workers whom the signal hits.

        Returns:
            Where it hit; None if the training had ended before.
        """
        self._patience = max(_DEADLINE, times.whole)
        if phase == "start":
            time.sleep(dice.uniform(0.0, times.start))
        elif phase == "compile":
            self._wait(lambda: self._look()[0] != "start")
            time.sleep(dice.uniform(0.0, times.compile))
        else:
            self._wait(lambda: self._look()[1] > 0)
            step = self._look()[1] + dice.randrange(1, 12)
            if phase == "evaluation":
                self._wait(lambda: self._look()[0] == phase)
                time.sleep(dice.uniform(0.0, times.evaluation))
            else:
                self._wait(lambda: self._look()[1] >= step)
                time.sleep(dice.uniform(0.0, 0.05))
        if phase in ("write", "rename") and self._look()[1]:
            hit = self._strike_checkpoint(name, phase, dice)
        else:
            hit = self._send(name, "", dice)
        if hit:
            try:
                self._process.wait(_DEADLINE)
            except subprocess.TimeoutExpired:
                hit.ended = False
                self._process.kill()
                self._process.wait()
            hit.left = len(self._checkpoints.unfinished())
        return hit

    def _strike_checkpoint(self, name: str, phase: str, dice: random.Random) -> Hit | None:
        """Strike while a checkpoint is written, or about to be renamed into place.

        The process that writes is stopped while its files are looked at, so that what they show is
        true of the moment at which the signal comes. Between two looks it runs for about as long as
        the manifest has its temporary name: a tenth of a millisecond.
        """
        workers = _children(self._process.pid) if self._launches else []
        writer = min(workers, default=self._process.pid)  # the chief, which is started first
        last = self._look()[1] + _TRIES * self._setting("checkpoint_every")
        deadline = time.monotonic() + self._patience
        while self.code is None and self._look()[1] <= last and time.monotonic() < deadline:
            if not self._checkpoints.writing()[0]:
                continue
            if phase == "write":
                time.sleep(dice.uniform(0.0, 0.02))
            while self.code is None and self._checkpoints.writing()[0]:
                with _stopped(writer):
                    step, seen = self._checkpoints.writing()
                    if step and seen == phase:
                        return self._send(name, phase, dice)
                if time.monotonic() > deadline:
                    break
                time.sleep(_SLICE_SECONDS)
        return self._send(name, "", dice)

    def _look(self) -> tuple[str, int]:
        """Return the phase that the metrics show, and the last step reported (0: none yet)."""
        step = evaluated = 0
        for line in self._metrics():
            if line["split"] == "train":
                step = line["step"]
            elif line["split"] == "valid":
                evaluated = line["step"]
        if step:
            evaluates = step % self._setting("evaluate_every") == 0 and evaluated < step
            return ("evaluation" if evaluates else "step"), step
        # TensorFlow is imported and the model is built when TensorBoard's file is there.
        return ("compile" if set(_names(self._boards)) - self._old_boards else "start"), 0

    def _metrics(self, *, whole: bool = False) -> list[dict]:
        """Return the lines of metrics.jsonl that this start has written, or the last of them."""
        try:
            with open(os.path.join(self._model_dir, "metrics.jsonl"), "rb") as file:
                if not whole:
                    file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
                texts = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        lines = []
        for text in reversed(texts):
            try:
                line = json.loads(text)
            except ValueError:  # the tail begins inside a line
                break
            if line["time"] < self._began - 0.001:  # times are rounded
                break
            lines.append(line)
        return lines[::-1]

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._patience
        while not condition() and self.code is None and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)

    def _setting(self, name: str) -> int:
        """Return a field of `config.train`."""
        text = Path(self._model_dir, "config.json").read_text(encoding="utf-8")
        return json.loads(text)["config"]["train"][name]

    def _send(self, name: str, phase: str, dice: random.Random) -> Hit | None:
        """Send the signal; None if the training has ended. `phase`: "" for the one that is seen."""
        targets = [("the trainer", self._process.pid)]
        if self._launches:
            workers = enumerate(_children(self._process.pid))
            targets = [("the launcher", self._process.pid)]
            targets += [(f"worker {index}", pid) for index, pid in workers]
        target, pid = dice.choice(targets)
        seen, step = self._look()
        try:
            if self.code is not None:
                return None
            os.kill(pid, signal.Signals[name])
        except ProcessLookupError:  # a worker that ended at this moment, and the others with it
            self.finish()
            return None
        return Hit(phase or seen, step, target)


def expected_codes(name: str, hit: Hit) -> set[int]:
    """Return how a training may end that was struck."""
    number, launches = signal.Signals[name], hit.target != "the trainer"
    # When one of its workers dies, the launcher ends with 1.
    struck = 1 if launches and hit.target != "the launcher" else -number
    if name == "SIGKILL":
        return {struck}
    # While Python still imports TensorFlow, nobody listens, and there is nothing to save.
    return {42, struck} if hit.phase == "start" else {42}


def verdict(fault: str, hit: Hit, code: int | None) -> str:
    """Say what is wrong with the end of a struck training; "" if nothing is."""
    if not hit.ended:
        return "  WRONG: it did not end, and was killed"
    expected = expected_codes(fault, hit)
    return "" if code in expected else f"  WRONG: ended with {code}, not {sorted(expected)}"


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """Stop a process for the length of the block; begin when all its threads stand still."""
    try:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        deadline = time.monotonic() + 5.0  # a thread that waits for a disk stops after the answer
        while not _thread_states(pid) <= set("TtZXx") and time.monotonic() < deadline:
            pass
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _thread_states(pid: int) -> set[str]:
    states = set()
    for thread in _names(f"/proc/{pid}/task"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            text = Path(f"/proc/{pid}/task/{thread}/stat").read_bytes()
            states.add(text.rpartition(b") ")[2][:1].decode())  # after the name, in brackets
    return states


def _children(pid: int) -> list[int]:
    with suppress(FileNotFoundError, ProcessLookupError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return sorted(int(child) for child in text.split())
    return []


def _names(directory: str) -> list[str]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return os.listdir(directory)
    return []


def _step_of(name: str) -> int:
    """Return the step of a checkpoint's file; 0 for another file."""
    match = _PART.match(name)
    return int(match[1]) if match else 0
