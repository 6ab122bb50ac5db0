"""The learning rate over time, and Adam on gradients that are already reduced over replicas."""

import math

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="trainer")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to the peak, then a decay.

    The rate of the n-th update, n = step + 1, with warm-up w:

        n <= w          peak * n / w
        inverse_sqrt    peak * sqrt(w / n)              (Attention Is All You Need, 5.3)
        cosine          peak * (1 + cos(pi * (n - w) / (steps - w))) / 2

    Args:
        config: `configs.schema.OptimizerConfig`.
        steps: updates in all; "cosine" reaches 0 there.
    """

    def __init__(self, config, steps: int):
        self.config = config
        self.steps = steps

    def __call__(self, step) -> tf.Tensor:
        """The float32 learning rate of the update after `step` updates."""
        config = self.config
        update = tf.cast(step, tf.float32) + 1.0
        warmup = float(max(1, config.warmup_steps))
        if config.schedule == "inverse_sqrt":
            decay = tf.sqrt(warmup / tf.maximum(update, warmup))
        else:
            progress = (update - warmup) / max(1.0, self.steps - warmup)
            decay = 0.5 * (1.0 + tf.cos(math.pi * tf.clip_by_value(progress, 0.0, 1.0)))
        return config.learning_rate * tf.minimum(update / warmup, 1.0) * decay


class ReducedAdam(keras.optimizers.Adam):
    """Adam for gradients that the caller has summed over the replicas.

    Keras sums them inside `apply`, after clipping and after its finite check, which makes both
    wrong on more than one replica. Here the step reduces first, and Keras' own sum is off.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars


def make_optimizer(config, steps: int) -> ReducedAdam:
    """Adam with its schedule, from `configs.schema.OptimizerConfig`."""
    schedule = WarmupSchedule(config, steps)
    optimizer = ReducedAdam(
        learning_rate=schedule,
        beta_1=config.beta_1,
        beta_2=config.beta_2,
        epsilon=config.epsilon,
    )
    optimizer.schedule = schedule
    return optimizer


def clip(gradients: list[tf.Tensor], clip_norm: float) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Scales the gradients down to a global norm of `clip_norm` if theirs is larger.

    Returns:
        the gradients, and the float32 norm they had before. A `clip_norm` of 0 only measures.
    """
    norm = tf.linalg.global_norm(gradients)
    if clip_norm:
        gradients, _ = tf.clip_by_global_norm(gradients, clip_norm, use_norm=norm)
    return gradients, norm
