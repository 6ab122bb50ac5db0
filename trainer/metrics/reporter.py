"""Turn the results of the train step into metrics, while training goes on."""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from common import status
from common.console import warn
from common.errors import RetryError, UsageError
from configs.schema import TrainConfig
from data_pipeline.dataset.manifest import SplitInfo
from trainer import bad_steps
from trainer.bad_steps import BadStepsError, BatchSaver
from trainer.metrics.call_times import Call
from trainer.metrics.flops import Hardware, peak_memory_bytes
from trainer.metrics.goodput import Ledger
from trainer.metrics.writer import MetricsWriter, clock
from trainer.optim.loss_scale import SMALLEST
from trainer.replay import Replay
from trainer.runtime.startup import PHASES
from trainer.tasks.base import Task

_OF_LAST_STEP = {"parameter_norm", "update_norm", "loss_scale"}


@dataclass(frozen=True)
class Stretch:
    """Calls of `Steps.train` that are reported on together.

    Attributes:
        step: the step that the last call ended at.
        steps: number of steps in all calls.
        calls: the calls, perhaps not done yet.
        compiles: whether the first call had to be compiled.
        data_offset: batches that rollbacks left out before.
    """

    step: int
    steps: int
    calls: list[Call]
    compiles: bool
    data_offset: int

    def fetch(self) -> dict[str, np.ndarray]:
        """Wait for all calls and return their results together."""
        parts = [{key: value.numpy() for key, value in call.results.items()} for call in self.calls]
        results = dict(parts[-1])
        for key in results.keys() - _OF_LAST_STEP:
            values = [part[key] for part in parts]
            results[key] = np.concatenate(values) if values[0].ndim else np.sum(values)
        if "step_seconds" not in results:
            means = [call.timing.result().seconds / call.steps for call in self.calls]
            results["step_seconds"] = np.repeat(means, [call.steps for call in self.calls])
        return results

    @property
    def seconds(self) -> float:
        """The time that the calls took."""
        return sum(call.timing.result().seconds for call in self.calls)


