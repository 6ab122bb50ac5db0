"""Adam (Kingma and Ba 2015) and AdamW (Loshchilov and Hutter 2019)."""

import keras
import tensorflow as tf

from configs.schema import OptimizerConfig


class Adam:
    """Momentum over the root of a moving average of squared gradients; AdamW with a decay.

    The methods are those of `trainer.optim.optimizer.Rule`.
    """

    def __init__(self, config: OptimizerConfig, variables: list[keras.Variable]):
        self.config = config
        shapes = [tuple(variable.shape) for variable in variables]
        self.slot_shapes = {"momentum": shapes, "velocity": shapes}

    def numbers(self, rate, number, applied) -> tuple:
        config = self.config
        betas = [1.0 - applied * (1.0 - beta) for beta in (config.beta_1, config.beta_2)]
        decay = None if config.name == "adam" else rate * config.weight_decay
        return rate * _bias_correction(config, number), *betas, config.epsilon, decay

    def update(self, variable, gradient, slots, rate, beta_1, beta_2, epsilon, decay) -> None:
        if decay is not None and len(variable.shape) > 1:  # not biases and norms
            variable.assign_sub(decay * variable)
        # One pass over memory. The bias correction, which this operation would take from the
        # powers, is in the rate already (end of section 2 of the paper).
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=slots["momentum"].handle,
            v=slots["velocity"].handle,
            beta1_power=tf.zeros([]),
            beta2_power=tf.zeros([]),
            lr=rate,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=epsilon,
            grad=gradient,
        )

    def update_norm(self, slots, rate, number) -> tf.Tensor:
        rate *= _bias_correction(self.config, number)
        squares = [
            tf.nn.l2_loss(momentum / (tf.sqrt(velocity) + self.config.epsilon))
            for momentum, velocity in zip(slots["momentum"], slots["velocity"], strict=True)
        ]
        return rate * tf.sqrt(2.0 * tf.add_n(squares))


def _bias_correction(config: OptimizerConfig, number: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(1.0 - config.beta_2**number) / (1.0 - config.beta_1**number)
