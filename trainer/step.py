"""The compiled train and evaluation steps.

    for _ in range(steps_per_loop):                 one call of one tf.function
        on every replica:
            sums, gradients = forward and backward  (XLA), of the SUM of the token losses
        sums, gradients = summed over the replicas
        gradients /= tokens of the global batch     the only division
        norm, clip, Adam                            the same on every replica

So one replica and eight give the same update, whatever tokens each of them happened to get.
"""

from typing import Any

import tensorflow as tf

from trainer.model.dropout import step_rng
from trainer.optimizer import clip

Batch = dict[str, tf.Tensor]


class Steps:
    """Train and evaluation steps of one model under one strategy.

    Args:
        strategy: a tf.distribute strategy; `model` and `optimizer` were made in its scope.
        task: see `trainer.task`.
        model: what `task.build_model` gave.
        optimizer: built on the trainable variables of `model`; its `iterations` are the step.
        config: `configs.schema.Config`.
        jit_compile: compile forward and backward with XLA. Reduction and update stay outside:
            on several CPU devices TensorFlow cannot compile them.
    """

    def __init__(self, strategy, task, model, optimizer, config, *, jit_compile: bool):
        self.strategy = strategy
        self.task = task
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self._gradients = tf.function(self._replica_gradients, jit_compile=jit_compile)
        self._forward = tf.function(self._replica_forward, jit_compile=jit_compile)

    @tf.function
    def train(self, iterator, steps: tf.Tensor) -> dict[str, tf.Tensor]:
        """Trains `steps` steps (int32 scalar) on batches from a distributed iterator.

        Returns:
            float32 scalars: the sums of `Translation.sums` over all steps and replicas, and of
            "gradient_norm", before clipping, over the steps.
        """
        sums = {key: tf.zeros([]) for key in (*self.task.SUMS, "gradient_norm")}
        for _ in tf.range(steps):
            new = self._global_step(next(iterator))
            sums = {key: sums[key] + new[key] for key in sums}
        return sums

    def _global_step(self, batch) -> dict[str, tf.Tensor]:
        # Every replica returns the same reduced numbers; one of them will do.
        per_replica = self.strategy.run(self._replica_step, args=(batch,))
        return {
            key: self.strategy.experimental_local_results(value)[0]
            for key, value in per_replica.items()
        }

    def _replica_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group
        rng = step_rng(self.config.train.seed, self.optimizer.iterations.value, replica)
        sums, gradients = self._gradients(batch, rng)
        sums, gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, (sums, gradients))
        gradients = [gradient / sums["tokens"] for gradient in gradients]
        gradients, norm = clip(gradients, self.config.optimizer.clip_norm)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        return {**sums, "gradient_norm": norm}

    def _replica_gradients(self, batch: Batch, rng: tf.Tensor) -> tuple[dict, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            sums = self.task.sums(self.model, batch, rng, smoothed=True)
        variables = [variable.value for variable in self.model.trainable_variables]
        # Dense: an embedding's gradient comes as slices, which replicas can only gather.
        gradients = [
            tf.convert_to_tensor(gradient) for gradient in tape.gradient(sums["loss"], variables)
        ]
        return sums, gradients

    @tf.function
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
        return self.task.sums(self.model, batch, None, smoothed=False)
