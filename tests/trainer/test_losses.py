"""Token sums against the smoothed distribution written out in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.losses import token_sums

B, T, V = 3, 5, 11


@pytest.fixture
def batch():
    """float32 logits, targets, and weights that leave out the end of two rows."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, [B, T, V]).astype(np.float32)
    targets = rng.integers(0, V, [B, T]).astype(np.int32)
    targets[0, 0], targets[2, 4] = logits[0, 0].argmax(), logits[2, 4].argmax()
    weights = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], np.float32)
    return logits, targets, weights


def expected(logits, targets, weights, smoothing):
    """The four sums, from explicit target distributions, in float64."""
    logits = logits.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    one_hot = np.eye(V)[targets]
    smooth = (1 - smoothing) * one_hot + smoothing / V
    return {
        "loss": -((smooth * log_p).sum(-1) * weights).sum(),
        "nll": -((one_hot * log_p).sum(-1) * weights).sum(),
        "correct": ((logits.argmax(-1) == targets) * weights).sum(),
        "tokens": weights.sum(),
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_equals_the_written_out_sums(batch, smoothing):
    result = token_sums(*batch, smoothing)
    wanted = expected(*batch, smoothing)
    assert result.keys() == wanted.keys()
    for key, value in wanted.items():
        assert result[key].dtype == tf.float32 and result[key].shape == ()
        np.testing.assert_allclose(result[key], value, rtol=1e-6, err_msg=key)
    assert wanted["correct"] >= 2


def test_no_smoothing_is_sparse_cross_entropy(batch):
    logits, targets, weights = batch
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    result = token_sums(*batch, 0.0)
    np.testing.assert_allclose(result["loss"], tf.reduce_sum(losses * weights), rtol=1e-6)
    np.testing.assert_array_equal(result["loss"], result["nll"])


def test_padding_counts_for_nothing(batch):
    """Logits and targets under a weight of 0 change no sum and get no gradient."""
    logits, targets, weights = batch
    padding = weights == 0
    other_logits, other_targets = logits.copy(), targets.copy()
    other_logits[padding] = 1e4
    other_targets[padding] = 0
    for key, value in token_sums(logits, targets, weights, 0.1).items():
        np.testing.assert_array_equal(
            token_sums(other_logits, other_targets, weights, 0.1)[key], value
        )
    variable = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss = token_sums(variable, targets, weights, 0.1)["loss"]
    gradient = tape.gradient(loss, variable).numpy()
    assert (gradient[padding] == 0).all() and (gradient[~padding] != 0).any(-1).all()


def test_gradient_is_the_softmax_minus_the_smoothed_target(batch):
    logits, targets, weights = batch
    variable = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss = token_sums(variable, targets, weights, 0.1)["loss"]
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = (softmax - 0.9 * np.eye(V)[targets] - 0.1 / V) * weights[..., np.newaxis]
    np.testing.assert_allclose(tape.gradient(loss, variable), wanted, atol=1e-6)


def test_empty_batch(batch):
    logits, targets, _ = batch
    sums = token_sums(logits, targets, np.zeros([B, T], np.float32), 0.1)
    assert {key: float(value) for key, value in sums.items()} == dict.fromkeys(sums, 0.0)
