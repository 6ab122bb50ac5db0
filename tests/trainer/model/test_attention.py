"""Attention against NumPy in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.model.attention import MultiHeadAttention, dot_product_attention
from trainer.model.encodings import Sight

B, N, Q, K, H = 2, 3, 4, 5, 8


def reference(query, key, value, mask):
    """softmax(Q K^T / sqrt(H)) V; the mean of the values where nothing is allowed."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    logits = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    mask = np.broadcast_to(mask, logits.shape)
    weights = np.exp(logits - logits.max(-1, keepdims=True)) * mask
    total = weights.sum(-1, keepdims=True)
    uniform = np.full_like(weights, 1 / weights.shape[-1])
    return np.where(total > 0, weights / np.where(total > 0, total, 1), uniform) @ value


def random_inputs(seed=0):
    rng = np.random.default_rng(seed)
    query, key, value = (rng.normal(size=[B, N, n, H]).astype(np.float32) for n in (Q, K, K))
    mask = rng.random([B, 1, Q, K]) < 0.6
    mask[1, 0, 2] = False
    mask[0, 0, 0] = True
    return query, key, value, mask


def test_equals_numpy():
    """Any mask, a row with no key allowed among them."""
    query, key, value, mask = random_inputs()
    result = dot_product_attention(query, key, value, mask).numpy()
    np.testing.assert_allclose(result, reference(query, key, value, mask), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result[1, :, 2], value[1].mean(axis=1), rtol=1e-5, atol=1e-6)


def test_masked_keys_do_not_matter():
    """Keys and values behind the mask may hold anything, huge numbers too."""
    query, key, value, mask = random_inputs()
    mask[:] = [True, True, False, True, False]
    other_key, other_value = key.copy(), value.copy()
    other_key[:, :, [2, 4]] = 1e6
    other_value[:, :, [2, 4]] = -1e6
    np.testing.assert_array_equal(
        dot_product_attention(query, key, value, mask),
        dot_product_attention(query, other_key, other_value, mask),
    )


def test_gradients_are_finite_where_everything_is_masked():
    """No NaN comes out of the backward pass either."""
    inputs = [tf.constant(x) for x in random_inputs()[:3]]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        result = dot_product_attention(*inputs, tf.zeros([1, 1, Q, K], tf.bool))
        loss = tf.reduce_sum(result**2)
    for gradient in tape.gradient(loss, inputs):
        assert np.isfinite(gradient).all()


def test_half_precision_inputs():
    """bfloat16 in, bfloat16 out, with a float32 softmax in between: never NaN."""
    query, key, value, mask = random_inputs()
    half = [tf.cast(x, tf.bfloat16) for x in (query, key, value)]
    result = dot_product_attention(*half, mask)
    assert result.dtype == tf.bfloat16
    expected = reference(*(tf.cast(x, tf.float32) for x in half), mask)
    np.testing.assert_allclose(tf.cast(result, tf.float32), expected, rtol=0.05, atol=0.03)


def numpy_multi_head(layer, queries, memory, mask):
    """Multi-head attention from the weights of `layer`, in float64."""

    def project(dense, x):
        y = x.astype(np.float64) @ dense.kernel.numpy() + dense.bias.numpy()
        return y.reshape([*x.shape[:2], layer.heads, -1]).swapaxes(1, 2)

    query = project(layer.query, queries)
    key, value = project(layer.key, memory), project(layer.value, memory)
    mixed = reference(query, key, value, mask).swapaxes(1, 2)
    merged = mixed.reshape([*queries.shape[:2], -1])
    return merged @ layer.output_projection.kernel.numpy() + layer.output_projection.bias.numpy()


@pytest.fixture
def layer(seeded):
    """16 wide, 4 heads, with biases that are not zero."""
    layer = MultiHeadAttention(16, 4)
    rng = np.random.default_rng(1)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(0, 0.4, variable.shape))
    return layer


def test_multi_head_equals_numpy(layer):
    """Self-attention, and attention to a memory of another length."""
    rng = np.random.default_rng(2)
    x, memory = (rng.normal(size=[2, n, 16]).astype(np.float32) for n in (5, 7))
    causal = np.tril(np.ones([1, 1, 5, 5], bool))
    cross = rng.random([2, 1, 1, 7]) < 0.7
    np.testing.assert_allclose(
        layer(x, x, sight=Sight(causal)),
        numpy_multi_head(layer, x, x, causal),
        rtol=1e-5,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        layer(x, memory, sight=Sight(cross)),
        numpy_multi_head(layer, x, memory, cross),
        rtol=1e-5,
        atol=1e-5,
    )


def test_attend_with_cached_keys_and_values(layer):
    """Projecting the memory beforehand changes nothing."""
    rng = np.random.default_rng(3)
    x, memory = (rng.normal(size=[2, n, 16]).astype(np.float32) for n in (3, 6))
    mask = rng.random([2, 1, 1, 6]) < 0.7
    keys, values = layer.keys_and_values(tf.constant(memory))
    assert keys.shape == values.shape == (2, 4, 6, 4)
    cached = layer.attend(tf.constant(x), keys, values, Sight(mask))
    np.testing.assert_array_equal(cached, layer(x, memory, sight=Sight(mask)))


def test_mixed_bfloat16():
    """float32 weights, bfloat16 results close to the float32 ones."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = MultiHeadAttention(16, 4)
    assert {variable.dtype for variable in layer.trainable_variables} == {"float32"}
    x = np.random.default_rng(4).normal(size=[2, 5, 16]).astype(np.float32)
    mask = np.tril(np.ones([1, 1, 5, 5], bool))
    result = layer(x, x, sight=Sight(mask))
    assert result.dtype == tf.bfloat16
    expected = numpy_multi_head(layer, x, x, mask)
    np.testing.assert_allclose(tf.cast(result, tf.float32), expected, rtol=0.05, atol=0.05)


def test_width_must_be_a_multiple_of_heads():
    with pytest.raises(ValueError, match="width 10 is not a multiple of the number of heads 4"):
        MultiHeadAttention(10, 4)