class Reporter:
    """Turns the results of a stretch into metrics while the next one runs.

    A thread of its own fetches, writes and prints. An accelerator has the numbers of a stretch only
    at its end; waiting for them before the next call would leave it idle.

    Args:
        config: of the training.
        task: names the metrics.
        split: the training split.
        writer: gets them.
        hardware: for the model FLOPs utilisation.
        flops_per_unit: FLOPs of training a unit (`Task.UNIT`).
        batches_per_epoch: for the epoch.
        schedule: step -> learning rate.
        seconds: returns the training time so far.
        scaled: whether there is a dynamic loss scale.
        say: prints a line, on the chief only.
        saver: keeps the batches of bad steps; None on workers that are not the chief.
        ledger: learns how long the steps waited for batches.
        replay: of the steps that are computed twice; None for none.

    Attributes:
        prints: whether every report is a line on the console, and not only one with skipped steps.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        split: SplitInfo,
        writer: MetricsWriter,
        *,
        hardware: Hardware,
        flops_per_unit: float,
        batches_per_epoch: int,
        schedule: Callable[[int], tf.Tensor],
        seconds: Callable[[], float],
        scaled: bool,
        say: Callable[[str], None],
        saver: BatchSaver | None,
        ledger: Ledger,
        replay: Replay | None = None,
    ):
        self._config, self._task, self._split, self._writer = config, task, split, writer
        self._hardware, self._flops_per_unit = hardware, flops_per_unit
        self._batches_per_epoch, self._schedule = batches_per_epoch, schedule
        self._seconds, self._scaled, self._say, self._saver = seconds, scaled, say, saver
        self._ledger = ledger
        self._replay = replay
        self._thread = ThreadPoolExecutor(1, "reporter")
        self._pending: Future | None = None
        self._peak: float | None = None  # FLOP/s of all devices
        self._bad_in_a_row = 0
        self.prints = True

    def submit(self, stretch: Stretch) -> None:
        """Start to report on a stretch, once the one before is reported.

        Raises:
            BadStepsError, RetryError, UsageError: for the stretch before, as `wait` does.
        """
        self.wait()
        self._pending = self._thread.submit(self._report, stretch)

    def wait(self) -> None:
        """Wait until everything is reported.

        Raises:
            BadStepsError: a step was bad, unless `train.bad_steps` is "skip" and it is one of few.
            UsageError: not even the smallest loss scale helps.
            RetryError: a step that was computed twice gave two results.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _report(self, stretch: Stretch) -> None:
        arrays = stretch.fetch()
        step_seconds, bad = arrays.pop("step_seconds"), arrays.pop("bad")
        if self._replay:
            self._check_replays(arrays.pop("replay"), stretch.step)
        results = {key: float(value) for key, value in arrays.items()}
        seconds = stretch.seconds
        if not stretch.compiles:
            self._ledger.move(results["input_seconds"], "steps", "input")
        if stretch.compiles:
            PHASES.end("first step")
            status.report(seconds_to_first_step=PHASES.seconds)
            self._say(f"first step   {PHASES}")
            # Now, while nothing else keeps the devices busy, and not before the first step.
            self._peak = self._hardware.peak()
        self._check(stretch, bad)
        if results["skipped"] == stretch.steps:
            if self._scaled:
                self._report_overflow(stretch, results["loss_scale"])
            return
        result = self._task.metrics(results, self._split) | self._state(stretch, results)
        if stretch.compiles:
            result["compile_seconds"] = PHASES.seconds["tracing"] + seconds
            speed, left = f"compiled in {result['compile_seconds']:.0f} s", "-:--:--"
        else:
            result |= self._speed(stretch, results, step_seconds, seconds)
            speed = f"{result[next(iter(self._task.RATES))]:,.0f} {self._task.UNIT}s/s"
            left = clock((self._config.steps - stretch.step) * seconds / stretch.steps)
        self._writer.write("train", stretch.step, result)
        skipped = f"  {results['skipped']:.0f} skipped" if results["skipped"] else ""
        if results["empty_rows"]:
            skipped += f"  {results['empty_rows']:.0f} corrupt rows left empty"
        if not self.prints and not skipped:
            return
        self._say(
            f"step {stretch.step:>7,}/{self._config.steps:,}  epoch {result['epoch']:6.2f}  "
            f"{self._task.progress(result)}  lr {result['learning_rate']:.2e}  {speed}  "
            f"{left} left{skipped}"
        )

    def _state(self, stretch: Stretch, results: dict[str, float]) -> dict[str, float]:
        """Return the metrics that every task has, without those of speed."""
        state = {
            # Of the steps that were not skipped.
            "grad_norm": results["gradient_norm"] / max(1.0, stretch.steps - results["skipped"]),
            "parameter_norm": results["parameter_norm"],
            "learning_rate": float(self._schedule(stretch.step - 1)),
            "epoch": (stretch.step + stretch.data_offset) / self._batches_per_epoch,
            "train_seconds": self._seconds(),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        if math.isfinite(results["update_norm"]):
            state["update_norm"] = results["update_norm"]
        if self._scaled:
            state["loss_scale"] = results["loss_scale"]
        if self._scaled or self._config.bad_steps == "skip":
            state["skipped_steps"] = int(results["skipped"])
        if results["empty_rows"]:  # of damaged blocks: every other row holds an example
            state["corrupt_rows"] = int(results["empty_rows"])
        return state

    def _check(self, stretch: Stretch, numbers: np.ndarray) -> None:
        """Warn of bad steps; raise `BadStepsError` if the run may not simply go on."""
        found = bad_steps.find(numbers, stretch.step, stretch.data_offset)
        if self._saver:
            for bad in found:
                warn(f"{bad} is bad, and changes nothing; its batch: {self._saver.save(bad)}")
        if found and self._config.bad_steps != "skip":
            raise BadStepsError(found)
        for is_bad in numbers[:, 2]:
            self._bad_in_a_row = self._bad_in_a_row + 1 if is_bad else 0
            if self._bad_in_a_row == bad_steps.MOST_IN_A_ROW:
                raise BadStepsError(found)

    def _check_replays(self, verdicts: np.ndarray, step: int) -> None:
        assert self._replay
        if found := self._replay.describe(verdicts, step):
            raise RetryError(
                f"a machine computes or keeps wrong numbers: {'; '.join(found[:3])}; the step was "
                "not applied, nothing of it is saved; leave that machine out and start again"
            )

    def _report_overflow(self, stretch: Stretch, loss_scale: float) -> None:
        if loss_scale <= SMALLEST:
            raise UsageError(
                f"the gradients of all steps {stretch.step - stretch.steps + 1} to {stretch.step} "
                "overflow float16, even with the smallest loss scale; lower "
                "--config.optimizer.learning_rate, or train with --precision=mixed_bfloat16"
            )
        self._say(
            f"step {stretch.step:>7,}/{self._config.steps:,}  all {stretch.steps} steps skipped: "
            f"float16 overflows, the loss scale is {loss_scale:g} now"
        )

    def _speed(
        self,
        stretch: Stretch,
        results: dict[str, float],
        step_seconds: np.ndarray,
        seconds: float,
    ) -> dict[str, float]:
        p50, p95 = np.percentile(step_seconds, [50, 95])
        rates = {name: results[total] / seconds for name, total in self._task.RATES.items()}
        speed = {
            **rates,
            "step_seconds": seconds / stretch.steps,
            "step_seconds_p50": float(p50),
            "step_seconds_p95": float(p95),
            # The share of the time in which the step waited for its batch.
            "input_wait": results["input_seconds"] / seconds,
        }
        if self._peak:
            units_per_second = next(iter(rates.values()))
            speed["mfu"] = units_per_second * self._flops_per_unit / self._peak
        return speed
