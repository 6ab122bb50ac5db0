"""One layer of a Transformer: attention and feed-forward, each in a residual connection (3.1).

Axis letters: B batch, L length, S length of what the encoder read, T decoded length, K hypotheses,
G heads of keys and values, H size of a head, D width, F inner width.
"""

import keras
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from configs.schema import ModelConfig
from trainer.model.attention import MultiHeadAttention, dense
from trainer.model.dropout import Dropout
from trainer.model.embeddings import is_compiled
from trainer.model.encodings import Sight
from trainer.model.norms import UNSCALED, Scales, normalization


class FeedForward(keras.layers.Layer):
    """activation(x W1 + b1) W2 + b2, at each position by itself (3.3).

    "swiglu" is (swish(x W) * (x V)) W2, without biases (Shazeer 2020, GLU Variants Improve
    Transformer, section 2): three matrices of D x F in place of two. The paper takes two thirds of
    F, so that the sizes stay alike.

    Args:
        config: of the model.
        gain: factor on the initial weights.
    """

    def __init__(self, config: ModelConfig, gain: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        width, inner = config.width, config.feed_forward
        is_gated = config.activation == "swiglu"
        options = {"gain": gain, "use_bias": not is_gated}
        activation = "silu" if is_gated else config.activation
        self.inner = dense(width, inner, activation=activation, name="inner", **options)
        self.gated = dense(width, inner, name="gated", **options) if is_gated else None
        self.outer = dense(inner, width, name="outer", **options)
        rate = config.activation_dropout
        self.dropout = Dropout(rate) if rate else None
        self.on_tpu = False  # set by `optimize_for_tpu`
        self.built = True

    def call(self, x, rng=None):
        """Apply the network at each position.

        Args:
            x: [B, L, D], float32 or a half precision.
            rng: int32 [2], the seed of this step's dropout; None switches dropout off.

        Returns:
            [B, L, D] in the dtype of `x`.
        """
        if self.on_tpu:
            x = _with_separate_gradient(x)
        inner = self.inner(x)  # [B, L, F]
        if self.gated is not None:
            inner *= self.gated(x)
        if self.dropout is not None:
            inner = self.dropout(inner, rng)
        return self.outer(inner)


@tf.custom_gradient
def _with_separate_gradient(x: tf.Tensor):
    """Return `x`, whose gradient XLA does not fuse with what is computed from it.

    A TPU's compiler would append the reductions of the normalisation before this layer to the
    product that gives the gradient. In most layers of the big model, that more than doubles the
    product's time; at the base model's width, that fusion would save 1 % of a step instead.
    """
    return tf.identity(x), lambda of_x: gen_xla_ops.xla_optimization_barrier([of_x])[0]


class Residual(keras.layers.Layer):
    """x + dropout(f(x)), normalised before f ("pre") or after the sum ("post").

    Post-norm is the paper's; pre-norm trains without a long warm-up and wants one more
    normalisation at the end of the stack (Xiong et al. 2020, On Layer Normalization). "deepnorm" is
    post-norm with a larger shortcut (Wang et al. 2022, DeepNet, section 3).

    Args:
        config: of the model.
        shortcut: factor on x.
    """

    def __init__(self, config: ModelConfig, shortcut: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.pre = config.norm == "pre"
        self.shortcut = shortcut
        self.norm = normalization(config.norm_kind, config.width, "norm")
        self.dropout = Dropout(config.dropout)
        self.built = True

    def call(self, x, rng=None, *, function):
        """Add a shortcut to `function`.

        Args:
            x: [B, L, D].
            rng: int32 [2], the seed of this step's dropout; None switches dropout off.
            function: from [B, L, D] to [B, L, D].

        Returns:
            [B, L, D].
        """
        if self.pre:
            return x + self.dropout(function(self.norm(x)), rng)
        shortcut = x if self.shortcut == 1.0 else self.shortcut * x
        return self.norm(shortcut + self.dropout(function(x), rng))


class TransformerLayer(keras.layers.Layer):
    """Self-attention, attention to an encoder's output if asked for, and feed-forward.

    Args:
        config: of the model.
        cross_attention: whether there is an encoder to attend to.
        scales: DeepNorm's.
    """

    def __init__(
        self, config: ModelConfig, *, cross_attention: bool, scales: Scales = UNSCALED, **kwargs
    ):
        super().__init__(**kwargs)

        def attention(name: str) -> MultiHeadAttention:
            return MultiHeadAttention(
                config.width,
                config.heads,
                config.attention_dropout,
                kv_heads=config.kv_heads or config.heads,
                qk_norm=config.norm_kind if config.qk_norm else "",
                gain=scales.gain,
                block=config.attention_block,
                name=name,
            )

        def residual(name: str) -> Residual:
            return Residual(config, scales.shortcut, name=name)

        self.reads_memory = cross_attention
        self.attention = attention("self_attention")
        if cross_attention:
            self.cross_attention = attention("cross_attention")
        self.feed_forward = FeedForward(config, scales.gain, name="feed_forward")
        self.around_attention = residual("self_attention_norm")
        if cross_attention:
            self.around_cross = residual("cross_attention_norm")
        self.around_feed_forward = residual("feed_forward_norm")
        self.built = True

    def call(self, x, memory=None, rng=None, *, sight: Sight, cross_sight=None):
        """Run the layer on whole rows.

        Args:
            x: [B, L, D].
            memory: [B, S, D], the encoder's output, with cross-attention only.
            rng: int32 [2], the seed of this step's dropout; None switches dropout off.
            sight: of self-attention.
            cross_sight: `Sight` of the attention to `memory`.

        Returns:
            [B, L, D].
        """

        def attend(y):
            return self.attention(y, y, sight=sight, rng=rng)

        def attend_to_memory(y):
            return self.cross_attention(y, memory, sight=cross_sight, rng=rng)

        x = self.around_attention(x, rng, function=attend)
        if self.reads_memory:
            x = self.around_cross(x, rng, function=attend_to_memory)
        return self.around_feed_forward(x, rng, function=lambda y: self.feed_forward(y, rng))

    def step(self, x, cache, position, sight: Sight, cross_sight=None):
        """Run the layer on one position of K hypotheses, with what `cache` holds of earlier ones.

        The hypotheses of a sentence are the queries of one attention: they share the encoder's
        keys, and one cache in which position t of hypothesis k stands at t * K + k.

        Args:
            x: [B, K, D].
            cache: "key" and "value" [B, G, T * K, H] of this layer, filled before `position`; with
                cross-attention also "memory_key" and "memory_value" [B, G, S, H].
            position: int32 scalar, the same for all rows.
            sight: of self-attention: its mask says what each hypothesis descends from.
            cross_sight: `Sight` of the attention to the encoder's output.

        Returns:
            [B, K, D], and the cache with this position filled.
        """
        updated = dict(cache)

        def attend(y):
            key, value = self.attention.keys_and_values(y, sight.rotation)  # [B, G, K, H]
            updated["key"] = write_position(cache["key"], key, position)
            updated["value"] = write_position(cache["value"], value, position)
            return self.attention.attend(y, updated["key"], updated["value"], sight)

        def attend_to_memory(y):
            return self.cross_attention.attend(
                y, cache["memory_key"], cache["memory_value"], cross_sight
            )

        x = self.around_attention(x, function=attend)
        if self.reads_memory:
            x = self.around_cross(x, function=attend_to_memory)
        return self.around_feed_forward(x, function=self.feed_forward), updated


def write_position(cache: tf.Tensor, new: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Return `cache` [B, G, T * K, H] with `new` [B, G, K, H] at T's `position`.

    TensorFlow writes in place where nothing else reads the cache, as in a decoding loop.
    """
    shape = tf.shape(cache)
    rows, width = shape[0] * shape[1], tf.shape(new)[2] * shape[3]
    if is_compiled():
        where = tf.stack([tf.range(rows), tf.fill([rows], position)], axis=1)  # [B * G, 2]
        flat = tf.reshape(cache, [rows, -1, width])  # [B * G, T, K * H]
        new = tf.reshape(new, [rows, width])  # [B * G, K * H]
        updated = tf.tensor_scatter_nd_update(flat, where, new)
        return tf.ensure_shape(tf.reshape(updated, shape), cache.shape)  # [B, G, T * K, H]
    # Without XLA a scatter copies the cache. A strided update does not, but takes its time for each
    # number it writes: so write 16 bytes at once, which is what a complex128 holds.
    size = 16 // cache.dtype.size
    is_wide = cache.shape[3] is not None and cache.shape[3] % size == 0

    def flattened(x: tf.Tensor) -> tf.Tensor:
        if not is_wide:
            return tf.reshape(x, [rows, -1])  # [B * G, T * K * H]
        x = tf.reshape(x, [rows, -1, size])  # [B * G, T * K * H / size, size]
        return tf.bitcast(x, tf.complex128)  # [B * G, T * K * H / size]

    value = flattened(new)
    begin = position * tf.shape(value)[1]
    updated = tf.raw_ops.TensorStridedSliceUpdate(
        input=flattened(cache),
        begin=[0, begin],
        end=[0, begin + tf.shape(value)[1]],
        strides=[1, 1],
        value=value,
        begin_mask=1,
        end_mask=1,
    )
    if is_wide:
        updated = tf.bitcast(updated, cache.dtype)
    return tf.ensure_shape(tf.reshape(updated, shape), cache.shape)
