"""Sums over predicted tokens. Nothing here divides: replicas and micro-batches exchange sums, and
the one division, by the number of tokens of the whole batch, comes last."""

import math
from collections.abc import Mapping

import tensorflow as tf

from trainer.model.embeddings import is_compiled

SUMS = ("loss", "nll", "correct", "tokens")
"""What `token_sums` returns."""


def token_sums(
    logits: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor, label_smoothing: float
) -> dict[str, tf.Tensor]:
    """Return cross-entropy with label smoothing (Szegedy et al. 2016, section 7) and accuracy.

    The smoothed target gives 1 - e to the right token and spreads e evenly over all V of them.
    With z the logits, its cross-entropy is logsumexp(z) - (1 - e) z[target] - e mean(z): no
    one-hot tensor, no second softmax. On TPUs training takes
    `tpu_losses.token_sums_and_gradients` in its place.

    Args:
        logits: float32 [B, T, V].
        targets: int32 [B, T].
        weights: float32 [B, T], 1 for a token that counts and 0 for padding.
        label_smoothing: e, in [0, 1).

    Returns:
        float32 scalars: "loss" (smoothed) and "nll" (not smoothed), both in nats, "correct"
        (right guesses) and "tokens" (the sum of the weights).
    """
    nll, loss, is_right = _cross_entropies(logits, targets, label_smoothing)  # [B, T] each
    correct = tf.cast(is_right, tf.float32)  # [B, T]
    return {
        "loss": tf.reduce_sum(loss * weights),
        "nll": tf.reduce_sum(nll * weights),
        "correct": tf.reduce_sum(correct * weights),
        "tokens": tf.reduce_sum(weights),
    }


def _cross_entropies(logits, targets, label_smoothing: float):
    """Return plain and smoothed cross-entropy, and whether the target is the argmax, [B, T] each.

    The gradient by hand: (softmax(z) - the smoothed target). TensorFlow's would pass over
    [B, T, V] several times more, and add up parts in an order that changes from run to run.

    XLA fuses element-wise operations into few passes over [B, T, V]; without it each is a pass.
    So there the softmax, one kernel, is kept for the gradient and serves the normaliser too.
    """
    fused = is_compiled()

    @tf.custom_gradient
    def compute(z):
        vocab_size = tf.shape(z)[-1]
        target_logits = tf.gather(z, targets, batch_dims=2)  # [B, T]
        if fused:
            log_normalizer = tf.reduce_logsumexp(z, axis=-1)  # [B, T]
            is_right = _is_argmax(z, targets, target_logits)
        else:
            softmax = tf.nn.softmax(z)  # [B, T, V]
            best = tf.argmax(z, axis=-1, output_type=tf.int32)  # [B, T]
            # The best token's probability is at least 1 / V, so its logarithm is accurate.
            best_log_p = tf.math.log(tf.gather(softmax, best, batch_dims=2))  # [B, T]
            log_normalizer = tf.gather(z, best, batch_dims=2) - best_log_p
            is_right = (best == targets) & ~tf.math.is_nan(best_log_p)
        nll = log_normalizer - target_logits
        loss = nll + label_smoothing * (target_logits - tf.reduce_mean(z, axis=-1))

        def gradient(of_nll, of_loss, _):
            of_both = (of_nll + of_loss)[..., tf.newaxis]
            at_target = (of_nll + (1.0 - label_smoothing) * of_loss)[..., tf.newaxis]
            rest = (label_smoothing * of_loss)[..., tf.newaxis] / tf.cast(vocab_size, tf.float32)
            is_target = tf.range(vocab_size) == targets[..., tf.newaxis]  # [B, T, V]
            p = tf.exp(z - log_normalizer[..., tf.newaxis]) if fused else softmax  # [B, T, V]
            return of_both * p - tf.where(is_target, at_target + rest, rest)

        return (nll, loss, is_right), gradient

    return compute(logits)


