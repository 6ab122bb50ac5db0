"""Token embeddings, and the logits, which may share a matrix with them (3.4)."""

from typing import NamedTuple

import keras
import tensorflow as tf
from tensorflow.python.ops import control_flow_util


def token_embedding(vocab_size: int, width: int, name: str) -> keras.layers.Embedding:
    """Return an embedding whose weights exist from the start, with a variance of 1 / width.

    Models multiply what it gives by sqrt(width) (3.4), which makes it as large as the encoding of
    the positions.
    """
    initializer = keras.initializers.RandomNormal(stddev=width**-0.5)
    layer = keras.layers.Embedding(vocab_size, width, embeddings_initializer=initializer, name=name)
    layer.build([None])
    return layer


class Projection(NamedTuple):
    """The output projection, from hidden states to logits.

    Attributes:
        matrix: [D, V], or [V, D] if `transposed`.
        transposed: whether the matrix is an embedding's.
    """

    matrix: tf.Tensor
    transposed: bool

    def logits(self, x: tf.Tensor) -> tf.Tensor:
        """Return float32 [..., V] of [..., D]; see `float32_logits`."""
        return float32_logits(x, tf.cast(self.matrix, x.dtype), transposed=self.transposed)


def float32_logits(x: tf.Tensor, matrix: tf.Tensor, *, transposed: bool) -> tf.Tensor:
    """Return the product of `x` and `matrix` in float32, in every precision.

    A product that is rounded to bfloat16 has 8 significant bits: among thousands of logits, ties
    for the first place are then common.

    Args:
        x: [..., D], float32 or a half precision.
        matrix: [D, V] of the same dtype, or [V, D] if `transposed`.
        transposed: whether the matrix is an embedding's.

    Returns:
        float32 [..., V].
    """
    flat = tf.reshape(x, [-1, x.shape[-1]])  # [tokens, D]
    if x.dtype == tf.float32:
        logits = tf.matmul(flat, matrix, transpose_b=transposed)  # [tokens, V]
    else:
        logits = _product_of_halves(flat, matrix, transposed)  # [tokens, V]
    shape = tf.concat([tf.shape(x)[:-1], [logits.shape[-1]]], axis=0)
    return tf.ensure_shape(tf.reshape(logits, shape), [*x.shape[:-1], logits.shape[-1]])


def _product_of_halves(flat: tf.Tensor, matrix: tf.Tensor, transposed: bool) -> tf.Tensor:
    """Multiply two matrices of half precision, and add up and return the result in float32.

    The factors stay half, so accelerators multiply them at full speed; so do the two products of
    the gradient.
    """

    @tf.custom_gradient
    def multiply(left, right):
        product = float32_product(left, right, transpose_b=transposed)  # [tokens, V]

        def gradient(of_product):
            of_product = tf.cast(of_product, left.dtype)  # [tokens, V]
            of_left = tf.matmul(of_product, right, transpose_b=not transposed)  # [tokens, D]
            if transposed:
                return of_left, tf.matmul(of_product, left, transpose_a=True)  # [V, D]
            return of_left, tf.matmul(left, of_product, transpose_a=True)  # [D, V]

        return product, gradient

    return multiply(flat, matrix)


def is_compiled() -> bool:
    """Return whether XLA is to compile what is being traced."""
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def float32_product(
    left: tf.Tensor, right: tf.Tensor, *, transpose_a: bool = False, transpose_b: bool = False
) -> tf.Tensor:
    """Return the product of two matrices of any precision, added up in float32, as float32."""
    if left.dtype != tf.float32:
        if is_compiled():
            return tf.linalg.matmul(
                left,
                right,
                transpose_a=transpose_a,
                transpose_b=transpose_b,
                output_type=tf.float32,
            )
        # Only XLA has that product. This one gives the same numbers, more slowly.
        left, right = tf.cast(left, tf.float32), tf.cast(right, tf.float32)
    return tf.matmul(left, right, transpose_a=transpose_a, transpose_b=transpose_b)
