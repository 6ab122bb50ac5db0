"""Scaled dot-product and multi-head attention (Attention Is All You Need, 3.2).

Axis letters: B batch, Q query length, K key length, N heads, G heads of keys and values, H size of
a head, D width.
"""

import contextlib
import math
from collections.abc import Iterator

import keras
import tensorflow as tf

from trainer.model.attention_blocks import attention_in_blocks
from trainer.model.dropout import Dropout
from trainer.model.embeddings import float32_product
from trainer.model.encodings import Sight, rotate
from trainer.model.norms import normalization

_NEVER = -1e30

_recorded: list[tf.Tensor] | None = None


@contextlib.contextmanager
def recorded_weights() -> Iterator[list[tf.Tensor]]:
    """Collect the weights of every attention that runs inside, to draw attention maps.

    In a traced function they are symbolic, and belong to its graph.

    Yields:
        A list that gets one float32 tensor [B, N, Q, K] a call, in the order of the calls.
    """
    global _recorded
    _recorded = []
    try:
        yield _recorded
    finally:
        _recorded = None


def dense(inputs: int, outputs: int, *, gain: float = 1.0, **kwargs) -> keras.layers.Dense:
    """Return a Dense layer, [..., inputs] to [..., outputs], whose weights exist from the start.

    Keras would make them at the first call, by running the model once; on a large model that
    pass costs seconds before the first step.

    `gain` multiplies the initial weights of Glorot and Bengio 2010; `kwargs` are those of Keras.
    """
    if gain != 1.0:
        kwargs["kernel_initializer"] = keras.initializers.VarianceScaling(
            gain**2, mode="fan_avg", distribution="uniform"
        )
    layer = keras.layers.Dense(outputs, **kwargs)
    layer.build([None, inputs])
    return layer


def dot_product_attention(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    mask: tf.Tensor,
    dropout: Dropout | None = None,
    rng: tf.Tensor | None = None,
    bias: tf.Tensor | None = None,
    *,
    on_tpu: bool = False,
) -> tf.Tensor:
    """Return softmax(query key^T / sqrt(H) + bias) value, over the keys that `mask` allows.

    The softmax is float32 in every precision. A query whose keys are all masked gets the mean of
    the values, never NaN.

    Args:
        query: [B, N, Q, H], float32 or a half precision.
        key: [B, G, K, H]; N is a multiple of G, and N / G neighbouring heads of queries share one
            of keys and values.
        value: [B, G, K, H].
        mask: bool, broadcastable to [B, N, Q, K]; True where the query may look.
        dropout: layer applied to the attention weights, or None.
        rng: int32 [2], the seed of this step's dropout; None switches dropout off.
        bias: float32, broadcastable to [B, N, Q, K], or None.
        on_tpu: whether XLA compiles this for a TPU; the result is the same to rounding.

    Returns:
        [B, N, Q, H] in the dtype of `value`.
    """
    shape, groups, keys = tf.shape(query), key.shape[1], tf.shape(key)[2]
    query = query * (1.0 / math.sqrt(query.shape[-1]))
    is_grouped = groups != query.shape[1]
    if is_grouped:  # the queries of all heads of a group stand one after the other
        query = tf.reshape(query, [shape[0], groups, -1, query.shape[3]])  # [B, G, N/G * Q, H]
    logits = tf.cast(tf.matmul(query, key, transpose_b=True), tf.float32)
    if is_grouped:
        logits = tf.reshape(logits, [shape[0], shape[1], shape[2], keys])  # [B, N, Q, K]
    if bias is not None:
        logits += bias
    # A large finite number in float32, put in by selection: adding it, or -inf, can end in NaN.
    logits = tf.where(mask, logits, _NEVER)
    if _recorded is not None:
        _recorded.append(tf.nn.softmax(logits))
    if is_grouped:
        logits = tf.reshape(logits, [shape[0], groups, -1, keys])  # [B, G, N/G * Q, K]
    mixed = _softmax_product(logits, value, dropout, rng, on_tpu)
    return tf.reshape(mixed, shape) if is_grouped else mixed  # [B, N, Q, H]


