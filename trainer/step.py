"""The compiled train and evaluation steps.

    for _ in range(steps_per_loop):                 one call of one tf.function
        on every replica:
            for each micro-batch:                   one XLA program, constant memory
                sums, gradients += forward and backward pass of the SUM of the losses
        sums, gradients = summed over replicas and workers
        norm = of gradients / divisor               the divisor is one of the sums: the task's
        factor = clipping / divisor / loss scale    0 if loss or norm are bad: the step is skipped
        update with gradients * factor              the same on every replica

One division, one clipping and one decision, all based on what every replica knows. So one replica
and eight, one micro-batch and four give the same update, however unevenly the tokens are spread.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import keras
import tensorflow as tf

from configs.schema import Config
from trainer.distributed import cluster
from trainer.distributed.strategy import compiles_itself, function_options
from trainer.model.dropout import step_rng
from trainer.optim.loss_scale import LossScale
from trainer.optim.optimizer import Optimizer
from trainer.replay import Replay
from trainer.tasks.base import Task

Batch = dict[str, tf.Tensor]
Sums = dict[str, tf.Tensor]


@dataclass(frozen=True)
class _Parts:
    """What a replica computes in a step: functions of tensors alone.

    Attributes:
        gradients: see `Steps._replica_gradients`.
        decide: see `Steps._decision`.
        pack: sums and gradients -> what is added up over the replicas; None for both as they are,
            where a compiler sees the whole step and combines them as it sees fit.
        unpack: the reverse.
    """

    gradients: Callable
    decide: Callable
    pack: Callable | None = None
    unpack: Callable | None = None


class Steps:
    """The train and evaluation steps of one model under one strategy.

    Args:
        strategy: a tf.distribute strategy; `model`, `optimizer` and `loss_scale` were made in its
            scope.
        task: what is learned.
        model: from `task.build_model`.
        optimizer: of the model's trainable variables; None for evaluation only.
        loss_scale: None for evaluation only.
        config: the configuration.
        jit_compile: compile with XLA: the whole step where there is one replica; else forward and
            backward pass, clipping, and the update, with the reduction outside, which TensorFlow
            cannot compile on several CPU devices. Always False under TPUStrategy, which compiles
            the whole step itself.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        task: Task,
        model: keras.Model,
        optimizer: Optimizer | None,
        loss_scale: LossScale | None,
        config: Config,
        *,
        jit_compile: bool,
    ):
        self.strategy = strategy
        self.task = task
        self.model = model
        # Neither is None where anything but `evaluate` is called.
        self.optimizer = cast(Optimizer, optimizer)
        self.loss_scale = cast(LossScale, loss_scale)
        self.config = config
        self._sum_names = (*task.SUMS, "empty_rows")
        self._inline = compiles_itself(strategy)
        self.replay = self._make_replay() if config.train.replay_every and optimizer else None
        options = function_options(strategy, jit_compile)
        plain = function_options(strategy, False)
        self._gradients = tf.function(self._replica_gradients, **options)
        self._decide = tf.function(self._decision, **options)
        self._pack = tf.function(self._packed, **plain)
        self._unpack = tf.function(self._unpacked, **plain)
        self._step = self._global_step
        if jit_compile and strategy.num_replicas_in_sync == 1 and not self.replay:
            self._step = tf.function(self._global_step, **options)
        self._forward = tf.function(self.replica_forward, **options)

    def _make_replay(self) -> Replay:
        replicas = self.strategy.num_replicas_in_sync
        return Replay(
            self.config.train.replay_every,
            self.model.trainable_variables,
            self.optimizer,
            self.task.FEATURES,
            self._sum_names,
            replicas,
            replicas // cluster.worker_of(self.strategy).count,
        )

    @tf.function
    def train(self, iterator, steps: tf.Tensor) -> dict[str, tf.Tensor]:
        """Train `steps` steps (int32 scalar) on batches from a distributed iterator.

        Returns:
            A dictionary of

            - `Task.SUMS` and "empty_rows", rows of nothing but padding, float32: summed over all
              steps and replicas; a step with a bad loss adds nothing;
            - "gradient_norm" (before clipping) and "skipped", float32: summed over the steps; a
              skipped step adds no norm;
            - "parameter_norm", "update_norm" and "loss_scale", float32: after the last step;
            - "bad", float32 [steps, 3]: the mean loss of each step, the norm of its gradient, and
              1 if it was skipped as bad (and not because a loss scale was too high);
            - with `train.replay_every` "replay", float32 [steps, replicas, 3], of `Replay.verdict`;
            - "input_seconds", float64: the host's time in which the steps waited for their
              batches;
            - with `train.step_times` "step_seconds", float64 [steps]: the time of each step. An
              accelerator then has nothing to do between two steps.
        """
        sums = {key: tf.zeros([]) for key in (*self._sum_names, "gradient_norm", "skipped")}
        timed = self.config.train.step_times
        starts = tf.TensorArray(tf.float64, size=steps)
        bad = tf.TensorArray(tf.float32, size=steps, element_shape=[3])
        replays = tf.TensorArray(tf.float32, size=steps)
        input_seconds = tf.zeros([], tf.float64)
        for number in tf.range(steps):
            # With times, an iteration begins when the one before is done, update included.
            start = self._time_after(sums["loss"] if timed else number)
            if timed:
                starts = starts.write(number, start)
            batch = next(iterator)
            input_seconds += tf.maximum(self._time_after(batch) - start, 0.0)
            new = self._step(batch)
            bad = bad.write(number, new["bad"])
            if self.replay:
                replays = replays.write(number, new["replay"])
            sums = {key: sums[key] + new[key] for key in sums}
        results = {**sums, **self._norms(), "bad": bad.stack(), "input_seconds": input_seconds}
        if self.replay:
            results["replay"] = replays.stack()
        if timed:
            end = self._time_after(sums["loss"])
            times = tf.concat([starts.stack(), [end]], axis=0)  # [steps + 1]
            results["step_seconds"] = times[1:] - times[:-1]
        return results

    @tf.autograph.experimental.do_not_convert
    def _time_after(self, value) -> tf.Tensor:
        """Return the host's time when `value` is there, in seconds, float64."""
        local = self.strategy.experimental_local_results(tf.nest.flatten(value)[0])[0]
        with tf.control_dependencies([local]):
            return tf.timestamp()

    @tf.autograph.experimental.do_not_convert
    def _global_step(self, batch) -> dict[str, tf.Tensor]:
        # Every replica returns the same reduced numbers; one of them will do.
        options = {} if self._inline else {"parts": self._traced_once(batch)}
        return self._first_of(self.strategy.run(self.replica_step, (batch,), options))

    def _traced_once(self, batch) -> _Parts:
        """Trace the parts of `replica_step` once, not once for each replica.

        The traced functions get the weights as arguments, and are bound to no replica's variables.
        """
        rows = {
            name: tf.TensorSpec(value.shape, value.dtype)
            for name, value in self._first_of(batch).items()
        }
        weights = [tf.TensorSpec(v.shape, v.dtype) for v in self.model.trainable_variables]
        rng, scale = tf.TensorSpec([2], tf.int32), tf.TensorSpec([], tf.float32)
        gradients = self._gradients.get_concrete_function(weights, rows, rng, scale)
        found = _specs(gradients.structured_outputs)
        decide = self._decide.get_concrete_function(*found, scale)
        if self.strategy.num_replicas_in_sync == 1:
            return _Parts(gradients, decide)
        pack = self._pack.get_concrete_function(*found)
        unpack = self._unpack.get_concrete_function(*_specs(pack.structured_outputs))
        return _Parts(gradients, decide, pack, unpack)

    @tf.autograph.experimental.do_not_convert
    def _norms(self) -> dict[str, tf.Tensor]:
        if self._inline or self.config.train.shard_optimizer:
            return self._first_of(self.strategy.run(self.replica_norms))
        return self.replica_norms()  # of the first replica: all have the same

    def _first_of(self, per_replica) -> dict[str, tf.Tensor]:
        return {
            key: self.strategy.experimental_local_results(value)[0]
            for key, value in per_replica.items()
        }

    def replica_step(self, batch: Batch, parts: _Parts | None = None) -> dict[str, tf.Tensor]:
        """Train one step on a replica's share of a batch; call it in `strategy.run`.

        Args:
            batch: features, int32 [rows, length] each.
            parts: what it computes, traced; None to trace that here.

        Returns:
            Those of `train`, of one step, the same on every replica.
        """
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group
        rng = step_rng(self.config.train.seed, self.optimizer.iterations, replica)
        scale = self._scale_of_sum()
        values = [variable.value for variable in self.model.trainable_variables]
        parts = parts or _Parts(self._gradients, self._decide)
        compute = functools.partial(parts.gradients, values)
        if self.replay:
            sums, gradients, compared = self._twice(self.replay, compute, batch, rng, scale)
        else:
            sums, gradients = compute(batch, rng, scale)
        sums, gradients = self._reduced(parts, sums, gradients)
        factor, finite, result = parts.decide(sums, gradients, scale)
        if self.replay:
            verdict = self.replay.verdict(*context.all_reduce(tf.distribute.ReduceOp.SUM, compared))
            factor = tf.where(tf.reduce_all(verdict == 0.0), factor, 0.0)
            result["replay"] = verdict
        self.optimizer.apply(self.model.trainable_variables, gradients, factor)
        self.loss_scale.update(finite)
        return result

    def _reduced(
        self, parts: _Parts, sums: Sums, gradients: list[tf.Tensor]
    ) -> tuple[Sums, list[tf.Tensor]]:
        """Return both added up over all replicas; call it in replica context."""
        context, add = tf.distribute.get_replica_context(), tf.distribute.ReduceOp.SUM
        dtype = tf.as_dtype(self.config.train.reduce_dtype)
        together = dtype == tf.float32 or context.num_replicas_in_sync == 1
        if parts.pack and parts.unpack:
            packed = parts.pack(sums, gradients)
            if together:
                return parts.unpack(*context.all_reduce(add, packed))
            return parts.unpack(*(context.all_reduce(add, one) for one in packed))
        if together:
            return context.all_reduce(add, (sums, gradients))
        rounded = context.all_reduce(add, [tf.cast(gradient, dtype) for gradient in gradients])
        return context.all_reduce(add, sums), [tf.cast(one, tf.float32) for one in rounded]

    def _packed(self, sums: Sums, gradients: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the sums as one vector, and the gradients as another, in `reduce_dtype`.

        TensorFlow would do so itself, with some 70 operations for each gradient of 8 replicas.
        """
        flat = tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], axis=0)
        ordered = tf.stack([sums[name] for name in self._sum_names])
        return ordered, tf.cast(flat, self.config.train.reduce_dtype)

    def _unpacked(self, sums: tf.Tensor, flat: tf.Tensor) -> tuple[Sums, list[tf.Tensor]]:
        shapes = [variable.shape for variable in self.model.trainable_variables]
        pieces = tf.split(tf.cast(flat, tf.float32), [shape.num_elements() for shape in shapes])
        named = dict(zip(self._sum_names, tf.unstack(sums), strict=True))
        return named, list(map(tf.reshape, pieces, shapes))

    def _decision(
        self, sums: Sums, gradients: list[tf.Tensor], scale: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        """Return the factor of the gradients, whether they are finite, and what a step returns.

        Args:
            sums: of all replicas together.
            gradients: likewise.
            scale: float32 scalar, the factor of the summed loss.
        """
        # Without an example in it, where damaged data is skipped, a batch divides by 1.
        divisor = tf.maximum(sums[self.task.DIVISOR], 1.0)
        unscale = 1.0 / (scale * divisor)
        norm = tf.linalg.global_norm(gradients) * unscale
        loss = sums["loss"] / divisor
        finite = tf.math.is_finite(norm)  # not so if a single number on a single replica is not
        sane = tf.math.is_finite(loss)
        # Under a loss scale overflows are normal: the scale falls, and the step is skipped.
        bad = tf.constant(False) if self.scaled else ~(finite & sane)
        if self.config.train.loss_limit:
            too_high = loss > self.config.train.loss_limit
            sane, bad = sane & ~too_high, bad | too_high
        factor = unscale
        if self.config.optimizer.clip_norm:
            factor *= tf.minimum(1.0, self.config.optimizer.clip_norm / norm)
        applies = finite & sane
        factor = tf.where(applies, factor, 0.0)
        sums = {key: tf.where(sane, value, 0.0) for key, value in sums.items()}
        result = {
            **sums,
            "gradient_norm": tf.where(applies, norm, 0.0),
            "skipped": 1.0 - tf.cast(applies, tf.float32),
            "bad": tf.stack([loss, norm, tf.cast(bad, tf.float32)]),
        }
        return factor, finite, result

    def _twice(self, replay: Replay, compute: Callable, batch: Batch, rng, scale):
        """Return a replica's sums and gradients, and what `Replay` has compared."""
        due = replay.is_due(self.optimizer.iterations)
        before = replay.before(due, batch)
        with tf.control_dependencies([before]):
            batch = tf.nest.map_structure(tf.identity, batch)
        first = compute(batch, rng, scale)
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        compared = replay.compare(
            due, before, batch, first, lambda again: compute(again, rng, scale), replica
        )
        return *first, compared

    @property
    def scaled(self) -> bool:
        """Whether there is a dynamic loss scale."""
        return self.loss_scale.dynamic

    def _scale_of_sum(self) -> tf.Tensor:
        """Return the factor of the summed loss, a power of two, so that nothing is rounded.

        The loss scale is meant for the mean loss; a sum of thousands would overflow float16.
        """
        if not self.scaled:
            return tf.ones([])
        return self.loss_scale.scale / 2.0 ** round(math.log2(self.config.train.batch_tokens))

    def replica_norms(self) -> dict[str, tf.Tensor]:
        """Return what `train` tells of the state after the last step."""
        variables = self.model.trainable_variables
        return {
            "parameter_norm": tf.linalg.global_norm([variable.value for variable in variables]),
            "update_norm": self.optimizer.update_norm(),
            "loss_scale": tf.identity(self.loss_scale.scale),
        }

    def _replica_gradients(self, values, batch: Batch, rng, scale) -> tuple[Sums, list[tf.Tensor]]:
        """Return sums and gradients of a replica's share of the batch.

        Args:
            values: the weights.
            batch: its rows, see `micro_gradients`.
            rng: int32 [2], the seed of dropout.
            scale: float32 scalar, the factor of the summed loss.
        """
        weights = zip(self.model.trainable_variables, values, strict=True)
        with keras.StatelessScope(list(weights)):
            return self._gradients_in_parts(batch, rng, scale)

    def _gradients_in_parts(self, batch: Batch, rng, scale) -> tuple[Sums, list[tf.Tensor]]:
        parts = self.config.train.micro_batches
        if parts == 1:
            return self.micro_gradients(batch, rng, scale)
        # Part i takes rows i, i + parts, ...: where rows are sorted, neighbours are alike.
        split = {
            name: tf.stack([value[part::parts] for part in range(parts)])  # [parts, rows, L]
            for name, value in batch.items()
        }

        def add_part(part, sums, gradients):
            micro_batch = {name: value[part] for name, value in split.items()}
            micro_rng = tf.random.experimental.stateless_fold_in(rng, part, alg="philox")
            new = self.micro_gradients(micro_batch, micro_rng, scale)
            return part + 1, *tf.nest.map_structure(tf.add, (sums, gradients), new)

        zeros = (
            {key: tf.zeros([]) for key in self._sum_names},
            [tf.zeros(variable.shape) for variable in self.model.trainable_variables],
        )
        _, sums, gradients = tf.while_loop(
            lambda part, *_: part < parts,
            add_part,
            (tf.constant(0), *zeros),
            maximum_iterations=parts,
            parallel_iterations=1,  # more would hold several parts in memory at a time
        )
        return sums, gradients

    def micro_gradients(self, batch: Batch, rng, scale) -> tuple[Sums, list[tf.Tensor]]:
        """Return sums and gradients of a micro-batch.

        Args:
            batch: features, int32 [rows, length] each.
            rng: int32 [2], the seed of dropout.
            scale: float32 scalar, the factor of the summed loss.
        """
        variables = [variable.value for variable in self.model.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(variables)
            sums = self.task.sums(self.model, batch, rng, training=True)
            scaled = sums["loss"] * scale
        sums["empty_rows"] = _empty_rows(batch)
        # Dense: an embedding's gradient is sparse slices, which replicas could only gather.
        gradients = [
            tf.convert_to_tensor(gradient) for gradient in tape.gradient(scaled, variables)
        ]
        return sums, gradients

    @tf.function(autograph=False)
    def evaluate(self, batch) -> dict[str, tf.Tensor]:
        """Return `Task.SUMS` over one global batch, float32 scalars, without dropout."""
        # In a plain function, as in training: several CPU devices cannot run a compiled one.
        per_replica = self.strategy.run(lambda part: self._forward(part), args=(batch,))
        return {
            key: self.strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
            for key, value in per_replica.items()
        }

    def replica_forward(self, batch: Batch) -> Sums:
        """Return `Task.SUMS` over a replica's share of a batch, without dropout."""
        return self.task.sums(self.model, batch, None, training=False)


def _specs(tensors: Any) -> Any:
    return tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), tensors)


def _empty_rows(batch: Batch) -> tf.Tensor:
    """Return the number of rows that hold no example, float32."""
    feature = next(iter(batch.values()))  # any will do: every example has something in each
    padding = tf.reduce_all(feature == 0, axis=list(range(1, len(feature.shape))))  # [rows]
    return tf.reduce_sum(tf.cast(padding, tf.float32))
