"""The few likeliest tokens of a large vocabulary, found quickly."""

import tensorflow as tf

_BLOCKS = range(32, 97)  # tokens of a block


def log_normalizer(logits: tf.Tensor) -> tf.Tensor:
    """Return what is to be subtracted from logits to make log probabilities.

    Args:
        logits: float32 [..., V].

    Returns:
        float32 [..., 1].
    """
    largest = tf.reduce_max(logits, axis=-1, keepdims=True)
    return largest + tf.math.log(tf.reduce_sum(tf.exp(logits - largest), axis=-1, keepdims=True))


def top_tokens(values: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the largest values and their places, like `tf.math.top_k`, ties included.

    The largest values lie in those blocks of the vocabulary whose maxima are the largest. Maxima
    cost much less than a search, so only what is in these blocks is searched.

    Args:
        values: float32 [B, M, V].
        count: how many; at most V.

    Returns:
        float32 and int32 [B, M, count], in descending order; of equal values the first comes first.
    """
    vocabulary = values.shape[-1]
    block = next((size for size in _BLOCKS if vocabulary % size == 0), _BLOCKS[0])
    if vocabulary < 2 * count * block:
        return tf.math.top_k(values, count)
    missing = -vocabulary % block
    if missing:
        values = tf.pad(values, [[0, 0], [0, 0], [0, missing]], constant_values=values.dtype.min)
    shape = tf.shape(values)
    blocks = tf.reshape(values, [shape[0], shape[1], -1, block])  # [B, M, blocks, block]
    _, best = tf.math.top_k(tf.reduce_max(blocks, axis=-1), count)  # [B, M, count]
    best = tf.sort(best, axis=-1)  # in the order of the vocabulary, for the sake of ties
    inside = tf.gather(blocks, best, batch_dims=2)  # [B, M, count, block]
    inside = tf.reshape(inside, [shape[0], shape[1], count * block])  # [B, M, count * block]
    found, places = tf.math.top_k(inside, count)
    tokens = tf.gather(best, places // block, batch_dims=2) * block + places % block
    return found, tokens
