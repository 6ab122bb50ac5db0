"""Evaluation of the validation split during training: loss, BLEU, samples, the best so far."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from common.errors import UsageError
from data_pipeline.dataset import examples as records
from trainer.decoding import scoring
from trainer.decoding.search import Decoder
from trainer.distributed import cluster
from trainer.input import memory as trainer_input
from trainer.metrics import writer as metrics
from trainer.step import Steps

_SAMPLES = 8  # translations shown in TensorBoard


class Validation:
    """Evaluates a run now and then.

    Args:
        run: `trainer.loop.Run`.
    """

    def __init__(self, run):
        self._run = run
        decode = run.config.decode
        self._decoder = Decoder(run.model, decode, decode.validation_beam_size)
        pairs = records.read_examples(run.manifest, "valid")
        self._batches = trainer_input.evaluation_batches(
            pairs, run.config, run.manifest.eos_id, run.strategy
        )

    def evaluate(self, step: int) -> dict[str, float]:
        """Evaluates, reports, and takes note whether this is the best so far.

        Where a moving average of the weights is kept, it is what is evaluated.

        Returns:
            the metrics, the same on all workers.

        Raises:
            StopAskedError: when any worker was asked to stop meanwhile; nothing is noted then.
        """
        optimizer, variables = self._run.optimizer, self._run.model.trainable_variables
        optimizer.swap_averages(variables)
        try:
            return self._evaluate(step)
        finally:
            optimizer.swap_averages(variables)

    def is_due(self, step: int) -> bool:
        """Whether this step is one to evaluate at, and that is not done."""
        train = self._run.config.train
        at_end = step == train.steps or step % train.evaluate_every == 0
        return at_end and 0 < step != int(self._run.checkpoints.state.evaluated_step.numpy())

    def _evaluate(self, step: int) -> dict[str, float]:
        run, began = self._run, time.monotonic()
        result = total_metrics(run.steps, self._batches, run.poll)
        rows: list[tuple[str, str, str]] = []
        scores = {"bleu": math.nan, "chrf": math.nan}
        if run.worker.is_chief:
            scores, rows = scoring.score_split(
                run.manifest,
                "valid",
                run.tokenizers,
                self._decoder,
                run.config.decode.validation_sentences,
                run.poll,
            )
        run.poll_for_chief()
        # All workers decide alike on the best checkpoint and on early stopping.
        bleu, chrf = cluster.from_chief(run.strategy, [scores["bleu"], scores["chrf"]])
        result |= {"bleu": float(bleu), "chrf": float(chrf)}
        result["evaluate_seconds"] = time.monotonic() - began
        better = self._note(step, result)
        if run.worker.is_chief:
            self._report(step, result | {"signature": scores["signature"]}, rows, better)
        return result

    def _report(self, step: int, result, rows, better: bool) -> None:
        run = self._run
        run.writer.write("valid", step, result)
        # The same sentences each time, spread over the split.
        shown = [
            rows[i] for i in np.linspace(0, len(rows) - 1, min(_SAMPLES, len(rows)), dtype=int)
        ]
        run.writer.text("valid", step, "translations", metrics.translations_table(shown))
        run.writer.translations("valid", step, [translation for _, _, translation in rows])
        run.say(
            f"valid {step:>6,}  loss {result['loss']:.4f}  perplexity {result['perplexity']:.2f}  "
            f"accuracy {result['token_accuracy']:.3f}  BLEU {result['bleu']:.2f}  "
            f"chrF {result['chrf']:.2f}  ({result['evaluate_seconds']:.0f} s)"
            f"{'  best so far' if better else ''}"
        )
        for source, reference, translation in shown[:2]:
            run.say(
                f"    source       {source}\n    reference    {reference}\n"
                f"    translation  {translation}"
            )

    def _note(self, step: int, result: dict[str, float]) -> bool:
        """Keeps the early-stopping state; whether this evaluation is the best so far."""
        state = self._run.checkpoints.state
        state.evaluated_step.assign(step)
        name = self._run.config.train.best_metric
        value, best = result[name], float(state.best.numpy())
        higher = metrics.higher_is_better(name)
        better = math.isnan(best) or (value > best if higher else value < best)
        if better:
            state.best.assign(value)
            state.best_step.assign(step)
            state.evaluations_since_best.assign(0)
        else:
            state.evaluations_since_best.assign_add(1)
        return better


def total_metrics(
    steps: Steps, batches, between: Callable[[], Any] | None = None
) -> dict[str, float]:
    """Metrics per token over all batches of an evaluation dataset.

    `between` is called after every batch; what it raises ends the work.
    """
    totals: dict[str, float] = {}
    for batch in batches:
        for key, value in steps.evaluate(batch).items():
            totals[key] = totals.get(key, 0.0) + float(value)
        if between:
            between()
    if not totals or not totals["tokens"]:
        raise UsageError("the split holds no target tokens; is its text empty?")
    return metrics.averages(totals)
