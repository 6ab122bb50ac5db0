"""Lion (Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, algorithm 2)."""

import keras
import tensorflow as tf

from configs.schema import OptimizerConfig


class Lion:
    """Move every weight by the rate, in the direction of the sign of its momentum.

    With w the weight, g its gradient and m its momentum:

        w -= rate * (sign(beta_1 m + (1 - beta_1) g) + weight_decay w)
        m  = beta_2 m + (1 - beta_2) g

    Only matrices decay, not biases and norms. The methods are those of
    `trainer.optim.optimizer.Rule`.
    """

    def __init__(self, config: OptimizerConfig, variables: list[keras.Variable]):
        self.config = config
        self.slot_shapes = {"momentum": [tuple(variable.shape) for variable in variables]}

    def numbers(self, rate, number, applied) -> tuple:
        return rate, rate * self.config.weight_decay, applied * (1.0 - self.config.beta_2)

    def update(self, variable, gradient, slots, rate, decay, follow) -> None:
        momentum = slots["momentum"]
        step = rate * tf.sign(momentum + (1.0 - self.config.beta_1) * (gradient - momentum))
        if len(variable.shape) > 1:
            step += decay * variable
        variable.assign_sub(step)
        momentum.assign_add(follow * (gradient - momentum))

    def update_norm(self, slots, rate, number) -> tf.Tensor:
        return tf.constant(float("nan"))  # the momentum that gave the signs is gone