def _is_argmax(logits: tf.Tensor, targets: tf.Tensor, target_logits: tf.Tensor) -> tf.Tensor:
    """Return whether each target is the argmax, bool [B, T], by counting the logits it beats.

    XLA turns the count into vector code and fuses it, which an argmax does not become.
    """
    vocab_size = tf.shape(logits)[-1]
    # The argmax is the first of equals: no logit before it is as high, none after it is higher.
    is_before = tf.range(vocab_size) < targets[..., tf.newaxis]  # [B, T, V]
    highest = target_logits[..., tf.newaxis]
    beaten = tf.where(is_before, highest > logits, highest >= logits)  # [B, T, V]
    count = tf.reduce_sum(tf.cast(beaten, tf.float32), axis=-1)  # [B, T]
    return count == tf.cast(vocab_size, tf.float32)


def rdrop_sums(
    logits: tf.Tensor,
    targets: tf.Tensor,
    weights: tf.Tensor,
    label_smoothing: float,
    alpha: float,
) -> dict[str, tf.Tensor]:
    """Return `token_sums` of two passes with different dropout masks, which are to agree.

    Args:
        logits: float32 [2 B, T, V], of the first pass and then of the second.
        targets: int32 [2 B, T].
        weights: float32 [2 B, T].
        label_smoothing: e, in [0, 1).
        alpha: weight of the divergence in "loss".

    Returns:
        float32 scalars, the means of both passes.
    """
    sums = {
        key: 0.5 * value
        for key, value in token_sums(logits, targets, weights, label_smoothing).items()
    }
    first, second = tf.split(logits, 2)  # [B, T, V] each
    divergence = symmetric_divergence(first, second, tf.split(weights, 2)[0])
    return sums | {"loss": sums["loss"] + 0.25 * alpha * divergence}


def simcut_sums(
    logits: tf.Tensor,
    targets: tf.Tensor,
    weights: tf.Tensor,
    label_smoothing: float,
    alpha: float,
) -> dict[str, tf.Tensor]:
    """Return `token_sums` of a pass, with which one over cut embeddings is to agree.

    SimCut (Gao et al. 2022, equation 7): "loss" grows by alpha KL(p || q), with p from the whole
    sentences and q from the cut ones; the gradient flows through both.

    Args:
        logits: float32 [2 B, T, V], of the whole sentences and then of the cut ones.
        targets: int32 [2 B, T].
        weights: float32 [2 B, T].
        label_smoothing: e, in [0, 1).
        alpha: weight of the divergence in "loss".

    Returns:
        float32 scalars; all but "loss" are those of the first pass.
    """
    (whole, cut), weights = tf.split(logits, 2), tf.split(weights, 2)[0]
    sums = token_sums(whole, tf.split(targets, 2)[0], weights, label_smoothing)
    p, q = tf.nn.log_softmax(whole), tf.nn.log_softmax(cut)
    per_token = tf.reduce_sum(tf.exp(p) * (p - q), axis=-1)  # [B, T]
    return sums | {"loss": sums["loss"] + alpha * tf.reduce_sum(per_token * weights)}


def symmetric_divergence(logits: tf.Tensor, others: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Return KL(p || q) + KL(q || p) of two predictions, summed over tokens, in nats.

    R-Drop (Liang et al. 2021, equations 2 to 4) adds a quarter of it, times alpha, to the mean of
    the two losses: half of the paper's sum, as everything here is per pass.

    Args:
        logits: float32 [B, T, V], of p.
        others: float32 [B, T, V], of q.
        weights: float32 [B, T].
    """
    p, q = tf.nn.log_softmax(logits), tf.nn.log_softmax(others)
    # The sum over v of (p - q) (log p - log q).
    per_token = tf.reduce_sum((tf.exp(p) - tf.exp(q)) * (p - q), axis=-1)  # [B, T]
    return tf.reduce_sum(per_token * weights)


def token_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Return metrics per token from the sums of `token_sums` and "positions".

    Returns:
        "loss", "nll" (nats per token), "perplexity", "token_accuracy", and "fill_rate", the share
        of positions that are not padding.
    """
    tokens = max(sums["tokens"], 1.0)  # 0 where only damaged data was skipped
    nll = sums["nll"] / tokens
    return {
        "loss": sums["loss"] / tokens,
        "nll": nll,
        "perplexity": math.exp(min(nll, 100.0)),  # JSON has a number for e**100, not for infinity
        "token_accuracy": sums["correct"] / tokens,
        "fill_rate": sums["tokens"] / sums["positions"],
    }
