"""The compiled train and evaluation steps.

    for _ in range(steps_per_loop):                 one call of one tf.function
        on every replica:
            for each micro-batch:                   one XLA program, constant memory
                sums, gradients += forward and backward of the SUM of the token losses
        sums, gradients = summed over replicas and workers
        norm = of gradients / tokens                tokens of the global batch
        factor = clipping / tokens / loss scale     0 where loss or norm are bad: skip the step
        update with gradients * factor              the same on every replica

One division, one clipping, one decision, all on what every replica knows: so one replica and
eight, one micro-batch and four give the same update, whatever tokens each of them happened to get.
"""

import math
from typing import Any

import tensorflow as tf

from trainer.model.dropout import step_rng

Batch = dict[str, tf.Tensor]


class Steps:
    """Train and evaluation steps of one model under one strategy.

    Args:
        strategy: a tf.distribute strategy; `model`, `optimizer` and `loss_scale` were made in its
            scope.
        task: see `trainer.tasks.translation`.
        model: what `task.build_model` gave.
        optimizer: `trainer.optim.optimizer.Optimizer` of the model's trainable variables; None for
            evaluation only.
        loss_scale: `trainer.optim.loss_scale.LossScale`, None for evaluation only.
        config: `configs.schema.Config`.
        jit_compile: compile forward and backward with XLA. Reduction and update stay outside:
            on several CPU devices TensorFlow cannot compile them. Under TPUStrategy always False:
            it compiles the whole step by itself.
    """

    def __init__(self, strategy, task, model, optimizer, loss_scale, config, *, jit_compile: bool):
        self.strategy = strategy
        self.task = task
        self.model = model
        self.optimizer = optimizer
        self.loss_scale = loss_scale
        self.config = config
        # AutoGraph would rewrite the whole model for nothing, at the price of a second.
        options = {"jit_compile": jit_compile or None, "autograph": False}
        self._gradients = tf.function(self._replica_gradients, **options)
        self._forward = tf.function(self._replica_forward, **options)

    @tf.function
    def train(self, iterator, steps: tf.Tensor) -> dict[str, tf.Tensor]:
        """Trains `steps` steps (int32 scalar) on batches from a distributed iterator.

        Returns:
            float32 scalars: the sums of `Translation.sums` over all steps and replicas, and of
            "gradient_norm" (before clipping) and "skipped" over the steps; a step that was skipped
            has no norm, and no sums where its loss is bad; "parameter_norm", "update_norm" and
            "loss_scale" after the last step. "bad", float32 [steps, 3]: of each step the loss per
            token, the gradient's norm, and 1 where the step was skipped for its bad loss (and not
            because a loss scale was too high). Besides, float64 "step_seconds" [steps] and, in all
            steps together, "input_seconds".
        """
        sums = {key: tf.zeros([]) for key in (*self.task.SUMS, "gradient_norm", "skipped")}
        starts = tf.TensorArray(tf.float64, size=steps)
        bad = tf.TensorArray(tf.float32, size=steps, element_shape=[3])
        input_seconds = tf.zeros([], tf.float64)
        for number in tf.range(steps):
            # An iteration begins when all of the one before is done, its update too.
            start = self._time_after(sums["loss"])
            starts = starts.write(number, start)
            batch = next(iterator)
            input_seconds += tf.maximum(self._time_after(batch) - start, 0.0)
            new = self._global_step(batch)
            bad = bad.write(number, new["bad"])
            sums = {key: sums[key] + new[key] for key in sums}
        times = tf.concat([starts.stack(), [self._time_after(sums["loss"])]], axis=0)  # [steps + 1]
        return {
            **sums,
            **self._norms(),
            "bad": bad.stack(),
            "step_seconds": times[1:] - times[:-1],
            "input_seconds": input_seconds,
        }

    @tf.autograph.experimental.do_not_convert
    def _time_after(self, value) -> tf.Tensor:
        """The time on the host, in seconds, float64, when `value` is there."""
        local = self.strategy.experimental_local_results(tf.nest.flatten(value)[0])[0]
        with tf.control_dependencies([local]):
            return tf.timestamp()

    @tf.autograph.experimental.do_not_convert
    def _global_step(self, batch) -> dict[str, tf.Tensor]:
        # Every replica returns the same reduced numbers; one of them will do.
        return self._first_of(self.strategy.run(self._replica_step, args=(batch,)))

    @tf.autograph.experimental.do_not_convert
    def _norms(self) -> dict[str, tf.Tensor]:
        return self._first_of(self.strategy.run(self._replica_norms))

    def _first_of(self, per_replica) -> dict[str, tf.Tensor]:
        return {
            key: self.strategy.experimental_local_results(value)[0]
            for key, value in per_replica.items()
        }

    def _replica_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group
        rng = step_rng(self.config.train.seed, self.optimizer.iterations, replica)
        scale = self._scale_of_sum()
        sums, gradients = self._gradients(batch, rng, scale)
        sums, gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, (sums, gradients))
        # A batch without a token happens where damaged data is skipped.
        unscale = 1.0 / (scale * tf.maximum(sums["tokens"], 1.0))
        norm = tf.linalg.global_norm(gradients) * unscale
        loss = sums["loss"] / tf.maximum(sums["tokens"], 1.0)
        finite = tf.math.is_finite(norm)  # as soon as one number on one replica is not, it is not
        sane = tf.math.is_finite(loss)
        # With a loss scale overflows are expected: the scale falls, and the step is skipped.
        bad = tf.constant(False) if self.scaled else ~(finite & sane)
        if self.config.train.loss_limit:
            too_high = loss > self.config.train.loss_limit
            sane, bad = sane & ~too_high, bad | too_high
        factor = unscale
        if self.config.optimizer.clip_norm:
            factor *= tf.minimum(1.0, self.config.optimizer.clip_norm / norm)
        applies = finite & sane
        factor = tf.where(applies, factor, 0.0)
        self.optimizer.apply(self.model.trainable_variables, gradients, factor)
        self.loss_scale.update(finite)
        sums = {key: tf.where(sane, value, 0.0) for key, value in sums.items()}
        return {
            **sums,
            "gradient_norm": tf.where(applies, norm, 0.0),
            "skipped": 1.0 - tf.cast(applies, tf.float32),
            "bad": tf.stack([loss, norm, tf.cast(bad, tf.float32)]),
        }

    @property
    def scaled(self) -> bool:
        """Whether there is a dynamic loss scale."""
        return self.loss_scale.dynamic

    def _scale_of_sum(self) -> tf.Tensor:
        """What the sum of the losses is multiplied by; a power of two, so nothing is rounded.

        The loss scale means the mean loss; the sum of thousands of them would overflow float16.
        """
        if not self.scaled:
            return tf.ones([])
        return self.loss_scale.scale / 2.0 ** round(math.log2(self.config.train.batch_tokens))

    def _replica_norms(self) -> dict[str, tf.Tensor]:
        variables = self.model.trainable_variables
        return {
            "parameter_norm": tf.linalg.global_norm([variable.value for variable in variables]),
            "update_norm": self.optimizer.update_norm(),
            "loss_scale": tf.identity(self.loss_scale.scale),
        }

    def _replica_gradients(self, batch: Batch, rng, scale) -> tuple[dict, list[tf.Tensor]]:
        """Sums and gradients of a replica's share of the batch, in `micro_batches` parts."""
        parts = self.config.train.micro_batches
        if parts == 1:
            return self._micro_gradients(batch, rng, scale)
        # Part i takes the rows i, i + parts, ...: neighbours are alike where rows are sorted.
        split = {
            name: tf.stack([value[part::parts] for part in range(parts)])  # [parts, rows, L]
            for name, value in batch.items()
        }

        def add_part(part, sums, gradients):
            micro_batch = {name: value[part] for name, value in split.items()}
            micro_rng = tf.random.experimental.stateless_fold_in(rng, part, alg="philox")
            new = self._micro_gradients(micro_batch, micro_rng, scale)
            return part + 1, *tf.nest.map_structure(tf.add, (sums, gradients), new)

        zeros = (
            {key: tf.zeros([]) for key in self.task.SUMS},
            [tf.zeros(variable.shape) for variable in self.model.trainable_variables],
        )
        _, sums, gradients = tf.while_loop(
            lambda part, *_: part < parts,
            add_part,
            (tf.constant(0), *zeros),
            maximum_iterations=parts,
            parallel_iterations=1,  # more would keep several parts in memory at a time
        )
        return sums, gradients

    def _micro_gradients(self, batch: Batch, rng, scale) -> tuple[dict, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            sums = self.task.sums(self.model, batch, rng, training=True)
            scaled = sums["loss"] * scale
        variables = [variable.value for variable in self.model.trainable_variables]
        # Dense: an embedding's gradient comes as slices, which replicas can only gather.
        gradients = [
            tf.convert_to_tensor(gradient) for gradient in tape.gradient(scaled, variables)
        ]
        return sums, gradients

    @tf.function(autograph=False)
    def evaluate(self, batch) -> dict[str, tf.Tensor]:
        """Sums of `Translation.sums` over one global batch: no dropout, no smoothing."""
        # Wrapped, so that the function given to `run` is a plain one, as in training: several
        # CPU devices cannot run a compiled one.
        per_replica = self.strategy.run(lambda part: self._forward(part), args=(batch,))
        return {
            key: self.strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
            for key, value in per_replica.items()
        }

    def _replica_forward(self, batch: Batch) -> dict[str, Any]:
        return self.task.sums(self.model, batch, None, training=False)
