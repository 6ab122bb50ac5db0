"""What a run says of itself: its facts at the start, then a line and a record per loop."""

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from common.console import warn
from common.errors import UsageError
from data_pipeline.dataset import examples as records
from data_pipeline.dataset.manifest import Manifest
from trainer import bad_steps
from trainer.bad_steps import BadStepsError, BatchSaver
from trainer.metrics import flops
from trainer.metrics import writer as metrics
from trainer.optim.loss_scale import SMALLEST
from trainer.runtime.startup import PHASES

_OF_LAST_STEP = {"parameter_norm", "update_norm", "loss_scale"}
_EXAMPLES = 5  # sentence pairs shown at the start


@dataclass(frozen=True)
class Loop:
    """Calls of `Steps.train` that are reported on together.

    Attributes:
        step: the step that the last one ended at.
        steps: of all of them.
        calls: their results, perhaps unfinished.
        dispatched: when the first one began, by time.monotonic().
        compiles: whether it had to be compiled.
    """

    step: int
    steps: int
    calls: list[dict[str, tf.Tensor]]
    dispatched: float
    compiles: bool

    def fetch(self) -> dict[str, np.ndarray]:
        """The results of all calls together; waits for them."""
        parts = [{key: value.numpy() for key, value in call.items()} for call in self.calls]
        results = dict(parts[-1])
        for key in results.keys() - _OF_LAST_STEP:
            values = [part[key] for part in parts]
            results[key] = np.concatenate(values) if values[0].ndim else np.sum(values)
        return results


