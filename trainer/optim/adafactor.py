"""Adafactor without momentum (Shazeer and Stern 2018, algorithms 4 to 6)."""

import keras
import tensorflow as tf

from configs.schema import OptimizerConfig

# From section 9 of the paper, and T5's smallest size to factor. Nobody tunes them, so they have no
# place in the configuration.
_DECAY_EXPONENT = 0.8
_SQUARE_EPSILON = 1e-30
_SMALLEST_SCALE = 1e-3
_CLIPPING_THRESHOLD = 1.0
_SMALLEST_FACTORED = 128


class Adafactor:
    """Scale by averages of the squared gradient, of large matrices by row and by column only.

    The rate is relative: it is multiplied by the root mean square of the weights. The methods are
    those of `trainer.optim.optimizer.Rule`.
    """

    def __init__(self, config: OptimizerConfig, variables: list[keras.Variable]):
        shapes = [tuple(variable.shape) for variable in variables]
        self.slot_shapes = {
            "row": [shape[:-1] if _factored(shape) else (1,) for shape in shapes],
            "column": [shape[:-2] + shape[-1:] if _factored(shape) else (1,) for shape in shapes],
            "square": [(1,) if _factored(shape) else shape for shape in shapes],
        }

    def numbers(self, rate, number, applied) -> tuple:
        return rate, 1.0 - applied * number**-_DECAY_EXPONENT

    def update(self, variable, gradient, slots, rate, decay) -> None:
        square = tf.square(gradient) + _SQUARE_EPSILON

        def moved(slot, new):
            slot.assign(decay * slot + (1.0 - decay) * new)
            return tf.maximum(slot, _SQUARE_EPSILON)  # 0 before the first update

        if _factored(variable.shape):
            row = moved(slots["row"], tf.reduce_mean(square, -1))  # [..., R]
            column = moved(slots["column"], tf.reduce_mean(square, -2))  # [..., C]
            row /= tf.reduce_mean(row, -1, keepdims=True)
            update = gradient * tf.math.rsqrt(row)[..., tf.newaxis]  # [..., R, C]
            update *= tf.math.rsqrt(column)[..., tf.newaxis, :]
        else:
            update = gradient * tf.math.rsqrt(moved(slots["square"], square))
        update /= tf.maximum(1.0, _root_mean_square(update) / _CLIPPING_THRESHOLD)
        scale = tf.maximum(_root_mean_square(variable), _SMALLEST_SCALE)
        variable.assign_sub(rate * scale * update)

    def update_norm(self, slots, rate, number) -> tf.Tensor:
        return tf.constant(float("nan"))  # the gradient is gone


def _factored(shape) -> bool:
    return len(shape) >= 2 and min(shape[-2:]) >= _SMALLEST_FACTORED


def _root_mean_square(x) -> tf.Tensor:
    return tf.sqrt(tf.reduce_mean(tf.square(x)))
