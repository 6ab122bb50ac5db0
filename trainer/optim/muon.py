"""Muon (Jordan 2024, Muon: An optimizer for hidden layers in neural networks)."""

import keras
import tensorflow as tf

from configs.schema import OptimizerConfig
from trainer.optim.adam import Adam

_MOMENTUM = 0.95
_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic, for fast convergence near 0
_OUTPUT_LAYERS = ("softmax", "classes")


class Muon:
    """Make the momentum of hidden matrices orthogonal before it is applied; the rest is AdamW's.

    The rest are embeddings, the output layer, biases and norms. With G the gradient of a matrix:

        M  = 0.95 M + G
        W -= rate * (0.2 sqrt(max(rows, columns)) orthogonal(G + 0.95 M) + weight_decay W)

    The factor is that of Liu et al. 2025 (Muon is Scalable for LLM Training, section 2.2): it gives
    updates the size of AdamW's, so that one rate and one decay serve all weights. The methods are
    those of `trainer.optim.optimizer.Rule`.
    """

    def __init__(self, config: OptimizerConfig, variables: list[keras.Variable]):
        self.config = config
        self._adamw = Adam(config, variables)
        is_hidden = [_is_hidden_matrix(variable) for variable in variables]
        shapes = [tuple(variable.shape) for variable in variables]

        def chosen(kind: bool):
            return [
                shape if hidden == kind else (1,)
                for shape, hidden in zip(shapes, is_hidden, strict=True)
            ]

        self.slot_shapes = {
            "matrix_momentum": chosen(True),
            "momentum": chosen(False),
            "velocity": chosen(False),
        }

    def numbers(self, rate, number, applied) -> tuple:
        keep = 1.0 - applied * (1.0 - _MOMENTUM)
        decay = rate * self.config.weight_decay
        return rate, decay, keep, self._adamw.numbers(rate, number, applied)

    def update(self, variable, gradient, slots, rate, decay, keep, of_adamw) -> None:
        momentum = slots["matrix_momentum"]
        if len(momentum.shape) != 2:
            self._adamw.update(variable, gradient, slots, *of_adamw)
            return
        momentum.assign(keep * momentum + gradient)
        direction = orthogonal(gradient + _MOMENTUM * momentum)
        scale = 0.2 * max(variable.shape) ** 0.5
        variable.assign_sub(rate * scale * direction + decay * variable)

    def update_norm(self, slots, rate, number) -> tf.Tensor:
        return tf.constant(float("nan"))  # the gradient, which is part of the direction, is gone


def orthogonal(matrix: tf.Tensor) -> tf.Tensor:
    """Return about the orthogonal matrix nearest to `matrix`, by Newton-Schulz iteration.

    The singular vectors stay; each singular value becomes about 1, within 0.7 to 1.2 where it was
    not far below the largest. Each iteration computes X = a X + (b A + c A A) X with A = X X^T.

    Args:
        matrix: float32 [rows, columns].

    Returns:
        float32 [rows, columns]; zeros for zeros.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else tf.transpose(matrix)  # the smaller side first: smaller products
    x /= tf.norm(x) + 1e-7
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = tf.matmul(x, x, transpose_b=True)
        x = a * x + tf.matmul(b * square + c * tf.matmul(square, square), x)
    return x if wide else tf.transpose(x)


def _is_hidden_matrix(variable: keras.Variable) -> bool:
    is_output = any(part in _OUTPUT_LAYERS for part in variable.path.split("/"))
    return variable.name == "kernel" and len(variable.shape) == 2 and not is_output
