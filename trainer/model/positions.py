"""Positions, segments and the masks made from them.

A row of a batch may hold several sentences or documents, one after the other ("packed"). The
segment ids say which token belongs to which: 1, 2, 3 ... and 0 for padding.

    tokens    5 6 3 | 7 8 9 3 | 0 0
    segments  1 1 1   2 2 2 2   0 0
    positions 0 1 2   0 1 2 3   0 1

An unpacked row is the special case of one segment. Axis letters: B batch, S source length,
T target length, L either.
"""

import tensorflow as tf


def same_segment_mask(query_segments: tf.Tensor, key_segments: tf.Tensor) -> tf.Tensor:
    """Return True where a query may look at a key because both belong to the same sentence.

    Padding (segment 0) looks at padding only, so no sentence ever sees it.

    Args:
        query_segments: int32 [B, Q].
        key_segments: int32 [B, K].

    Returns:
        bool [B, 1, Q, K]; the axis of length 1 stands for the heads.
    """
    return query_segments[:, tf.newaxis, :, tf.newaxis] == key_segments[:, tf.newaxis, tf.newaxis]


def causal_mask(length: int | tf.Tensor) -> tf.Tensor:
    """Return True on and below the diagonal: a position sees itself and what is before it.

    Returns:
        bool [1, 1, L, L].
    """
    index = tf.range(length)
    return (index[:, tf.newaxis] >= index)[tf.newaxis, tf.newaxis]


def ancestor_mask(
    size: tf.Tensor, position: tf.Tensor, ancestors: tf.Tensor | None = None
) -> tf.Tensor:
    """Return which entries of a decoder's cache each of K hypotheses descends from.

    Args:
        size: T * K, the entries: position t of hypothesis k is at t * K + k.
        position: int32 scalar, the last position that is filled.
        ancestors: int32 [B, K, T], the hypothesis that wrote each position, -1 for none; None
            where K is 1.

    Returns:
        bool [B, 1, K, T * K], or [1, 1, 1, T].
    """
    if ancestors is None:
        return (tf.range(size) <= position)[tf.newaxis, tf.newaxis, tf.newaxis]
    shape = tf.shape(ancestors)
    mask = ancestors[..., tf.newaxis] == tf.range(shape[1])  # [B, K, T, K]
    return tf.reshape(mask, [shape[0], 1, shape[1], size])  # [B, 1, K, T * K]


def positions_in_segments(segments: tf.Tensor) -> tf.Tensor:
    """Return the position of each token in its own sentence, counted from 0.

    Args:
        segments: int32 [B, L].

    Returns:
        int32 [B, L].
    """
    # How many tokens of the same sentence stand at or before this one: the row sums of the
    # decoder's own mask. Cheaper on an accelerator than a scan over the row.
    before = same_segment_mask(segments, segments) & causal_mask(tf.shape(segments)[1])
    return tf.reduce_sum(tf.cast(before, tf.int32), axis=-1)[:, 0] - 1  # [B, 1, L] -> [B, L]


def shift_right(tokens: tf.Tensor, segments: tf.Tensor, bos_id: int) -> tf.Tensor:
    """Return what the decoder reads: each sentence moved right by one token, `bos_id` first.

        tokens    5 6 3 | 7 8 9 3 | 0 0        ->        2 5 6 | 2 7 8 9 | 0 0

    Args:
        tokens: int32 [B, T], each sentence closed by its end-of-sentence token.
        segments: int32 [B, T].
        bos_id: the token that opens a sentence.

    Returns:
        int32 [B, T]; padding stays 0.
    """
    shifted = tf.pad(tokens[:, :-1], [[0, 0], [1, 0]])
    previous = tf.pad(segments[:, :-1], [[0, 0], [1, 0]])
    shifted = tf.where(previous == segments, shifted, bos_id)
    return tf.where(segments > 0, shifted, 0)
