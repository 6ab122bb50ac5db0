"""Attention without the [queries, keys] matrix (Dao et al. 2022, FlashAttention, section 3.1).

The matrix is cut into blocks of C queries by C keys, and a loop visits those in which some query
may see some key. So the blocks above the diagonal of a causal mask cost nothing, and neither do
those between two segments of a packed row, or outside of a window. The backward pass computes each
block again, from the logarithm of the sum of each query's exponentials.

Axis letters: B batch, N heads, Q query length, K key length, C places of a block, H size of a head;
R = Q / C rows and S = K / C columns of blocks.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from trainer.model.dropout import Dropout

_NEVER = -1e30


def attention_in_blocks(
    size: int,
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    mask: tf.Tensor,
    dropout: Dropout | None = None,
    rng: tf.Tensor | None = None,
) -> tf.Tensor:
    """Return softmax(query key^T / sqrt(H)) value, over the keys that `mask` allows.

    As `trainer.model.attention.dot_product_attention`, but for a query whose keys are all masked:
    it gets zeros.

    Args:
        size: C.
        query: [B, N, Q, H], float32 or a half precision. Q and K are static.
        key: [B, G, K, H]; N is a multiple of G.
        value: [B, G, K, H].
        mask: bool, [B or 1, 1, Q, K]; True where the query may look.
        dropout: layer applied to the attention weights, or None.
        rng: int32 [2], the seed of this step's dropout; None switches dropout off. Each block draws
            numbers of its own.

    Returns:
        [B, N, Q, H] in the dtype of `value`.
    """
    query = query * (1.0 / math.sqrt(query.shape[-1]))
    if key.shape[1] != query.shape[1]:
        key, value = (tf.repeat(x, query.shape[1] // x.shape[1], axis=1) for x in (key, value))
    queries, keys = query.shape[2], key.shape[2]
    blocks = _blocks_of(mask, queries, keys, size)

    def dropped(x: tf.Tensor, block: tf.Tensor) -> tf.Tensor:
        if dropout is None or rng is None:
            return x
        return dropout(x, tf.random.experimental.stateless_fold_in(rng, block, alg="philox"))

    @tf.custom_gradient
    def attend(query, key, value):
        result, log_totals = _forward(blocks, dropped, query, key, value)

        def gradient(of_result):
            return _backward(blocks, dropped, (query, key, value), result, log_totals, of_result)

        return result, gradient

    result = attend(_split(query, size), _split(key, size), _split(value, size))  # [R, B, N, C, H]
    result = tf.transpose(result, [1, 2, 0, 3, 4])  # [B, N, R, C, H]
    filled = queries + -queries % size  # R * C
    result = tf.reshape(result, [-1, query.shape[1], filled, query.shape[3]])  # [B, N, R * C, H]
    return result[:, :, :queries]


class _Blocks(NamedTuple):
    """The blocks of a mask, numbered row by row.

    Attributes:
        seen: bool [R * S, B or 1, 1, C, C], the mask of each.
        order: int32 [R * S], the numbers of the blocks, those with any True first.
        needed: int32 scalar, how many have any.
        columns: S.
    """

    seen: tf.Tensor
    order: tf.Tensor
    needed: tf.Tensor
    columns: int

    def visit(self, visit: Callable, *arrays: tf.TensorArray) -> list[tf.Tensor]:
        """Call visit(block, *arrays) -> arrays for each block that is needed; stack the arrays."""

        def body(number, *arrays):
            return number + 1, *visit(tf.gather(self.order, number), *arrays)

        _, *arrays = tf.while_loop(
            lambda number, *_: number < self.needed,
            body,
            (tf.constant(0), *arrays),
            maximum_iterations=self.seen.shape[0],
            parallel_iterations=1,
        )
        return [array.stack() for array in arrays]

    def logits(self, q: tf.Tensor, k: tf.Tensor, block: tf.Tensor) -> tf.Tensor:
        """Return the masked logits of a block, float32 [B, N, C, C]."""
        logits = tf.cast(tf.matmul(q, k, transpose_b=True), tf.float32)
        return tf.where(tf.gather(self.seen, block), logits, _NEVER)


def _blocks_of(mask: tf.Tensor, queries: int, keys: int, size: int) -> _Blocks:
    # Blocks are gathered, not sliced: with slices, XLA would compile one program for each order.
    rows, columns = -(-queries // size), -(-keys // size)
    filled = tf.pad(mask, [[0, 0], [0, 0], [0, -queries % size], [0, -keys % size]])
    seen = tf.reshape(filled, [-1, 1, rows, size, columns, size])  # [B or 1, 1, R, C, S, C]
    seen = tf.transpose(seen, [2, 4, 0, 1, 3, 5])  # [R, S, B or 1, 1, C, C]
    seen = tf.reshape(seen, [rows * columns, -1, 1, size, size])  # [R * S, B or 1, 1, C, C]
    needed = tf.cast(tf.reduce_any(seen, axis=[1, 2, 3, 4]), tf.int32)  # [R * S]
    order = tf.argsort(needed, direction="DESCENDING", stable=True)
    return _Blocks(seen, order, tf.reduce_sum(needed), columns)


def _forward(
    blocks: _Blocks, dropped: Callable, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the result, [R, B, N, C, H], and log(sum(exp(logits))), float32 [R, B, N, C, 1].

    Args:
        blocks: of the mask.
        dropped: dropped(x, block) applies dropout to the weights of a block.
        query: [R, B, N, C, H].
        key: [S, B, N, C, H].
        value: [S, B, N, C, H].
    """

    def visit(block, sums, totals, peaks):
        row, column = block // blocks.columns, block % blocks.columns
        logits = blocks.logits(tf.gather(query, row), tf.gather(key, column), block)
        before = peaks.read(row)  # [B, N, C, 1]
        peak = tf.maximum(before, tf.reduce_max(logits, axis=-1, keepdims=True))
        weights = tf.where(logits > _NEVER, tf.exp(logits - peak), 0.0)
        decay = tf.exp(before - peak)
        total = totals.read(row) * decay + tf.reduce_sum(weights, axis=-1, keepdims=True)
        weights = tf.cast(dropped(weights, block), value.dtype)
        mixed = tf.matmul(weights, tf.gather(value, column))  # [B, N, C, H]
        mixed = tf.cast(mixed, tf.float32) + sums.read(row) * decay
        return sums.write(row, mixed), totals.write(row, total), peaks.write(row, peak)

    zeros = tf.zeros_like(query, tf.float32)
    starts = zeros, zeros[..., :1], zeros[..., :1] + _NEVER
    sums, totals, peaks = blocks.visit(visit, *(_array(start) for start in starts))
    totals = tf.maximum(totals, 1e-30)
    return tf.cast(sums / totals, value.dtype), peaks + tf.math.log(totals)