class Reporter:
    """Turns the result of a loop into metrics while the next loop runs.

    Fetching, writing and printing happen on a thread of their own. On an accelerator the numbers
    of a loop are there only when it has ended; to wait for them before giving the device the next
    loop would leave it idle.

    Args:
        run: `trainer.loop.Run`.
    """

    def __init__(self, run):
        self._run = run
        self._thread = ThreadPoolExecutor(1, "reporter")
        self._pending: Future | None = None
        self._last_end = 0.0
        self._peak: float | None = None  # FLOP/s of all devices
        self._saver = BatchSaver(run)
        self._bad_in_a_row = 0

    def submit(self, loop: Loop) -> None:
        """Reports on a loop, once the one before is reported.

        Raises:
            BadStepsError, UsageError: for the loop before, as `wait` does.
        """
        self.wait()
        self._pending = self._thread.submit(self._report, loop)

    def wait(self) -> None:
        """Until all is reported.

        Raises:
            BadStepsError: when a step was bad, unless `train.bad_steps` is "skip" and it is one of
                few.
            UsageError: when not even the smallest loss scale helps.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _report(self, loop: Loop) -> None:
        arrays = loop.fetch()
        step_seconds, bad = arrays.pop("step_seconds"), arrays.pop("bad")
        results = {key: float(value) for key, value in arrays.items()}
        end = time.monotonic()
        seconds = end - max(loop.dispatched, self._last_end)
        self._last_end = end
        if loop.compiles:
            PHASES.end("first step")
            self._run.say(f"first step   {PHASES}")
            # Now, while nothing else keeps the devices busy, and not before the first step.
            self._peak = self._run.hardware.peak()
        self._check(loop, bad)
        if results["skipped"] == loop.steps:
            if self._run.steps.scaled:
                self._report_overflow(loop, results["loss_scale"])
            return
        result = metrics.averages(results)
        norm = results["gradient_norm"]
        run = self._run
        result |= {
            # Of the steps that were not skipped.
            "grad_norm": norm / max(1.0, loop.steps - results["skipped"]),
            "parameter_norm": results["parameter_norm"],
            "learning_rate": float(run.optimizer.schedule(loop.step - 1)),
            "epoch": (loop.step + run.data_offset) / run.data.batches_per_epoch,
            "train_seconds": run.elapsed(),
            "peak_memory_bytes": flops.peak_memory_bytes(),
        }
        if math.isfinite(results["update_norm"]):
            result["update_norm"] = results["update_norm"]
        if run.steps.scaled:
            result["loss_scale"] = results["loss_scale"]
        if run.steps.scaled or run.config.train.bad_steps == "skip":
            result["skipped_steps"] = int(results["skipped"])
        if results["empty_rows"]:  # of damaged blocks: no other row is without a sentence
            result["corrupt_rows"] = int(results["empty_rows"])
        if loop.compiles:
            result["compile_seconds"] = PHASES.seconds["tracing"] + seconds
            speed, left = f"compiled in {result['compile_seconds']:.0f} s", "-:--:--"
        else:
            result |= self._speed(loop, results, step_seconds, seconds)
            speed = f"{result['target_tokens_per_second']:,.0f} tokens/s"
            left = metrics.clock((run.config.train.steps - loop.step) * seconds / loop.steps)
        run.writer.write("train", loop.step, result)
        skipped = f"  {results['skipped']:.0f} skipped" if results["skipped"] else ""
        if results["empty_rows"]:
            skipped += f"  {results['empty_rows']:.0f} corrupt rows left empty"
        run.say(
            f"step {loop.step:>7,}/{run.config.train.steps:,}  epoch {result['epoch']:6.2f}  "
            f"loss {result['loss']:.4f}  accuracy {result['token_accuracy']:.3f}  "
            f"lr {result['learning_rate']:.2e}  {speed}  {left} left{skipped}"
        )

    def _check(self, loop: Loop, numbers: np.ndarray) -> None:
        """Tells of bad steps; raises `BadStepsError` where the run may not simply go on."""
        found = bad_steps.find(numbers, loop.step)
        if self._run.worker.is_chief:
            for bad in found:
                warn(f"{bad} is bad, and changes nothing; its batch: {self._saver.save(bad)}")
        if found and self._run.config.train.bad_steps != "skip":
            raise BadStepsError(found)
        for is_bad in numbers[:, 2]:
            self._bad_in_a_row = self._bad_in_a_row + 1 if is_bad else 0
            if self._bad_in_a_row == bad_steps.MOST_IN_A_ROW:
                raise BadStepsError(found)

    def _report_overflow(self, loop: Loop, loss_scale: float) -> None:
        if loss_scale <= SMALLEST:
            raise UsageError(
                f"the gradients of all steps {loop.step - loop.steps + 1} to {loop.step} overflow "
                "float16, even with the smallest loss scale; lower "
                "--config.optimizer.learning_rate, or train with --precision=mixed_bfloat16"
            )
        self._run.say(
            f"step {loop.step:>7,}/{self._run.config.train.steps:,}  all {loop.steps} steps "
            f"skipped: float16 overflows, the loss scale is {loss_scale:g} now"
        )

    def _speed(
        self, loop: Loop, results: dict[str, float], step_seconds: np.ndarray, seconds: float
    ) -> dict[str, float]:
        p50, p95 = np.percentile(step_seconds, [50, 95])
        tokens = results["tokens"] / seconds
        speed = {
            "target_tokens_per_second": tokens,
            "source_tokens_per_second": results["source_tokens"] / seconds,
            "step_seconds": seconds / loop.steps,
            "step_seconds_p50": float(p50),
            "step_seconds_p95": float(p95),
            # The share of the time in which the step waited for its batch.
            "input_wait": results["input_seconds"] / seconds,
        }
        if self._peak:
            speed["mfu"] = tokens * self._run.flops_per_token / self._peak
        return speed


def _vocabulary(manifest: Manifest) -> str:
    source, target = (info.vocab_size for info in manifest.tokenizers.values())
    if manifest.joint_vocabulary:
        return f"joint vocabulary {source:,}"
    return f"vocabularies {source:,} source, {target:,} target"


def describe(run, state: str) -> list[str]:
    """The facts of a `trainer.loop.Run`, one a line; `state` says what it starts from."""
    data, train, manifest = run.data, run.config.train, run.manifest
    parameters = sum(math.prod(v.shape) for v in run.model.trainable_variables)
    shapes = ", ".join(f"{rows} x {length}" for rows, length in data.shapes)
    pairs = manifest.splits["train"].kept
    micro_batches = f" in {train.micro_batches} micro-batches" if train.micro_batches > 1 else ""
    sources, references = records.read_raw_text(manifest, "valid").values()
    examples = zip(sources[:_EXAMPLES], references, strict=False)
    return [
        f"data         {manifest.directory}, fingerprint {manifest.fingerprint[:12]}",
        f"             {pairs:,} pairs {'-'.join(manifest.languages.values())}, "
        f"{_vocabulary(manifest)}, {data.left_out():,} too long and left out",
        f"             {data.origin}",
        f"model        {parameters:,} parameters, {run.flops_per_token / 1e6:,.1f} million "
        "floating-point operations a target token in training",
        f"batch        at most {train.batch_tokens:,} target positions on "
        f"{run.strategy.num_replicas_in_sync} replica(s){micro_batches}, rows x tokens: {shapes}; "
        f"fill rate {data.fill_rate():.3f}",
        f"length       {train.steps:,} steps, {data.batches_per_epoch:,} an epoch",
        f"model_dir    {run.model_dir}",
        f"state        {state}",
        *(f"example      {source}  |  {reference}" for source, reference in examples),
    ]
