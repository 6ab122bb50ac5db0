"""Attention without the [queries, keys] matrix (Dao et al. 2022, FlashAttention, section 3.1).

The matrix is cut into blocks of C queries by C keys, and a loop visits those in which some query
may see some key. So the blocks above the diagonal of a causal mask cost nothing, and neither do
those between two segments of a packed row, or outside of a window. The backward pass computes each
block again, from the logarithm of the sum of each query's exponentials.

Axis letters: B batch, N heads, Q query length, K key length, C places of a block, H size of a head;
R = Q / C rows and S = K / C columns of blocks.
"""

import math

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
    # Blocks are gathered, not sliced: of slices, XLA would compile a program for each order.
    rows, columns = -(-query.shape[2] // size), -(-key.shape[2] // size)
    missing = [[0, 0], [0, 0], [0, -query.shape[2] % size], [0, -key.shape[2] % size]]
    filled = tf.pad(mask, missing)
    seen = tf.reshape(filled, [-1, 1, rows, size, columns, size])
    seen = tf.transpose(seen, [2, 4, 0, 1, 3, 5])  # [R, S, B, 1, C, C]
    seen = tf.reshape(seen, [rows * columns, -1, 1, size, size])  # [R * S, B, 1, C, C]
    needed = tf.cast(tf.reduce_any(seen, axis=[1, 2, 3, 4]), tf.int32)  # [R * S]
    order = tf.argsort(needed, direction="DESCENDING", stable=True)

    def loop(visit, *arrays: tf.TensorArray) -> list[tf.Tensor]:
        """Call visit(block, *arrays), block < R * S, for each block that is needed."""

        def body(number, *arrays):
            return number + 1, *visit(tf.gather(order, number), *arrays)

        _, *arrays = tf.while_loop(
            lambda number, *_: number < tf.reduce_sum(needed),
            body,
            (tf.constant(0), *arrays),
            maximum_iterations=rows * columns,
            parallel_iterations=1,
        )
        return [array.stack() for array in arrays]

    def logits_of(q, k, block) -> tf.Tensor:
        logits = tf.cast(tf.matmul(q, k, transpose_b=True), tf.float32)  # [B, N, C, C]
        return tf.where(tf.gather(seen, block), logits, _NEVER)

    def dropped(x, block) -> tf.Tensor:
        if dropout is None or rng is None:
            return x
        return dropout(x, tf.random.experimental.stateless_fold_in(rng, block, alg="philox"))

    def forward(query, key, value) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the result, and log(sum(exp(logits))), float32 [R, B, N, C, 1]."""

        def visit(block, sums, totals, peaks):
            row, column = block // columns, block % columns
            logits = logits_of(tf.gather(query, row), tf.gather(key, column), block)
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
        sums, totals, peaks = loop(visit, *(_array(start) for start in starts))
        totals = tf.maximum(totals, 1e-30)
        return tf.cast(sums / totals, value.dtype), peaks + tf.math.log(totals)

    @tf.custom_gradient
    def attend(query, key, value):
        result, log_totals = forward(query, key, value)

        def gradient(of_result):
            # The sum of each query's weights times their gradients, [R, B, N, C, 1].
            products = tf.cast(of_result, tf.float32) * tf.cast(result, tf.float32)
            means = tf.reduce_sum(products, axis=-1, keepdims=True)

            def visit(block, *sums):
                row, column = block // columns, block % columns
                q, of_mixed, log_total, mean = (
                    tf.gather(x, row) for x in (query, of_result, log_totals, means)
                )
                k, v = tf.gather(key, column), tf.gather(value, column)
                logits = logits_of(q, k, block)
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

            arguments = query, key, value
            sums = loop(visit, *(_array(tf.zeros_like(x, tf.float32)) for x in arguments))
            return [tf.cast(one, x.dtype) for one, x in zip(sums, arguments, strict=True)]

        return result, gradient

    result = attend(_split(query, size), _split(key, size), _split(value, size))  # [R, B, N, C, H]
    result = tf.transpose(result, [1, 2, 0, 3, 4])  # [B, N, R, C, H]
    result = tf.reshape(result, [-1, query.shape[1], rows * size, query.shape[3]])
    return result[:, :, : query.shape[2]]


def _split(x: tf.Tensor, size: int) -> tf.Tensor:
    """Return [R, B, N, C, H] of [B, N, Q, H]; zeros fill the last block up."""
    x = tf.pad(x, [[0, 0], [0, 0], [0, -x.shape[2] % size], [0, 0]])
    x = tf.reshape(x, [-1, x.shape[1], x.shape[2] // size, size, x.shape[3]])
    return tf.transpose(x, [2, 0, 1, 3, 4])


def _array(x: tf.Tensor) -> tf.TensorArray:
    array = tf.TensorArray(x.dtype, x.shape[0], element_shape=x.shape[1:], clear_after_read=False)
    return array.unstack(x)
