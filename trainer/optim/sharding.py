"""Optimizer state of which every replica keeps a slice: stage 1 of ZeRO (Rajbhandari et al. 2020).

Each replica updates its slice of every weight, with its slice of the slots, and all gather the new
weights. What is kept about a weight of n numbers takes ceil(n / replicas) of them on each replica.
Checkpoints hold it whole, under the same names as without, so a run may go on with any number of
replicas, sharded or not.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf
from tensorflow.python.trackable.base import Trackable

from common.errors import UsageError
from trainer.distributed import cluster

# Numbers that workers exchange at a time outside of steps. Each size takes a trace of its own.
_CHUNK = 2**20


def check_possible(*, tpu: bool) -> None:
    """Raise `UsageError` if the devices are TPUs."""
    if tpu:
        raise UsageError(
            "--config.train.shard_optimizer is for --strategy=mirrored and multi_worker, not for "
            "TPUs; leave it out"
        )


class Sharded(Trackable):
    """A float32 tensor of which every replica keeps a slice; make it in the strategy's scope.

    Where there are several workers, each has to call `numpy` at the same point, except within
    `held`.

    Args:
        shape: of the whole tensor.

    Attributes:
        shape: of the whole tensor.
        dtype: float32.
        strategy: the strategy.
        local: the variable with the slice: [part], or [part, 1] of a matrix, which a rule tells
            from a bias by its axes. Padded with zeros at the end.
        part: how many numbers each replica keeps.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.dtype = tf.TensorShape(shape), tf.float32
        self.strategy = tf.distribute.get_strategy()
        self._replicas = self.strategy.num_replicas_in_sync
        self._count = math.prod(shape)
        self.part = -(-self._count // self._replicas)
        self._held: np.ndarray | None = None
        self.local = tf.Variable(
            tf.zeros([self.part, 1] if len(shape) > 1 else [self.part]),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def slice_of(self, whole: tf.Tensor, replica: tf.Tensor) -> tf.Tensor:
        """Return a replica's slice of a tensor of the whole shape, in the shape of `local`."""
        padding = self._replicas * self.part - self._count
        flat = tf.reshape(tf.convert_to_tensor(whole), [-1])  # [numbers]
        flat = tf.pad(flat, [[0, padding]])  # [replicas * part]
        mine = tf.reshape(flat, [self._replicas, self.part])[replica]  # [part]
        return tf.reshape(mine, self.local.shape)

    def join(self, slices: tf.Tensor) -> tf.Tensor:
        """Return the whole tensor of slices, float32 [replicas, part]."""
        return tf.reshape(tf.reshape(slices, [-1])[: self._count], self.shape)

    def numpy(self) -> np.ndarray:
        """Return the whole tensor."""
        if self._held is None:
            with held([self]):
                return self.numpy()
        return self._held

    def slices_here(self) -> np.ndarray:
        """Return [replicas * part] numbers: the slices on this worker in their places, else 0."""
        slices = np.zeros([self._replicas, self.part], np.float32)
        for replica, local in self._on_this_worker():
            slices[replica] = local.numpy().reshape(-1)
        return slices.reshape(-1)

    def hold(self, slices: np.ndarray | None) -> None:
        """Let `numpy` return what these are the slices of, [replicas * part]; None ends that."""
        self._held = None if slices is None else slices[: self._count].reshape(self.shape)

    def assign(self, whole) -> None:
        """Take the slices of a whole tensor; not to be called inside a step."""
        slices = np.zeros([self._replicas, self.part], np.float32)
        slices.reshape(-1)[: self._count] = np.asarray(whole, np.float32).reshape(-1)
        for replica, local in self._on_this_worker():
            local.assign(slices[replica].reshape(local.shape))

    def _on_this_worker(self) -> Iterator[tuple[int, tf.Variable]]:
        """Yield each replica's number, counted over all workers, and its variable."""
        variables = self.strategy.experimental_local_results(self.local)
        first = cluster.worker_of(self.strategy).index * len(variables)
        return enumerate(variables, first)

    # How TensorFlow's checkpoints write and read what is no variable; the name is a variable's.

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return {"VARIABLE_VALUE": tf.constant(self.numpy())}

    def _restore_from_tensors(self, restored_tensors) -> None:
        self.assign(restored_tensors["VARIABLE_VALUE"].numpy())


@contextlib.contextmanager
def held(kept: Iterable) -> Iterator[None]:
    """Let a single worker read these tensors inside; all workers must enter it together."""
    sharded = [one for one in kept if isinstance(one, Sharded)]
    if not sharded:
        yield
        return
    here = [one.slices_here() for one in sharded]
    whole = _sum(sharded[0].strategy, np.concatenate(here))
    ends = np.cumsum([len(one) for one in here])
    try:
        for one, slices in zip(sharded, np.split(whole, ends[:-1]), strict=True):
            one.hold(slices)
        yield
    finally:
        for one in sharded:
            one.hold(None)


def _sum(strategy: tf.distribute.Strategy, numbers: np.ndarray) -> np.ndarray:
    """Return the sum over all workers of float32 numbers that one of them has, the others 0."""
    chunks = np.zeros([-(-len(numbers) // _CHUNK), _CHUNK], np.float32)
    chunks.reshape(-1)[: len(numbers)] = numbers
    for chunk in chunks:
        chunk[:] = cluster.sum_over_workers(strategy, chunk)
    return chunks.reshape(-1)[: len(numbers)]


def local(kept: Iterable) -> list[tf.Variable]:
    """Return the variables that a replica has of tensors that are sharded or not."""
    return [one.local if isinstance(one, Sharded) else one for one in kept]


class Slices:
    """A replica's slices of the weights, for the time of an update; make it in the scope.

    Args:
        variables: the trainable Keras variables.
    """

    def __init__(self, variables):
        self._weights = [Sharded(tuple(variable.shape)) for variable in variables]

    @property
    def variables(self) -> list[tf.Variable]:
        """One a weight."""
        return [weight.local for weight in self._weights]

    def take(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Return the replica's slices of the weights or their gradients; in replica context."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        pairs = zip(self._weights, tensors, strict=True)
        return [weight.slice_of(tensor, replica) for weight, tensor in pairs]

    def gather(self) -> list[tf.Tensor]:
        """Return the whole weights, of all replicas' slices; in replica context."""
        context = tf.distribute.get_replica_context()
        mine = tf.concat(
            [tf.reshape(one.local.read_value(), [-1]) for one in self._weights], axis=0
        )
        rows = context.all_gather(mine[None], axis=0)  # [replicas, all parts]
        parts = tf.split(rows, [weight.part for weight in self._weights], axis=1)
        return [weight.join(part) for weight, part in zip(self._weights, parts, strict=True)]


def norm_of_all(norm: tf.Tensor) -> tf.Tensor:
    """Return the Euclidean norm of what the replicas have slices of; in replica context.

    Args:
        norm: float32 scalar, of the replica's slices.
    """
    context = tf.distribute.get_replica_context()
    return tf.sqrt(context.all_reduce(tf.distribute.ReduceOp.SUM, norm**2))
