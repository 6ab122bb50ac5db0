"""Catch silent corruption: compute a step twice from the same numbers, and compare bit for bit.

A processor that computes wrong numbers, or memory that changes them, raises no error; the run goes
on with damaged weights. Every `train.replay_every`-th step therefore

    takes fingerprints of the batch, the weights and the optimizer's state
    computes sums and gradients
    computes them again, and takes the fingerprints again
    compares all of it, on every replica; and the weights of the replicas with each other

and a difference keeps the step from being applied and ends the run. What computes the gradients
has to give the same bits twice, as XLA and TensorFlow do on CPUs.
"""

import itertools
import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from common.errors import UsageError
from trainer.optim.optimizer import Optimizer
from trainer.optim.sharding import local

Gradients = tuple[dict[str, tf.Tensor], list[tf.Tensor]]


def check_possible(strategy: tf.distribute.Strategy) -> None:
    """Raise `UsageError` where computing twice compares nothing, or always finds a difference."""
    if isinstance(strategy, tf.distribute.TPUStrategy):
        raise UsageError(
            "--config.train.replay_every does not work on TPUs, where XLA merges two equal "
            "computations into one; set it to 0"
        )
    deterministic = os.environ.get("TF_DETERMINISTIC_OPS", "").lower() in ("1", "true")
    if tf.config.list_logical_devices("GPU") and not deterministic:
        raise UsageError(
            "--config.train.replay_every needs TF_DETERMINISTIC_OPS=1 in the environment on GPUs, "
            "which otherwise round differently each time"
        )


