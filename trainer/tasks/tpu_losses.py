"""Cross-entropy and its gradients in the order that a TPU's compiler is fastest at.

A TPU's matrix unit and its vector unit work at the same time only inside one fused operation. A
separate pass over all logits, such as the sum of their exponentials, leaves the matrix unit idle.
So every pass over the logits here is fused with a product.
"""

import tensorflow as tf

from trainer.model.embeddings import Projection, float32_product


def token_sums_and_gradients(
    states: tf.Tensor,
    projection: Projection,
    targets: tf.Tensor,
    weights: tf.Tensor,
    label_smoothing: float,
) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
    """Return `losses.token_sums` of the logits of `states`, and gradients of their "loss".

    With p the softmax, the gradient of a state is the mean of the embeddings under p, less the
    mean under the smoothed target. The exponentials of the logits are multiplied with the
    embeddings for it before their sum is known: a column of ones beside the embeddings gives
    the sum.

    Args:
        states: [1, C, D], float32 or a half precision.
        projection: of the dtype of `states`.
        targets: int32 [1, C].
        weights: float32 [1, C].
        label_smoothing: e, in [0, 1).

    Returns:
        the sums; float32 gradients of `states`, [1, C, D], and of the logits, [1, C, V].
    """
    matrix, transposed = projection
    rows = matrix if transposed else tf.transpose(matrix)  # [V, D]
    vocab_size, width = rows.shape
    logits = projection.logits(states)[0]  # [C, V]
    targets, weights = targets[0], weights[0]
    ids = tf.range(vocab_size)
    is_target = ids == targets[:, tf.newaxis]  # [C, V]
    target_logits = tf.reduce_sum(tf.where(is_target, logits, 0.0), axis=-1)  # [C]
    peaks = tf.reduce_max(logits, axis=-1)  # [C]
    # The argmax is the first of equals.
    before = tf.where(ids < targets[:, tf.newaxis], logits, logits.dtype.min)  # [C, V]
    is_right = (target_logits >= peaks) & (tf.reduce_max(before, axis=-1) < peaks)  # [C]

    exponentials = tf.cast(tf.exp(logits - peaks[:, tf.newaxis]), states.dtype)  # [C, V]
    rows_and_ones = tf.concat([rows, tf.ones([vocab_size, 1], rows.dtype)], axis=1)  # [V, D + 1]
    product = float32_product(exponentials, rows_and_ones)  # [C, D + 1]
    totals = product[:, width]  # [C]
    log_normalizers = peaks + tf.math.log(totals)
    nll = log_normalizers - target_logits
    loss = nll + label_smoothing * (target_logits - tf.reduce_mean(logits, axis=-1))

    expected = product[:, :width] / totals[:, tf.newaxis]  # [C, D]
    at_target = tf.cast(tf.gather(rows, targets), tf.float32)  # [C, D]
    mean = tf.reduce_mean(tf.cast(rows, tf.float32), axis=0)  # [D]
    wanted = (1.0 - label_smoothing) * at_target + label_smoothing * mean
    of_states = weights[:, tf.newaxis] * (expected - wanted)

    rest = label_smoothing / vocab_size
    smoothed = tf.where(is_target, 1.0 - label_smoothing + rest, rest)  # [C, V]
    of_logits = tf.exp(logits - log_normalizers[:, tf.newaxis]) - smoothed
    sums = {
        "loss": tf.reduce_sum(loss * weights),
        "nll": tf.reduce_sum(nll * weights),
        "correct": tf.reduce_sum(tf.cast(is_right, tf.float32) * weights),
        "tokens": tf.reduce_sum(weights),
    }
    return sums, of_states[tf.newaxis], (weights[:, tf.newaxis] * of_logits)[tf.newaxis]
