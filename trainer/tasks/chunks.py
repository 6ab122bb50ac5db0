"""Sums over predicted tokens without the [tokens, vocabulary] matrix of their logits.

A loop goes through the tokens in chunks. The gradients of a chunk are computed along with its
logits, in the forward pass. The loss is a sum, so the backward pass has only to multiply them by
one number: no logits are kept, and none are computed twice.

Axis letters: P passes of the model, B batch, T length, N = B T tokens, C tokens of a chunk,
D width, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.model.embeddings import Projection, float32_product, is_compiled

# Factor on the gradients of the logits where they are rounded to float16, so that small ones do
# not become 0. They are below 1, and with R-Drop hardly more.
_FLOAT16_SCALE = 1024.0

Sums = dict[str, tf.Tensor]
SumsOfLogits = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Sums]
"""(logits float32 [P, C, V], targets int32 [P, C], weights float32 [P, C]) -> float32 scalars."""

SumsAndGradients = Callable[
    [tf.Tensor, Projection, tf.Tensor, tf.Tensor], tuple[Sums, tf.Tensor, tf.Tensor]
]
"""As `trainer.tasks.tpu_losses.token_sums_and_gradients`."""


def chunked_sums(
    function: SumsOfLogits,
    names: Sequence[str],
    hidden: tf.Tensor,
    projection: Projection,
    targets: tf.Tensor,
    weights: tf.Tensor,
    *,
    passes: int = 1,
    training: bool,
    chunk_tokens: int = 0,
    at_once: SumsAndGradients | None = None,
) -> Sums:
    """Return the sums of a function of the logits, over all tokens.

    Args:
        function: returns the sums over some tokens. One with a weight of 0 must add nothing.
        names: of these sums, "loss" first.
        hidden: [P B, T, D], the rows of every pass; float32 or a half precision.
        projection: makes logits of them.
        targets: int32 [B, T]; of a static shape where there are chunks or `at_once`.
        weights: float32 [B, T].
        passes: P.
        training: whether "loss" has a gradient. The other sums have none.
        chunk_tokens: most tokens of a chunk; 0 for all logits at once.
        at_once: computes in training what `function` does, and the gradients; for one pass only.

    Returns:
        float32 scalars.
    """
    at_once = at_once if training and passes == 1 else None
    if not chunk_tokens and at_once is None:
        of_passes = (tf.concat([x] * passes, axis=0) for x in (targets, weights))  # [P B, T] each
        return function(projection.logits(hidden), *of_passes)
    tokens, width = math.prod(targets.shape), hidden.shape[-1]
    length = targets.shape[1]
    count = -(-tokens // (chunk_tokens or tokens))
    size = -(-tokens // count)

    def split(x: tf.Tensor, inner: list[int]) -> tf.Tensor:
        """Return [count, P, C, ...] of [P B, T, ...]; zeros fill the last chunk up."""
        flat = tf.reshape(x, [-1, tokens, *inner])  # [P, N, ...]
        filled = tf.pad(flat, [[0, 0], [0, count * size - tokens], *[[0, 0]] * len(inner)])
        chunks = tf.reshape(filled, [flat.shape[0], count, size, *inner])
        return tf.transpose(chunks, [1, 0, *range(2, 3 + len(inner))])

    targets, weights = split(tf.convert_to_tensor(targets), []), split(weights, [])

    def of_one(states, cast, targets, weights):
        """Return the sums of a chunk; in training, also the gradients of states and matrix."""
        if at_once is not None:
            new, of_states, of_logits = at_once(states, cast, targets, weights)
            return new, *_gradients(of_logits, states, cast, of_states)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            logits = cast.logits(states)
            tape.watch(logits)  # [P, C, V]
            new = function(logits, *(tf.repeat(x, passes, axis=0) for x in (targets, weights)))
        if not training:
            return new, None, None
        return new, *_gradients(tape.gradient(new["loss"], logits), states, cast)

    def loop(hidden, matrix) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Return the sums, and in training the float32 gradients of both arguments."""
        chunks, cast_matrix = split(hidden, [width]), tf.cast(matrix, hidden.dtype)

        def add_chunk(number, sums, of_states, of_matrix):
            new, of_chunk, more = of_one(
                chunks[number],  # [P, C, D]
                projection._replace(matrix=cast_matrix),
                targets[number],  # [1, C]
                weights[number],  # [1, C]
            )
            sums = [total + new[name] for total, name in zip(sums, names, strict=True)]
            if training:
                of_states = of_states.write(number, of_chunk)
                of_matrix = [of_matrix[0] + more]
            return number + 1, sums, of_states, of_matrix

        start = (
            tf.constant(0),
            [tf.zeros([])] * len(names),
            tf.TensorArray(tf.float32, count, element_shape=[passes, size, width]),
            [tf.zeros(matrix.shape)] if training else [],
        )
        if count == 1:
            _, sums, of_states, of_matrix = add_chunk(*start)
        else:
            _, sums, of_states, of_matrix = tf.while_loop(
                lambda number, *_: number < count,
                add_chunk,
                start,
                maximum_iterations=count,
                parallel_iterations=1,  # more would hold several chunks in memory at a time
            )
        if not training:
            return sums, []
        of_states = tf.transpose(of_states.stack(), [1, 0, 2, 3])  # [P, count, C, D]
        of_states = tf.reshape(of_states, [passes, count * size, width])[:, :tokens]
        return sums, [tf.reshape(of_states, [-1, length, width]), *of_matrix]

    @tf.custom_gradient
    def with_gradient(hidden, matrix):
        sums, (of_hidden, of_matrix) = loop(tf.stop_gradient(hidden), tf.stop_gradient(matrix))

        def gradient(of_loss, *_):
            return tf.cast(of_loss * of_hidden, hidden.dtype), of_loss * of_matrix

        return tuple(sums), gradient

    if training:
        sums = with_gradient(hidden, projection.matrix)
    else:
        sums, _ = loop(hidden, projection.matrix)
    return dict(zip(names, sums, strict=True))


def _gradients(
    of_logits: tf.Tensor,
    states: tf.Tensor,
    projection: Projection,
    of_states: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the gradients of `states` and the matrix, float32, from those of their logits.

    `of_states` are those of the states, if they are known already.
    """
    matrix, transposed = projection
    scale = _FLOAT16_SCALE if states.dtype == tf.float16 else 1.0
    flat = tf.reshape(states, [-1, states.shape[-1]])  # [P * C, D]
    of_logits = tf.reshape(of_logits, [flat.shape[0], -1])  # [P * C, V]
    of_logits = tf.cast(of_logits * scale if scale != 1.0 else of_logits, states.dtype)
    if of_states is None:
        of_states = _product(of_logits, matrix, transpose_b=not transposed) / scale  # [P * C, D]
    left, right = (of_logits, flat) if transposed else (flat, of_logits)
    of_matrix = _product(left, right, transpose_a=True) / scale  # [V, D] or [D, V]
    return tf.reshape(of_states, states.shape), of_matrix


def _product(left: tf.Tensor, right: tf.Tensor, **transposed: bool) -> tf.Tensor:
    if left.dtype == tf.bfloat16 and not is_compiled():
        # CPUs are faster at it; its range is that of float32.
        return tf.cast(tf.matmul(left, right, **transposed), tf.float32)
    return float32_product(left, right, **transposed)
