"""Finding the largest of many, against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.decoding.candidates import log_normalizer, top_tokens


@pytest.mark.parametrize("vocabulary", [7, 640, 1009, 2500])
@pytest.mark.parametrize("count", [2, 7])
def test_top_tokens(vocabulary, count):
    """With and without blocks, of sizes that divide the vocabulary or not; many values are tied."""
    values = np.random.default_rng(0).integers(-40, 40, [3, 4, vocabulary]).astype(np.float32)
    found, tokens = top_tokens(tf.constant(values), count)
    expected = np.argsort(-values, axis=-1, kind="stable")[..., :count]
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(found, np.take_along_axis(values, expected, axis=-1))


def test_log_normalizer_of_large_logits():
    """Where the exponential of a logit would be infinite."""
    logits = np.array([[[500.0, 501.0, -900.0]], [[-3.0, 0.5, 2.0]]])
    expected = np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    np.testing.assert_allclose(log_normalizer(tf.constant(logits, tf.float32)), expected, 1e-6)
