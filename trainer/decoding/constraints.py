"""Rules about the next token: what it may not be, or must be.

Each takes and returns log probabilities, float32 [B, K, V]. Axis letters: B batch, K hypotheses,
T longest translation, V vocabulary.
"""

import tensorflow as tf

from trainer.decoding.options import NEVER, SearchOptions, SpecialTokens


def apply_constraints(
    log_p: tf.Tensor,
    written: tf.Tensor,
    position: tf.Tensor,
    prefix: tf.Tensor,
    options: SearchOptions,
    special: SpecialTokens,
) -> tf.Tensor:
    """Apply all the rules of `options`; a forced prefix overrules the others.

    Args:
        log_p: float32 [B, K, V].
        written: int32 [B, K, T], what the hypotheses hold before `position`.
        position: int32 scalar.
        prefix: int32 [B, T], what a translation must begin with, then 0.
        options: which rules there are.
        special: the special token ids.
    """
    vocabulary, free = log_p.shape[-1], log_p
    if options.repetition_penalty != 1.0:
        seen = token_mask(written, written > 0, vocabulary)
        log_p = tf.where(seen, log_p * options.repetition_penalty, log_p)
    if options.no_repeat_ngram:
        log_p = tf.where(
            repeated_ngrams(written, position, options.no_repeat_ngram, vocabulary), NEVER, log_p
        )
    if options.min_length:
        too_early = (tf.range(vocabulary) == special.eos) & (position < options.min_length)
        log_p = tf.where(too_early, NEVER, log_p)
    never = [special.pad, special.unknown, special.bos, *options.suppressed]
    mask = tf.reduce_any(tf.range(vocabulary)[:, tf.newaxis] == never, axis=-1)  # [V]
    log_p = tf.where(mask, NEVER, log_p)
    forced = tf.gather(prefix, position, axis=1)[:, tf.newaxis, tf.newaxis]  # [B, 1, 1]
    follows = tf.where(tf.range(vocabulary) == forced, free, NEVER)
    return tf.where(forced > 0, follows, log_p)


def token_mask(tokens: tf.Tensor, counts: tf.Tensor, vocabulary: int) -> tf.Tensor:
    """Return which tokens of the vocabulary stand in `tokens` where `counts` is true.

    Args:
        tokens: int32 [B, K, T].
        counts: bool [B, K, T].
        vocabulary: V.

    Returns:
        bool [B, K, V]; padding, id 0, is not told from what does not count.
    """
    shape = tf.shape(tokens)
    rows = shape[0] * shape[1]
    row = tf.broadcast_to(tf.range(rows)[:, tf.newaxis], [rows, shape[2]])
    column = tf.reshape(tf.where(counts, tokens, 0), [rows, shape[2]])
    where = tf.reshape(tf.stack([row, column], axis=-1), [-1, 2])
    ones = tf.ones([rows * shape[2]], tf.int32)
    mask = tf.tensor_scatter_nd_max(tf.zeros([rows, vocabulary], tf.int32), where, ones) > 0
    mask &= tf.range(vocabulary) > 0
    return tf.reshape(mask, [shape[0], shape[1], vocabulary])


def repeated_ngrams(
    written: tf.Tensor, position: tf.Tensor, size: int, vocabulary: int
) -> tf.Tensor:
    """Return the tokens that would end an n-gram which the hypothesis holds already.

    Args:
        written: int32 [B, K, T].
        position: int32 scalar, tokens written so far.
        size: n.
        vocabulary: V.

    Returns:
        bool [B, K, V].
    """
    starts = tf.range(tf.shape(written)[2])  # [T], where an n-gram may begin
    matches = tf.broadcast_to(starts + size - 1 < position, tf.shape(written))
    for offset in range(size - 1):
        last = tf.gather(written, tf.maximum(position - size + 1 + offset, 0), axis=2)  # [B, K]
        matches &= tf.roll(written, -offset, axis=2) == last[:, :, tf.newaxis]
    return token_mask(tf.roll(written, 1 - size, axis=2), matches, vocabulary)
