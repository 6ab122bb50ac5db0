"""Encoder and decoder layers (Attention Is All You Need, 3.1), pre- or post-norm.

Axis letters: B batch, S source length, T target length, N heads, H size of a head, D width.
"""

import keras
import tensorflow as tf

from trainer.model.attention import MultiHeadAttention, dense
from trainer.model.dropout import Dropout


def layer_norm(width: int, name: str) -> keras.layers.LayerNormalization:
    """Normalisation over the last axis, of `width` values (Ba et al. 2016), with its weights."""
    layer = keras.layers.LayerNormalization(epsilon=1e-6, name=name)
    layer.build([None, width])
    return layer


class FeedForward(keras.layers.Layer):
    """relu(x W1 + b1) W2 + b2, at each position by itself (3.3)."""

    def __init__(self, width: int, inner_width: int, dropout: float, **kwargs):
        super().__init__(**kwargs)
        self.inner = dense(width, inner_width, activation="relu", name="inner")
        self.outer = dense(inner_width, width, name="outer")
        self.dropout = Dropout(dropout) if dropout else None
        self.built = True

    def call(self, x, rng=None):
        """[B, L, D] to [B, L, D]."""
        x = self.inner(x)
        if self.dropout is not None:
            x = self.dropout(x, rng)
        return self.outer(x)


class Residual(keras.layers.Layer):
    """x + dropout(f(x)) with the normalisation before f ("pre") or after the sum ("post").

    Post-norm is the paper's; pre-norm trains without a long warm-up and wants one more
    normalisation at the end of the stack (Xiong et al. 2020, On Layer Normalization).
    """

    def __init__(self, width: int, dropout: float, norm: str, **kwargs):
        super().__init__(**kwargs)
        self.pre = norm == "pre"
        self.norm = layer_norm(width, "norm")
        self.dropout = Dropout(dropout)
        self.built = True

    def call(self, x, rng=None, *, function):
        """Applies `function`, [B, L, D] to [B, L, D], around a shortcut."""
        if self.pre:
            return x + self.dropout(function(self.norm(x)), rng)
        return self.norm(x + self.dropout(function(x), rng))


class EncoderLayer(keras.layers.Layer):
    """Self-attention, then feed-forward."""

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)

        def residual(name):
            return Residual(config.width, config.dropout, config.norm, name=name)

        self.attention = MultiHeadAttention(
            config.width, config.heads, config.attention_dropout, name="self_attention"
        )
        self.feed_forward = FeedForward(
            config.width, config.feed_forward, config.activation_dropout, name="feed_forward"
        )
        self.around_attention = residual("self_attention_norm")
        self.around_feed_forward = residual("feed_forward_norm")
        self.built = True

    def call(self, x, mask, rng=None):
        """x [B, S, D], mask bool [B, 1, S, S] -> [B, S, D]."""
        x = self.around_attention(x, rng, function=lambda y: self.attention(y, y, mask, rng))
        return self.around_feed_forward(x, rng, function=lambda y: self.feed_forward(y, rng))


class DecoderLayer(keras.layers.Layer):
    """Masked self-attention, attention to the encoder, then feed-forward."""

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)

        def residual(name):
            return Residual(config.width, config.dropout, config.norm, name=name)

        self.attention = MultiHeadAttention(
            config.width, config.heads, config.attention_dropout, name="self_attention"
        )
        self.cross_attention = MultiHeadAttention(
            config.width, config.heads, config.attention_dropout, name="cross_attention"
        )
        self.feed_forward = FeedForward(
            config.width, config.feed_forward, config.activation_dropout, name="feed_forward"
        )
        self.around_attention = residual("self_attention_norm")
        self.around_cross = residual("cross_attention_norm")
        self.around_feed_forward = residual("feed_forward_norm")
        self.built = True

    def call(self, x, memory, self_mask, cross_mask, rng=None):
        """x [B, T, D], memory [B, S, D], masks bool [B, 1, T, T] and [B, 1, T, S] -> [B, T, D]."""
        x = self.around_attention(x, rng, function=lambda y: self.attention(y, y, self_mask, rng))
        x = self.around_cross(
            x, rng, function=lambda y: self.cross_attention(y, memory, cross_mask, rng)
        )
        return self.around_feed_forward(x, rng, function=lambda y: self.feed_forward(y, rng))

    def step(self, x, cache, position, self_mask, cross_mask):
        """Compute one position of K hypotheses a sentence, from what `cache` holds of earlier ones.

        The hypotheses of a sentence are the queries of one attention: they share the encoder's
        keys, and one cache in which position t of hypothesis k stands at t * K + k.

        Args:
            x: [B, K, D].
            cache: "key" and "value" [B, N, T * K, H] of this layer, filled before `position`;
                "memory_key" and "memory_value" [B, N, S, H].
            position: int32 scalar, the same for all rows.
            self_mask: bool, broadcastable to [B, 1, K, T * K]: what each hypothesis descends from.
            cross_mask: bool [B, 1, 1, S].

        Returns:
            [B, K, D], and the cache with this position filled.
        """
        updated = dict(cache)

        def self_attention(y):
            key, value = self.attention.keys_and_values(y)  # [B, N, K, H]
            updated["key"] = write_position(cache["key"], key, position)
            updated["value"] = write_position(cache["value"], value, position)
            return self.attention.attend(y, updated["key"], updated["value"], self_mask)

        def cross_attention(y):
            return self.cross_attention.attend(
                y, cache["memory_key"], cache["memory_value"], cross_mask
            )

        x = self.around_attention(x, function=self_attention)
        x = self.around_cross(x, function=cross_attention)
        return self.around_feed_forward(x, function=self.feed_forward), updated


def write_position(cache: tf.Tensor, new: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Return `cache` [B, N, T * K, H] with `new` [B, N, K, H] at T's `position`.

    TensorFlow writes in place where nothing else reads the cache, as in a decoding loop.
    """
    shape = tf.shape(cache)
    rows, width = shape[0] * shape[1], tf.shape(new)[2] * shape[3]
    where = tf.stack([tf.range(rows), tf.fill([rows], position)], axis=1)  # [B * N, 2]
    flat = tf.reshape(cache, [rows, -1, width])  # [B * N, T, K * H]
    updated = tf.tensor_scatter_nd_update(flat, where, tf.reshape(new, [rows, width]))
    return tf.ensure_shape(tf.reshape(updated, shape), cache.shape)
