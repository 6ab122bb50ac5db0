"""The learning rate over time."""

import math

import tensorflow as tf


class Schedule:
    """Linear warm-up to the peak, then a decay.

    The rate of the n-th step of N, counted from 1, with a warm-up of w:

        n <= w          peak * n / w
        inverse_sqrt    peak * sqrt(w / n)              (Attention Is All You Need, 5.3)
        cosine          peak * (1 + cos(pi * p)) / 2    with p = (n - w) / (N + 1 - w)
        linear          peak * (1 - p)
        constant        peak

    Args:
        config: `configs.schema.OptimizerConfig`.
        steps: N, of the whole run. "cosine" and "linear" reach 0 after the last of them, not on
            it: a step with a rate of 0 would train nothing.
    """

    def __init__(self, config, steps: int):
        self.config = config
        self.steps = steps

    def __call__(self, step) -> tf.Tensor:
        """Return the learning rate, float32, of the step that follows `step` steps."""
        config = self.config
        number = tf.cast(step, tf.float32) + 1.0
        warmup = float(max(1, config.warmup_steps))
        progress = (number - warmup) / max(1.0, self.steps + 1.0 - warmup)
        progress = tf.clip_by_value(progress, 0.0, 1.0)
        decay = {
            "inverse_sqrt": lambda: tf.sqrt(warmup / tf.maximum(number, warmup)),
            "cosine": lambda: 0.5 * (1.0 + tf.cos(math.pi * progress)),
            "linear": lambda: 1.0 - progress,
            "constant": lambda: 1.0,
        }[config.schedule]()
        return config.learning_rate * tf.minimum(number / warmup, 1.0) * decay