def _softmax_product(
    logits: tf.Tensor,
    value: tf.Tensor,
    dropout: Dropout | None,
    rng: tf.Tensor | None,
    on_tpu: bool,
) -> tf.Tensor:
    """Return softmax(logits) value, with a gradient that reads [Q, K] matrices as seldom as it can.

    The softmax's gradient subtracts from each weight's gradient the mean of those of its query.
    That is the product of the result and its gradient, both [Q, H] (Dao et al. 2022,
    FlashAttention, appendix B.2).

    Args:
        logits: float32 [B, N, Q, K].
        value: [B, N, K, H].
        dropout: as for `dot_product_attention`.
        rng: likewise.
        on_tpu: likewise.

    Returns:
        [B, N, Q, H] in the dtype of `value`.
    """

    size = value.shape[-1]

    def dropped(x: tf.Tensor) -> tf.Tensor:
        return x if dropout is None else dropout(x, rng)

    @tf.custom_gradient
    def multiply(logits, value):
        if on_tpu:
            peaks = tf.reduce_max(logits, axis=-1, keepdims=True)  # [B, N, Q, 1]
            exponentials = tf.exp(logits - peaks)
            if dropout is None and size % 128:
                # The matrix unit has columns to spare: as one more column of the values, ones give
                # the sum of the exponentials at no cost.
                columns = tf.concat([value, tf.ones_like(value[..., :1])], axis=-1)
                mixed = float32_product(tf.cast(exponentials, value.dtype), columns)
                mixed, totals = mixed[..., :size], mixed[..., size:]
            else:
                totals = tf.reduce_sum(exponentials, axis=-1, keepdims=True)  # [B, N, Q, 1]
                mixed = float32_product(tf.cast(dropped(exponentials), value.dtype), value)
            result = tf.cast(mixed / totals, value.dtype)  # [B, N, Q, H]
        else:
            weights = tf.cast(tf.nn.softmax(logits), value.dtype)  # [B, N, Q, K]
            result = tf.matmul(dropped(weights), value)  # [B, N, Q, H]

        def gradient(of_result):
            of_weighted = of_result
            if not on_tpu:
                again = tf.cast(weights, tf.float32)
            else:
                # A TPU's compiler then keeps the logits alone, in the dtype of the product, and
                # computes the weights twice: a third less time. Written with the expression of the
                # forward pass, this would make it keep the weights.
                again = tf.exp(logits - (peaks + tf.math.log(totals)))
                # For a query whose keys are all masked, `again` is 1, not 1 / totals.
                shares = tf.where(peaks > _NEVER, 1.0, 1.0 / totals)
                of_weighted *= tf.cast(shares, of_result.dtype)
            of_weights = tf.matmul(of_result, value, transpose_b=True)  # [B, N, Q, K]
            of_weights = dropped(tf.cast(of_weights, tf.float32))
            means = tf.cast(of_result, tf.float32) * tf.cast(result, tf.float32)
            means = tf.reduce_sum(means, axis=-1, keepdims=True)  # [B, N, Q, 1]
            weighted = dropped(tf.cast(again, value.dtype))
            return (
                again * (of_weights - means),
                tf.matmul(weighted, of_weighted, transpose_a=True),
            )

        return result, gradient

    return multiply(logits, value)


