"""What a run says of itself: its facts at the start, then a line and a record per loop."""

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from data_pipeline import records
from data_pipeline.records import Manifest, UsageError
from trainer import flops, metrics
from trainer.loss_scale import SMALLEST
from trainer.startup import PHASES

_EXAMPLES = 5  # sentence pairs shown at the start


@dataclass(frozen=True)
class Loop:
    """One call of `Steps.train`: the step it ended at, and its (perhaps unfinished) result."""

    step: int
    steps: int
    results: dict[str, tf.Tensor]
    dispatched: float
    compiles: bool


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

    def submit(self, loop: Loop) -> None:
        """Reports on a loop, once the one before is reported.

        Raises:
            UsageError: when the loss of the loop before was not finite.
        """
        self.wait()
        self._pending = self._thread.submit(self._report, loop)

    def wait(self) -> None:
        """Until all is reported.

        Raises:
            UsageError: when the loss was not finite.
        """
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _report(self, loop: Loop) -> None:
        results = {key: value.numpy() for key, value in loop.results.items()}
        step_seconds = results.pop("step_seconds")
        results = {key: float(value) for key, value in results.items()}
        end = time.monotonic()
        seconds = end - max(loop.dispatched, self._last_end)
        self._last_end = end
        if loop.compiles:
            PHASES.end("first step")
            self._run.say(f"first step   {PHASES}")
            # Now, while nothing else keeps the devices busy, and not before the first step.
            self._peak = self._run.hardware.peak()
        if results["skipped"] == loop.steps and self._run.steps.scaled:
            self._report_overflow(loop, results["loss_scale"])
            return
        result = metrics.averages(results)
        # The gradient too: its NaN is there before the loss shows it.
        norm = results["gradient_norm"]
        if not math.isfinite(result["loss"] + norm):
            raise UsageError(
                f"the loss is {result['loss']} and the gradient's norm {norm} in steps "
                f"{loop.step - loop.steps + 1} to {loop.step}, and nothing of them was saved; "
                "lower --config.optimizer.learning_rate or set --config.optimizer.clip_norm"
            )
        run = self._run
        result |= {
            # Of the steps that were not skipped.
            "grad_norm": norm / max(1.0, loop.steps - results["skipped"]),
            "parameter_norm": results["parameter_norm"],
            "learning_rate": float(run.optimizer.schedule(loop.step - 1)),
            "epoch": loop.step / run.data.batches_per_epoch,
            "train_seconds": run.elapsed(),
            "peak_memory_bytes": flops.peak_memory_bytes(),
        }
        if math.isfinite(results["update_norm"]):
            result["update_norm"] = results["update_norm"]
        if run.steps.scaled:
            result["loss_scale"] = results["loss_scale"]
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
    source, target = manifest.source_tokenizer.vocab_size, manifest.target_tokenizer.vocab_size
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
    sources, references = records.read_raw_text(manifest, "valid")
    examples = zip(sources[:_EXAMPLES], references, strict=False)
    return [
        f"data         {manifest.directory}, fingerprint {manifest.fingerprint[:12]}",
        f"             {pairs:,} pairs {manifest.source_lang}-{manifest.target_lang}, "
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
