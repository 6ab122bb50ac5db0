"""Let contenders take turns, each in a separate process."""

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import signal
import statistics
import threading
import time
import traceback
from typing import Any

from benchmarks.comparison import Meter, Setting
from common.console import say_on_stderr


@dataclasses.dataclass(frozen=True)
class Contender:
    """A training loop to measure.

    Attributes:
        name: its name in the table.
        module: a module with `train(setting, meter)`, imported only in its own process.
        setting: what it trains.
    """

    name: str
    module: str
    setting: Setting


class _WorkerError(Exception):
    """A contender's process cannot continue; the message says why in one line."""


class _Worker:
    """The process of a contender, warm and waiting for a round."""

    def __init__(self, contender: Contender):
        # A fresh interpreter, so that no contender sees what another one imported.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(contender, theirs, time.time()), daemon=True
        )
        self._process.start()
        theirs.close()
        self.facts = self._receive()

    def run(self, seconds: float) -> dict[str, Any]:
        """Run a round; return its "tokens", "seconds", "steps" and "loss"."""
        self._connection.send(seconds)
        return self._receive()

    def stop(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(30)
        self._process.kill()

    def _receive(self) -> dict[str, Any]:
        try:
            message = self._connection.recv()
        except EOFError:
            self._process.join()
            raise _WorkerError(f"its process ended with code {self._process.exitcode}") from None
        if "failed" in message:
            raise _WorkerError(message["failed"])
        return message


def _work(contender: Contender, connection, started: float) -> None:
    """Run a contender, in its own process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # PyTorch may share the GPU with it.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        module = importlib.import_module(contender.module)
        module.train(contender.setting, Meter(connection, started))
    except ModuleNotFoundError as error:
        connection.send({"failed": f"{error.name} is not installed"})
    except Exception as error:
        traceback.print_exc()
        connection.send({"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"})


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # at once, even during a compilation


def measure(contenders: list[Contender], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Warm up all contenders, one after the other, then let them take turns.

    Args:
        contenders: in the order of the result.
        rounds: number of turns of each contender.
        seconds: length of a turn, which ends with the first step after it.

    Returns:
        For each contender "name" and either "missing", the reason why it was not measured, or the
        facts of `Meter.describe`, "first_step_seconds", "warm_seconds", "rounds" (tokens, seconds
        and steps of each), and the median, "min" and "max" of target tokens per second over the
        rounds; the median is "tokens_per_second".
    """
    results: list[dict[str, Any]] = [{"name": contender.name} for contender in contenders]
    workers: dict[int, _Worker] = {}
    for index, (contender, result) in enumerate(zip(contenders, results, strict=True)):
        say_on_stderr(f"warming up {contender.name}")
        try:
            workers[index] = _Worker(contender)
            result |= workers[index].facts | {"rounds": []}
        except _WorkerError as error:
            result["missing"] = str(error)
    for number in range(rounds):
        for index, worker in list(workers.items()):
            say_on_stderr(f"round {number + 1} of {rounds}: {contenders[index].name}")
            try:
                results[index]["rounds"].append(worker.run(seconds))
            except _WorkerError as error:
                results[index]["missing"] = str(error)
                del workers[index]
    for worker in workers.values():
        worker.stop()
    return [summarise(result) for result in results]


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """Add the median, smallest and largest target tokens per second of a result's rounds."""
    if "missing" in result:
        return result
    speeds = [turn["tokens"] / turn["seconds"] for turn in result["rounds"]]
    median = statistics.median(speeds)
    return {**result, "tokens_per_second": median, "min": min(speeds), "max": max(speeds)}