class MultiHeadAttention(keras.layers.Layer):
    """N attentions side by side, each on its own projection of the input.

    Args:
        width: D, the size of inputs and output; a multiple of `heads`.
        heads: N.
        dropout: rate on the attention weights.
        kv_heads: G, a divisor of `heads`: N for the paper's attention, fewer for grouped-query
            attention (Ainslie et al. 2023, GQA, section 2.2), 1 for multi-query attention (Shazeer
            2019, Fast Transformer Decoding, section 3).
        qk_norm: kind of normalisation of queries and keys, for each head by itself (Henry et al.
            2020, Query-Key Normalization; with weights as in Dehghani et al. 2023, Scaling Vision
            Transformers to 22 Billion Parameters, section 2); "" for none.
        gain: factor on the initial weights of values and outputs.
        block: side of the blocks that `call` works in, on longer rows; 0 for the whole matrix.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        *,
        kv_heads: int | None = None,
        qk_norm: str = "",
        gain: float = 1.0,
        block: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the number of heads {heads}")
        self.heads, self.kv_heads = heads, kv_heads or heads
        if heads % self.kv_heads:
            raise ValueError(f"{heads} heads cannot share {kv_heads} heads of keys and values")
        size = width // heads
        self.query = dense(width, width, name="query")
        self.key = dense(width, self.kv_heads * size, name="key")
        self.value = dense(width, self.kv_heads * size, gain=gain, name="value")
        self.output_projection = dense(width, width, gain=gain, name="output")
        self.query_norm = normalization(qk_norm, size, "query_norm") if qk_norm else None
        self.key_norm = normalization(qk_norm, size, "key_norm") if qk_norm else None
        self.dropout = Dropout(dropout) if dropout else None
        self.block = block
        self.on_tpu = False  # set by `optimize_for_tpu`
        self.built = True  # else Keras traces `call` once more, to find weights it lacks

    def call(self, queries, memory, *, sight: Sight, rng=None):
        """Attend from `queries` to `memory`.

        Args:
            queries: [B, Q, D].
            memory: [B, K, D]; the queries themselves for self-attention.
            sight: what may be seen. A rotation is for self-attention only.
            rng: int32 [2] or None, see `dot_product_attention`.

        Returns:
            [B, Q, D].
        """
        keys, values = self.keys_and_values(memory, sight.rotation)
        return self.attend(queries, keys, values, sight, rng, self.block)

    def keys_and_values(
        self, memory: tf.Tensor, rotation: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the part of the work that depends on `memory` alone: what a decoder caches.

        Args:
            memory: [B, K, D].
            rotation: [2, K, H / 2], see `trainer.model.encodings.Sight`.

        Returns:
            keys and values, each [B, G, K, H].
        """
        keys = self._heads(self.key, memory, self.kv_heads)
        if self.key_norm is not None:
            keys = self.key_norm(keys)
        if rotation is not None:
            keys = rotate(keys, rotation)
        return keys, self._heads(self.value, memory, self.kv_heads)

    def attend(self, queries, keys, values, sight: Sight, rng=None, block: int = 0) -> tf.Tensor:
        """Attend with keys and values of `keys_and_values`: the rest of `call`.

        Args:
            queries: [B, Q, D].
            keys: [B, G, K, H].
            values: [B, G, K, H].
            sight: as for `call`.
            rng: as for `call`.
            block: side of the blocks to work in; 0 for none. Blocks need static lengths and no
                bias, and are not used while weights are recorded.

        Returns:
            [B, Q, D].
        """
        query = self._heads(self.query, queries, self.heads)
        if self.query_norm is not None:
            query = self.query_norm(query)
        if sight.rotation is not None:
            query = rotate(query, sight.rotation)
        arguments = query, keys, values, sight.mask, self.dropout, rng
        lengths = query.shape[2], keys.shape[2]
        if block and None not in lengths and max(lengths) > block and _recorded is None:
            mixed = attention_in_blocks(block, *arguments)
        else:
            mixed = dot_product_attention(*arguments, sight.bias, on_tpu=self.on_tpu)
        return self._output(mixed)

    # A TPU's compiler lays heads out as the products of attention want them if a projection is one
    # product of three axes. Elsewhere one of two axes and a transpose are faster.

    def _heads(self, projection, x: tf.Tensor, heads: int) -> tf.Tensor:
        """Return the projection of x, [B, L, D], as [B, N or G, L, H]."""
        size = projection.units // heads
        if self.on_tpu:
            kernel, bias = (tf.cast(one, x.dtype) for one in (projection.kernel, projection.bias))
            kernel = tf.reshape(kernel, [-1, heads, size])  # [D, N or G, H]
            return tf.einsum("bld,dnh->bnlh", x, kernel) + tf.reshape(bias, [heads, 1, size])
        x = projection(x)
        x = tf.reshape(x, [tf.shape(x)[0], tf.shape(x)[1], heads, size])  # [B, L, N or G, H]
        return tf.transpose(x, [0, 2, 1, 3])

    def _output(self, mixed: tf.Tensor) -> tf.Tensor:
        """Return [B, Q, D] of [B, N, Q, H]."""
        projection, size = self.output_projection, mixed.shape[-1]
        if self.on_tpu:
            kernel, bias = (
                tf.cast(one, mixed.dtype) for one in (projection.kernel, projection.bias)
            )
            kernel = tf.reshape(kernel, [self.heads, size, -1])  # [N, H, D]
            return tf.einsum("bnlh,nhd->bld", mixed, kernel) + bias
        mixed = tf.transpose(mixed, [0, 2, 1, 3])  # [B, Q, N, H]
        shape = [tf.shape(mixed)[0], tf.shape(mixed)[1], self.heads * size]
        return projection(tf.reshape(mixed, shape))  # [B, Q, D]


def optimize_for_tpu(model: keras.Model) -> None:
    """Switch `model` and its layers to the forms that TPUs compute fastest, where they have one."""
    for layer in model._flatten_layers():
        if hasattr(layer, "on_tpu"):
            layer.on_tpu = True
