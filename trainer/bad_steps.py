"""Steps with a bad loss or gradient: finding them, keeping their batches, and the policies.

A bad step never changes the weights (`trainer.step`). `train.bad_steps` decides what happens next.
"""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from common.console import error_text, warn
from common.errors import UsageError
from common.files import write_bytes
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer.input.protocol import TrainingData

MOST_IN_A_ROW = 100  # skipped before the run ends: by then the batches are not the cause
MOST_ROLLBACKS = 10  # to one checkpoint
_MOST_SAVED = 20  # batches, in one start
_FOLDER = "bad_steps"
_REMEDY = (
    "lower --config.optimizer.learning_rate or set --config.optimizer.clip_norm, in a new "
    "--model_dir"
)


@dataclass(frozen=True)
class BadStep:
    """A step that was not applied.

    Attributes:
        step: counted from 1.
        batch: its batch, counted from 0: `step` - 1, plus the batches that rollbacks left out.
        loss: mean loss.
        gradient_norm: before clipping.
    """

    step: int
    batch: int
    loss: float
    gradient_norm: float

    def __str__(self) -> str:
        return f"step {self.step:,} (loss {self.loss:.4g}, gradient norm {self.gradient_norm:.4g})"


class BadStepsError(Exception):
    """There were bad steps, and the run does not simply go on."""

    def __init__(self, steps: list[BadStep]):
        super().__init__(", ".join(map(str, steps)))
        self.steps = steps


def find(numbers: np.ndarray, last_step: int, data_offset: int) -> list[BadStep]:
    """Return the bad steps of a stretch.

    Args:
        numbers: float32 [steps, 3], "bad" of `Steps.train`.
        last_step: the step that the stretch ended at.
        data_offset: batches that rollbacks left out before.
    """
    first = last_step - len(numbers) + 1
    return [
        BadStep(step, step - 1 + data_offset, float(loss), float(norm))
        for step, (loss, norm, is_bad) in enumerate(numbers, start=first)
        if is_bad
    ]


def check_policy(policy: str, error: BadStepsError) -> None:
    """Raise `UsageError` unless the policy `train.bad_steps` is to roll back."""
    if policy == "skip":
        raise UsageError(
            f"{MOST_IN_A_ROW} steps in a row were bad, up to {error.steps[-1]}: the batches are "
            f"not the cause; {_REMEDY}"
        ) from error
    if policy == "abort":
        raise UsageError(
            f"bad numbers in {error}; none of them was saved; start again with "
            f"--config.train.bad_steps=skip or rollback, or {_REMEDY}"
        ) from error


def check_rollbacks(steps: list[int], bad: BadStep) -> None:
    """Raise `UsageError` if the run has gone back to the last of these steps too often."""
    if steps.count(steps[-1]) > MOST_ROLLBACKS:
        raise UsageError(
            f"{MOST_ROLLBACKS} rollbacks to step {steps[-1]:,} did not help, now for {bad}; "
            f"{_REMEDY}"
        )


class BatchSaver:
    """Saves the batches of bad steps, for people to look at.

    Args:
        model_dir: its folder "bad_steps" is used.
        data: the training data.
        tokenizers: sequence -> its tokenizer.
    """

    def __init__(self, model_dir: str, data: TrainingData, tokenizers: Mapping[str, Tokenizer]):
        self._folder = os.path.join(model_dir, _FOLDER)
        self._data, self._tokenizers, self._saved = data, tokenizers, 0

    def save(self, bad: BadStep) -> str:
        """Write bad_steps/step-S-batch-B.npz, the features, and .tsv, the texts of the examples.

        Returns:
            The path without ".npz", or a remark that says why there is none.
        """
        if self._saved == _MOST_SAVED:
            return f"not saved: {_MOST_SAVED} others are"
        self._saved += 1
        batch = next(iter(self._data.dataset(bad.batch)))
        arrays = {name: value.numpy() for name, value in batch.items()}
        path = os.path.join(self._folder, f"step-{bad.step}-batch-{bad.batch}")
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)
        try:
            tf.io.gfile.makedirs(self._folder)
            write_bytes(f"{path}.npz", packed.getvalue(), alone=True)
            write_bytes(f"{path}.tsv", "".join(self._lines(arrays)).encode(), alone=True)
        except tf.errors.OpError as error:
            warn(f"the batch of step {bad.step} cannot be saved: {error_text(error)}")
            return "not saved"
        return path

    def _lines(self, arrays: dict[str, np.ndarray]) -> list[str]:
        """Return one line for each example: the texts of its sequences, separated by tabs."""
        lines = []
        segments = {name: arrays[f"{name}_segments"] for name in self._tokenizers}
        for row, ids in enumerate(next(iter(segments.values()))):
            for segment in range(1, int(ids.max()) + 1):
                texts = [
                    tokenizer.decode([arrays[name][row][segments[name][row] == segment].tolist()])
                    for name, tokenizer in self._tokenizers.items()
                ]
                lines.append("\t".join(" ".join(text.split()) for (text,) in texts) + "\n")
        return lines
