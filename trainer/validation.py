"""Evaluation of the validation split during training: metrics, scores, samples, the best so far."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from common.console import warn
from common.errors import UsageError
from configs.schema import TrainConfig
from data_pipeline.dataset.manifest import SplitInfo
from trainer.agreement import Agreement
from trainer.checkpoints.saver import RunState
from trainer.distributed import cluster
from trainer.metrics.writer import MetricsWriter, samples_table
from trainer.step import Steps
from trainer.tasks.base import Scorer, Scores

_SAMPLES = 8  # shown in TensorBoard
_PRINTED = 2  # of them, on the console


class Validation:
    """Evaluates a model now and then.

    Args:
        config: says when, and which metric decides.
        steps: of the model.
        split: the validation split, of the manifest.
        batches: the same, a distributed dataset.
        scorer: of the same split.
        state: of the run; keeps what is the best so far.
        writer: gets the results.
        stops: checked between batches.
        say: prints a line, on the chief only.
        picture: shows the model as it is after a step, on the chief only.
    """

    def __init__(
        self,
        config: TrainConfig,
        steps: Steps,
        split: SplitInfo,
        batches: Iterable,
        scorer: Scorer,
        state: RunState,
        writer: MetricsWriter,
        stops: Agreement,
        say: Callable[[str], None],
        picture: Callable[[int], None] | None = None,
    ):
        self._config, self._steps, self._split = config, steps, split
        self._batches, self._scorer = batches, scorer
        self._state, self._writer, self._stops, self._say = state, writer, stops, say
        self._picture = picture
        self._warned_of_tie = False

    def is_due(self, step: int) -> bool:
        """Return whether this step is one to evaluate at, and that is not done yet."""
        at_end = step == self._config.steps or step % self._config.evaluate_every == 0
        return at_end and 0 < step != int(self._state.evaluated_step.numpy())

    def evaluate(self, step: int) -> dict[str, float]:
        """Evaluate, report, and note whether this is the best so far.

        Where the run keeps a moving average of the weights, that is what is evaluated.

        Returns:
            The metrics, the same on all workers.

        Raises:
            StopAskedError: any worker was asked to stop meanwhile; nothing is noted then.
        """
        optimizer, variables = self._steps.optimizer, self._steps.model.trainable_variables
        optimizer.swap_averages(variables)
        try:
            return self._evaluate(step)
        finally:
            optimizer.swap_averages(variables)

    def _evaluate(self, step: int) -> dict[str, float]:
        began, strategy, task = time.monotonic(), self._steps.strategy, self._steps.task
        result = total_metrics(self._steps, self._batches, self._split, self._stops.poll)
        scores = self._scorer(self._stops.poll)
        numbers = [scores.metrics[name] for name in task.SCORES]
        # From the chief, so that all workers decide alike on the best checkpoint and on stopping.
        shared = cluster.from_chief(strategy, numbers)
        result |= {name: float(value) for name, value in zip(task.SCORES, shared, strict=True)}
        result["evaluate_seconds"] = time.monotonic() - began
        better = self._note(step, result)
        if cluster.worker_of(strategy).is_chief:
            self._report(step, result, scores, better)
        return result

    def _report(self, step: int, result: dict, scores: Scores, better: bool) -> None:
        task = self._steps.task
        self._writer.write("valid", step, {**result, **scores.metrics})
        # The same examples each time, spread over the split.
        count = len(scores.samples)
        places = np.linspace(0, count - 1, min(_SAMPLES, count), dtype=int)
        shown = [scores.samples[place] for place in places]
        if shown:
            self._writer.text("valid", step, task.OUTPUTS, samples_table(shown))
        if scores.outputs:
            self._writer.outputs(task.OUTPUTS, "valid", step, scores.outputs)
        show_details(self._writer, "valid", step, scores)
        if self._picture:
            self._picture(step)
        self._say(
            f"valid {step:>6,}  {'  '.join(filter(None, (task.summary(result), scores.summary)))}  "
            f"({result['evaluate_seconds']:.0f} s){'  best so far' if better else ''}"
        )
        for sample in shown[:_PRINTED]:
            self._say("\n".join(show(sample, indent=4)))

    def _note(self, step: int, result: dict[str, float]) -> bool:
        """Update the state of early stopping; return whether this is the best so far."""
        state, name = self._state, self._config.best_metric
        state.evaluated_step.assign(step)
        value, best = result[name], float(state.best.numpy())
        higher = self._steps.task.BEST[name]
        better = math.isnan(best) or (value > best if higher else value < best)
        if value == best:
            self._warn_of_tie(name, value)
            better = result["loss"] < float(state.best_loss.numpy())
        if better:
            state.best.assign(value)
            state.best_step.assign(step)
            state.best_loss.assign(result["loss"])
            state.evaluations_since_best.assign(0)
        else:
            state.evaluations_since_best.assign_add(1)
        return better

    def _warn_of_tie(self, name: str, value: float) -> None:
        if not self._warned_of_tie and cluster.worker_of(self._steps.strategy).is_chief:
            warn(
                f"two evaluations have the best {name}, {value:.4g}, so --config.train.best_metric"
                f"={name} does not tell their checkpoints apart; the lower loss decides"
            )
        self._warned_of_tie = True


def show_details(writer: MetricsWriter, split: str, step: int, scores: Scores) -> None:
    """Show the table and the pictures of some scores in TensorBoard."""
    if scores.table:
        writer.text(split, step, "details", f"```\n{scores.table}\n```")
    writer.images(split, step, scores.pictures)


def show(sample: Mapping[str, str], indent: int) -> list[str]:
    """Return the lines that show a sample on the console."""
    below = "\n" + " " * (indent + 13)
    return [
        f"{' ' * indent}{label:<12} {text.replace(chr(10), below)}"
        for label, text in sample.items()
    ]


def total_metrics(
    steps: Steps, batches: Iterable, split: SplitInfo, between: Callable[[], Any] | None = None
) -> dict[str, float]:
    """Return the task's metrics over all batches of an evaluation dataset.

    Args:
        steps: of the model.
        batches: a distributed dataset.
        split: of the manifest, the one that the batches hold.
        between: called after every batch; what it raises ends the work.

    Raises:
        UsageError: the split is empty.
    """
    totals: dict[str, float] = {}
    for batch in batches:
        for key, value in steps.evaluate(batch).items():
            totals[key] = totals.get(key, 0.0) + float(value)
        if between:
            between()
    if not totals or not totals[steps.task.DIVISOR]:
        raise UsageError(f"the split holds no {steps.task.UNIT}s; is its text empty?")
    return steps.task.metrics(totals, split)
