"""Scaled dot-product and multi-head attention (Attention Is All You Need, 3.2).

Axis letters: B batch, Q query length, K key length, N heads, H size of a head, D width.
"""

import contextlib
import math
from collections.abc import Iterator

import keras
import tensorflow as tf

from trainer.model.dropout import Dropout

_recorded: list[tf.Tensor] | None = None


@contextlib.contextmanager
def recorded_weights() -> Iterator[list[tf.Tensor]]:
    """Collect the weights of every attention that runs inside, for pictures.

    Run the model eagerly: in a traced function the tensors would be symbolic.

    Yields:
        A list that gets one float32 tensor [B, N, Q, K] a call, in the order of the calls.
    """
    global _recorded
    _recorded = []
    try:
        yield _recorded
    finally:
        _recorded = None


def dense(inputs: int, outputs: int, **kwargs) -> keras.layers.Dense:
    """A Dense layer, [..., inputs] to [..., outputs], whose weights exist from the start.

    Keras would make them at the first call, by running the model once; on a large model that
    pass costs seconds before the first step.
    """
    layer = keras.layers.Dense(outputs, **kwargs)
    layer.build([None, inputs])
    return layer


def dot_product_attention(
    query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, mask: tf.Tensor, dropout=None, rng=None
) -> tf.Tensor:
    """softmax(query key^T / sqrt(H)) value, over the keys that `mask` allows.

    The logits and the softmax are float32 in every precision. A query whose keys are all
    masked gets the mean of the values, never NaN.

    Args:
        query: [B, N, Q, H], float32 or a half precision.
        key: [B, N, K, H].
        value: [B, N, K, H].
        mask: bool, broadcastable to [B, N, Q, K]; True where the query may look.
        dropout: layer applied to the attention weights, or None.
        rng: int32 [2], the seed of this step's dropout; None switches dropout off.

    Returns:
        [B, N, Q, H] in the dtype of `value`.
    """
    scale = 1.0 / math.sqrt(query.shape[-1])
    logits = tf.cast(tf.matmul(query * scale, key, transpose_b=True), tf.float32)  # [B, N, Q, K]
    # A large finite number in float32, put in by selection: adding it, or -inf, can end in NaN.
    weights = tf.nn.softmax(tf.where(mask, logits, -1e30))
    if _recorded is not None:
        _recorded.append(weights)
    if dropout is not None:
        weights = dropout(weights, rng)
    return tf.matmul(tf.cast(weights, value.dtype), value)  # [B, N, Q, H]


class MultiHeadAttention(keras.layers.Layer):
    """N attentions side by side, each on its own projection of the input.

    Args:
        width: D, the size of inputs and output; a multiple of `heads`.
        heads: N.
        dropout: rate on the attention weights.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the number of heads {heads}")
        self.heads = heads
        self.query = dense(width, width, name="query")
        self.key = dense(width, width, name="key")
        self.value = dense(width, width, name="value")
        self.output_projection = dense(width, width, name="output")
        self.dropout = Dropout(dropout) if dropout else None
        self.built = True  # else Keras traces `call` once more, to find weights it lacks

    def call(self, queries, memory, mask, rng=None):
        """Attends from `queries` to `memory`.

        Args:
            queries: [B, Q, D].
            memory: [B, K, D]; the queries themselves for self-attention.
            mask: bool, broadcastable to [B, N, Q, K].
            rng: int32 [2] or None, see `dot_product_attention`.

        Returns:
            [B, Q, D].
        """
        return self.attend(queries, *self.keys_and_values(memory), mask, rng)

    def keys_and_values(self, memory: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The part of the work that depends on `memory` alone: what a decoder caches.

        Args:
            memory: [B, K, D].

        Returns:
            keys and values, each [B, N, K, H].
        """
        return self._split(self.key(memory)), self._split(self.value(memory))

    def attend(self, queries, keys, values, mask, rng=None) -> tf.Tensor:
        """Like `call`, with projected keys and values ([B, N, K, H] each)."""
        query = self._split(self.query(queries))
        mixed = dot_product_attention(query, keys, values, mask, self.dropout, rng)
        return self.output_projection(self._merge(mixed))

    def _split(self, x: tf.Tensor) -> tf.Tensor:
        batch, length, width = tf.shape(x)[0], tf.shape(x)[1], x.shape[-1]
        x = tf.reshape(x, [batch, length, self.heads, width // self.heads])  # [B, L, N, H]
        return tf.transpose(x, [0, 2, 1, 3])  # [B, N, L, H]

    def _merge(self, x: tf.Tensor) -> tf.Tensor:
        batch, length, size = tf.shape(x)[0], tf.shape(x)[2], x.shape[-1]
        x = tf.transpose(x, [0, 2, 1, 3])  # [B, Q, N, H]
        return tf.reshape(x, [batch, length, self.heads * size])  # [B, Q, D]
