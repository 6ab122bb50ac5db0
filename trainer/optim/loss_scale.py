"""Dynamic loss scaling for float16 (Micikevicius et al. 2018, Mixed Precision Training, 3.2)."""

import tensorflow as tf

from trainer.optim.optimizer import state_variable

INITIAL = 2.0**15
_STEPS_TO_GROW = 2000
SMALLEST, _LARGEST = 2.0**-14, 2.0**30


class LossScale(tf.Module):
    """Keep the factor on the loss that saves small float16 gradients from becoming 0.

    It is halved whenever a gradient overflows, in a step that is then skipped, and doubled after
    2,000 good steps in a row. Make it in the scope of the strategy. Checkpoints hold it.

    Args:
        dynamic: False for a factor of 1 that never changes, for the other precisions.
    """

    def __init__(self, dynamic: bool):
        super().__init__()
        self.dynamic = dynamic
        self.scale = state_variable(tf.constant(INITIAL if dynamic else 1.0))
        self.good_steps = state_variable(tf.constant(0, tf.int64))

    def update(self, finite: tf.Tensor) -> None:
        """Adapt the factor after a step; call it in replica context, the same on every replica.

        Args:
            finite: bool scalar, whether the gradients reduced over all replicas were finite.
        """
        if not self.dynamic:
            return
        good_steps = tf.where(finite, self.good_steps + 1, tf.zeros([], tf.int64))
        grows = good_steps >= _STEPS_TO_GROW
        factor = tf.where(finite, tf.where(grows, 2.0, 1.0), 0.5)
        self.scale.assign(tf.clip_by_value(self.scale * factor, SMALLEST, _LARGEST))
        self.good_steps.assign(tf.where(grows, tf.zeros([], tf.int64), good_steps))