class Replay:
    """Replays of one run; call everything in replica context.

    Args:
        every: steps between replays.
        variables: trainable Keras variables.
        optimizer: theirs.
        features: names of the batch's features.
        sums: names of the task's sums.
        replicas: on all workers.
        local_replicas: on each worker.
    """

    def __init__(
        self,
        every: int,
        variables,
        optimizer: Optimizer,
        features: tuple[str, ...],
        sums: tuple[str, ...],
        replicas: int,
        local_replicas: int,
    ):
        self._every, self._features, self._sums = every, features, sums
        self._replicas, self._local = replicas, local_replicas
        self._weights = [variable.value for variable in variables]
        paths = [variable.path for variable in variables]
        slots = {**optimizer.slots, "moving average": optimizer.averages}
        self._state = [*self._weights, *local(itertools.chain(*slots.values()))]
        self.names = [f"{name} of the batch" for name in features]
        self.names += [f"the weight {path}" for path in paths]
        self.names += [f"{name} of {p}" for name, slot in slots.items() for p in paths[: len(slot)]]
        self.names += [f"the sum {name}" for name in sums]
        self.names += [f"the gradient of {path}" for path in paths]

    def is_due(self, iterations: tf.Tensor) -> tf.Tensor:
        """Return whether the step after so many is replayed, bool scalar."""
        return tf.equal((iterations + 1) % self._every, 0)

    def before(self, due: tf.Tensor, batch: dict[str, tf.Tensor]) -> tf.Tensor:
        """Return fingerprints of batch and state, int32 [tensors]; zeros where no replay is due."""
        count = len(self._features) + len(self._state)

        def fingerprints():
            return tf.concat([self._of_batch(batch), self._of_state()], axis=0)

        return tf.cond(due, fingerprints, lambda: tf.zeros([count], tf.int32))

    def compare(
        self,
        due: tf.Tensor,
        before: tf.Tensor,
        batch: dict[str, tf.Tensor],
        first: Gradients,
        compute: Callable[[dict[str, tf.Tensor]], Gradients],
        replica: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Compute a step again and compare.

        Args:
            due: bool scalar, whether this step is replayed.
            before: from `before`.
            batch: the replica's share.
            first: what `compute` returned.
            compute: returns sums and gradients of a batch.
            replica: number of this replica.

        Returns:
            What `verdict` expects the sums of, over all replicas: float32 [replicas, 2], the number
            of the first tensor that differs, counted from 1, and how many do; and float32
            [replicas, weights, 2], fingerprints of the weights. Other replicas' rows are 0.
        """

        def replay():
            with tf.control_dependencies(tf.nest.flatten(first)):
                again = self._copy(batch)
            read = self._of_batch(again)
            # A corrupted token id may lie outside the vocabulary, on which TensorFlow would stop
            # without naming the tensor.
            good = tf.reduce_all(read == before[: len(self._features)])
            second = compute({name: tf.where(good, again[name], batch[name]) for name in batch})
            with tf.control_dependencies(tf.nest.flatten(second)):
                after = tf.concat([read, self._of_state()], axis=0)
            pairs = [(first[0][name], second[0][name]) for name in self._sums]
            pairs += list(zip(first[1], second[1], strict=True))
            differs = tf.concat(
                [before != after, tf.stack([_differ(*pair) for pair in pairs])], axis=0
            )
            found = tf.where(tf.reduce_any(differs), tf.argmax(tf.cast(differs, tf.int32)) + 1, 0)
            count = tf.math.count_nonzero(differs)
            start = len(self._features)
            weights = after[start : start + len(self._weights)]
            halves = tf.bitcast(weights, tf.uint16)  # [weights, 2], exact as float32
            return tf.cast([found, count], tf.float32), tf.cast(halves, tf.float32)

        def nothing():
            return tf.zeros([2]), tf.zeros([len(self._weights), 2])

        mine = tf.one_hot(replica, self._replicas)  # [replicas]
        found, weights = tf.cond(due, replay, nothing)
        return mine[:, None] * found, mine[:, None, None] * weights

    def verdict(self, found: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Return float32 [replicas, 3]; all of it is 0 if nothing differs.

        The third number is that of the first weight that differs from most other replicas',
        counted from 1; where there are two replicas, neither is known to be right.

        Args:
            found: from `compare`, summed over the replicas.
            weights: from `compare`, summed over the replicas.
        """
        same = tf.reduce_all(weights[:, None] == weights[None], axis=-1)  # [replicas, replicas, W]
        agreeing = tf.reduce_sum(tf.cast(same, tf.int32), axis=1)  # [replicas, weights]
        most = tf.reduce_max(agreeing, axis=0)
        odd = (agreeing < most) | (2 * agreeing <= self._replicas)
        number = tf.argmax(tf.cast(odd, tf.int32), axis=1) + 1
        first = tf.where(tf.reduce_any(odd, axis=1), number, 0)
        return tf.concat([found, tf.cast(first, tf.float32)[:, None]], axis=1)

    def describe(self, verdicts: np.ndarray, last_step: int) -> list[str]:
        """Return a text for each difference: worker, step and tensor.

        Args:
            verdicts: float32 [steps, replicas, 3], from `verdict`.
            last_step: the step of the last of them.
        """
        texts = []
        first_step = last_step - len(verdicts) + 1
        for step, replica in np.argwhere(verdicts.any(axis=-1)):
            found, count, odd = verdicts[step, replica].astype(int)
            where = f"step {first_step + step:,}, worker {replica // self._local}"
            if self._local > 1:
                where += f", replica {replica % self._local}"
            if found:
                others = f" and {count - 1} other tensors differ" if count > 1 else " differs"
                texts.append(f"{where}: {self.names[found - 1]}{others} when computed again")
            else:
                name = self.names[len(self._features) + odd - 1]
                texts.append(f"{where}: {name} differs from other replicas'")
        return texts

    def _copy(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {name: tf.identity(feature) for name, feature in batch.items()}

    def _of_batch(self, batch: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.stack([_fingerprint(batch[name]) for name in self._features])

    def _of_state(self) -> tf.Tensor:
        return tf.stack([_fingerprint(tf.convert_to_tensor(one)) for one in self._state])


def _fingerprint(tensor: tf.Tensor) -> tf.Tensor:
    """Return the sum of all 32-bit words modulo 2**32: no change of a single word goes unseen."""
    return tf.reduce_sum(_bits(tensor))


def _differ(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    return tf.reduce_any(_bits(first) != _bits(second))


def _bits(tensor: tf.Tensor) -> tf.Tensor:
    return tensor if tensor.dtype == tf.int32 else tf.bitcast(tensor, tf.int32)
