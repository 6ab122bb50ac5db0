"""What the engine needs of training data, wherever the rows come from."""

from typing import Protocol

import tensorflow as tf


class TrainingData(Protocol):
    """The training split in batches of static shapes.

    The global batch of a step follows from the seed and the step alone. So a run that stopped goes
    on with exactly the batches that it would have seen, and a batch does not depend on how many
    replicas or workers share it.
    """

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The shapes of global batches: rows, and tokens of a sequence in each row."""
        ...

    @property
    def batches_per_epoch(self) -> int: ...

    @property
    def origin(self) -> str:
        """Where the rows come from, for people."""
        ...

    def fill_rate(self) -> float:
        """Return the share of positions in the rows that are not padding."""
        ...

    def left_out(self) -> int:
        """Return the number of examples that are longer than the longest row."""
        ...

    def dataset(
        self, first_step: int, replicas: int = 1, first: int = 0, local: int = 1
    ) -> tf.data.Dataset:
        """Return the batches from `first_step`, counted from 0, on, without end.

        Args:
            first_step: the first batch.
            replicas: equal parts that a global batch is divided into.
            first: the first of the parts of this worker.
            local: how many parts this worker has; each step has that many elements.

        Returns:
            A dataset of features, int32 [rows / replicas, length] each.
        """
        ...

    def check(self, step: int, steps: int = 1) -> None:
        """Read again what `steps` batches from `step` on are made of, after a failure.

        Raises:
            UsageError: something there is missing or damaged; the message says what.
        """
        ...
