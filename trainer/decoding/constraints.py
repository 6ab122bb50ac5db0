"""Rules about the next token: what it may not be, or must be.

Axis letters: B batch, K hypotheses, M some of them, W candidates for the next token of each, T
longest translation, V vocabulary.
"""

import tensorflow as tf

from data_pipeline.dataset.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from trainer.decoding.options import NEVER, SearchOptions

MOST_FORBIDDEN = 4
"""The most tokens that `allow` can rule out at one position: the special ones."""


def apply_constraints(
    log_p: tf.Tensor,
    written: tf.Tensor,
    position: tf.Tensor,
    prefix: tf.Tensor,
    options: SearchOptions,
) -> tf.Tensor:
    """Apply all the rules of `options` to the whole vocabulary, as sampling needs it.

    A forced prefix overrules the others.

    Args:
        log_p: float32 [B, K, V].
        written: int32 [B, K, T], what the hypotheses hold before `position`.
        position: int32 scalar.
        prefix: int32 [B, T], what a translation must begin with, then 0.
        options: which rules there are.

    Returns:
        float32 [B, K, V].
    """
    vocabulary = log_p.shape[-1]
    changed, _ = changed_scores(log_p, tf.zeros([]), written, position, options)
    is_never = _is_never(tf.range(vocabulary), position, options)
    forced = tf.gather(prefix, position, axis=1)[:, tf.newaxis, tf.newaxis]  # [B, 1, 1]
    follows = tf.where(tf.range(vocabulary) == forced, log_p, NEVER)
    return tf.where(forced > 0, follows, tf.where(is_never, NEVER, changed))


def changed_scores(
    logits: tf.Tensor,
    normalizer: tf.Tensor,
    written: tf.Tensor,
    position: tf.Tensor,
    options: SearchOptions,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Apply the rules that may concern any token of the vocabulary.

    Args:
        logits: float32 [B, K, V]; less `normalizer` they are log probabilities.
        normalizer: float32 [B, K, 1], or 0.
        written: int32 [B, K, T], what the hypotheses hold before `position`.
        position: int32 scalar.
        options: which rules there are.

    Returns:
        the same two, changed where there is such a rule.
    """
    vocabulary = logits.shape[-1]
    if options.repetition_penalty != 1.0:
        logits, normalizer = logits - normalizer, tf.zeros_like(normalizer)
        seen = token_mask(written, written > 0, vocabulary)
        logits = tf.where(seen, logits * options.repetition_penalty, logits)
    if options.no_repeat_ngram:
        repeats = repeated_ngrams(written, position, options.no_repeat_ngram, vocabulary)
        logits = tf.where(repeats, NEVER, logits)
    if options.suppressed:
        is_suppressed = tf.range(vocabulary)[:, tf.newaxis] == list(options.suppressed)
        logits = tf.where(tf.reduce_any(is_suppressed, axis=-1), NEVER, logits)
    return logits, normalizer


def allow(
    log_p: tf.Tensor,
    tokens: tf.Tensor,
    position: tf.Tensor,
    forced: tf.Tensor,
    of_forced: tf.Tensor,
    options: SearchOptions,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Apply the other rules to a few candidates.

    Args:
        log_p: float32 [B, M, W].
        tokens: int32 [B, M, W], the candidates.
        position: int32 scalar.
        forced: int32 [B], the token that must come, 0 for any.
        of_forced: float32 [B, M, 1], its log probability.
        options: which rules there are.

    Returns:
        log probabilities, `NEVER` for what is not allowed, and candidates; a forced token stands
        first.
    """
    log_p = tf.where(_is_never(tokens, position, options), NEVER, log_p)
    forced = forced[:, tf.newaxis, tf.newaxis]  # [B, 1, 1]
    is_first = tf.range(tf.shape(tokens)[2]) == 0  # [W]
    log_p = tf.where(forced > 0, tf.where(is_first, of_forced, NEVER), log_p)
    return log_p, tf.where((forced > 0) & is_first, forced, tokens)


def _is_never(tokens: tf.Tensor, position: tf.Tensor, options: SearchOptions) -> tf.Tensor:
    """Return which tokens cannot stand at this position whatever the hypothesis is, bool."""
    is_never = (tokens == PAD_ID) | (tokens == UNK_ID) | (tokens == BOS_ID)
    if options.min_length:
        is_never |= (tokens == EOS_ID) & (position < options.min_length)
    return is_never


def token_mask(tokens: tf.Tensor, counts: tf.Tensor, vocabulary: int) -> tf.Tensor:
    """Return which tokens of the vocabulary stand in `tokens` where `counts` is true.

    Args:
        tokens: int32 [B, K, T].
        counts: bool [B, K, T].
        vocabulary: V.

    Returns:
        bool [B, K, V]; always False for id 0, padding, which also stands for what does not count.
    """
    shape = tf.shape(tokens)
    rows = shape[0] * shape[1]
    row = tf.broadcast_to(tf.range(rows)[:, tf.newaxis], [rows, shape[2]])
    column = tf.reshape(tf.where(counts, tokens, 0), [rows, shape[2]])  # [B * K, T]
    where = tf.reshape(tf.stack([row, column], axis=-1), [-1, 2])  # [B * K * T, 2]
    ones = tf.ones([rows * shape[2]], tf.int32)
    mask = tf.tensor_scatter_nd_max(tf.zeros([rows, vocabulary], tf.int32), where, ones) > 0
    mask &= tf.range(vocabulary) > 0
    return tf.reshape(mask, [shape[0], shape[1], vocabulary])  # [B, K, V]


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