def _backward(
    blocks: _Blocks,
    dropped: Callable,
    arguments: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    result: tf.Tensor,
    log_totals: tf.Tensor,
    of_result: tf.Tensor,
) -> list[tf.Tensor]:
    """Return the gradients of query, key and value, which `arguments` holds.

    Args:
        blocks: as for `_forward`.
        dropped: likewise.
        arguments: query, key and value, as for `_forward`.
        result: of `_forward`.
        log_totals: of `_forward`.
        of_result: the gradient of `result`.
    """
    query, key, value = arguments
    # The sum of each query's weights times their gradients, [R, B, N, C, 1].
    products = tf.cast(of_result, tf.float32) * tf.cast(result, tf.float32)
    means = tf.reduce_sum(products, axis=-1, keepdims=True)

    def visit(block, *sums):
        row, column = block // blocks.columns, block % blocks.columns
        q, of_mixed, log_total, mean = (
            tf.gather(x, row) for x in (query, of_result, log_totals, means)
        )
        k, v = tf.gather(key, column), tf.gather(value, column)
        logits = blocks.logits(q, k, block)
        weights = tf.where(logits > _NEVER, tf.exp(logits - log_total), 0.0)
        of_weights = tf.cast(tf.matmul(of_mixed, v, transpose_b=True), tf.float32)
        of_weights = dropped(of_weights, block)
        of_logits = tf.cast(weights * (of_weights - mean), q.dtype)
        weights = tf.cast(dropped(weights, block), v.dtype)
        new = (
            tf.matmul(of_logits, k),
            tf.matmul(of_logits, q, transpose_a=True),
            tf.matmul(weights, of_mixed, transpose_a=True),
        )
        return [
            array.write(place, array.read(place) + tf.cast(one, tf.float32))
            for array, place, one in zip(sums, (row, column, column), new, strict=True)
        ]

    sums = blocks.visit(visit, *(_array(tf.zeros_like(x, tf.float32)) for x in arguments))
    return [tf.cast(one, x.dtype) for one, x in zip(sums, arguments, strict=True)]


def _split(x: tf.Tensor, size: int) -> tf.Tensor:
    """Return [R, B, N, C, H] of [B, N, Q, H]; zeros fill the last block up."""
    x = tf.pad(x, [[0, 0], [0, 0], [0, -x.shape[2] % size], [0, 0]])
    x = tf.reshape(x, [-1, x.shape[1], x.shape[2] // size, size, x.shape[3]])
    return tf.transpose(x, [2, 0, 1, 3, 4])


def _array(x: tf.Tensor) -> tf.TensorArray:
    array = tf.TensorArray(x.dtype, x.shape[0], element_shape=x.shape[1:], clear_after_read=False)
    return array.unstack(x)
