"""Sums over target tokens. Nothing here divides: replicas and micro-batches exchange sums, and
the one division, by the number of tokens of the whole batch, comes last."""

import tensorflow as tf


def token_sums(
    logits: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor, label_smoothing: float
) -> dict[str, tf.Tensor]:
    """Cross-entropy with label smoothing (Szegedy et al. 2016, section 7), and what goes with it.

    The smoothed target gives 1 - e to the right token and spreads e evenly over all V of them.
    With z the logits, its cross-entropy is logsumexp(z) - (1 - e) z[target] - e mean(z): no
    one-hot tensor, no second softmax.

    Args:
        logits: float32 [B, T, V].
        targets: int32 [B, T].
        weights: float32 [B, T], 1 for a token that counts and 0 for padding.
        label_smoothing: e, in [0, 1).

    Returns:
        float32 scalars: "loss" (smoothed) and "nll" (not smoothed), both in nats, "correct"
        (right guesses) and "tokens" (the sum of the weights).
    """
    log_normalizer = tf.reduce_logsumexp(logits, axis=-1)  # [B, T]
    target_logits = tf.gather(logits, targets, batch_dims=2)  # [B, T]
    nll = log_normalizer - target_logits
    loss = nll
    if label_smoothing:
        mean_logits = tf.reduce_mean(logits, axis=-1)  # [B, T]
        loss = nll + label_smoothing * (target_logits - mean_logits)
    # Right when no other logit reaches the target's. XLA turns this count into vector code, which
    # an argmax over V does not become on a CPU.
    reached = tf.cast(logits >= target_logits[..., tf.newaxis], tf.float32)  # [B, T, V]
    correct = tf.cast(tf.reduce_sum(reached, axis=-1) == 1.0, tf.float32)  # [B, T]
    return {
        "loss": tf.reduce_sum(loss * weights),
        "nll": tf.reduce_sum(nll * weights),
        "correct": tf.reduce_sum(correct * weights),
        "tokens": tf.reduce_sum(weights),
    }
