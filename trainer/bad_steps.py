"""Steps whose loss or gradient is no good number: what they were, and the batches that made them.

A bad step never changes the weights (`trainer.step`). What happens next is `train.bad_steps`.
"""

import io
import os
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from common.console import error_text, warn
from common.files import write_bytes

MOST_IN_A_ROW = 100  # skipped, before the run ends: then it is not the batch
MOST_ROLLBACKS = 10  # to one checkpoint
_MOST_SAVED = 20  # batches, in one start
_FOLDER = "bad_steps"


@dataclass(frozen=True)
class BadStep:
    """A step that was not applied. Loss per target token; the gradient's norm before clipping."""

    step: int
    loss: float
    gradient_norm: float

    def __str__(self) -> str:
        return f"step {self.step:,} (loss {self.loss:.4g}, gradient norm {self.gradient_norm:.4g})"


class BadStepsError(Exception):
    """There were bad steps, and the run does not simply go on."""

    def __init__(self, steps: list[BadStep]):
        super().__init__(", ".join(map(str, steps)))
        self.steps = steps


def find(numbers: np.ndarray, last_step: int) -> list[BadStep]:
    """The bad ones among the steps of a loop.

    Args:
        numbers: float32 [steps, 3], "bad" of `Steps.train`.
        last_step: the step that the loop ended at.
    """
    first = last_step - len(numbers) + 1
    return [
        BadStep(first + index, float(numbers[index, 0]), float(numbers[index, 1]))
        for index in np.flatnonzero(numbers[:, 2])
    ]


class BatchSaver:
    """Saves the batches of bad steps, for people to look at.

    Args:
        run: `trainer.loop.Run`.
    """

    def __init__(self, run):
        self._run = run
        self._saved = 0

    def save(self, bad: BadStep) -> str:
        """Writes bad_steps/step-S-batch-B.npz, the features, and .tsv, the sentence pairs.

        Batches are counted from 0; B is S - 1, unless rollbacks have left some out.

        Returns:
            the path without ".npz", or a remark why there is none.
        """
        if self._saved == _MOST_SAVED:
            return f"not saved: {_MOST_SAVED} others are"
        self._saved += 1
        run = self._run
        position = bad.step - 1 + run.data_offset
        batch = next(iter(run.data.dataset(position)))
        arrays = {name: value.numpy() for name, value in batch.items()}
        folder = os.path.join(run.model_dir, _FOLDER)
        path = os.path.join(folder, f"step-{bad.step}-batch-{position}")
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)
        text = "".join(f"{source}\t{target}\n" for source, target in self._pairs(arrays))
        try:
            tf.io.gfile.makedirs(folder)
            for end, content in ((".npz", packed.getvalue()), (".tsv", text.encode())):
                write_bytes(path + end, content, alone=True)
        except tf.errors.OpError as error:
            warn(f"the batch of step {bad.step} cannot be saved: {error_text(error)}")
            return "not saved"
        return path

    def _pairs(self, arrays: dict[str, np.ndarray]) -> list[tuple[str, str]]:
        tokenizers = self._run.tokenizers
        ids: tuple[list, list] = ([], [])
        for row in range(len(arrays["source"])):
            for segment in range(1, int(arrays["source_segments"][row].max()) + 1):
                for side, name in enumerate(("source", "target")):
                    mine = arrays[f"{name}_segments"][row] == segment
                    ids[side].append(arrays[name][row][mine][:-1].tolist())  # without its end
        texts = [tokenizers[side].decode(ids[side]) for side in range(2)]
        clean = ([" ".join(text.split()) for text in side] for side in texts)
        return list(zip(*clean, strict=True))
