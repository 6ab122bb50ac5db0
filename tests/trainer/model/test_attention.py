"""Attention against NumPy in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.model.attention import MultiHeadAttention, dot_product_attention, optimize_for_tpu
from trainer.model.dropout import Dropout
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


def plain_attention(query, key, value, mask, dropped, bias):
    """The same formula with the gradients that TensorFlow derives from it."""
    key, value = (tf.repeat(x, query.shape[1] // x.shape[1], axis=1) for x in (key, value))
    logits = tf.matmul(query, key, transpose_b=True) / np.sqrt(H) + bias
    weights = tf.nn.softmax(tf.where(mask, logits, -1e30))
    return tf.matmul(dropped(weights), value)


@pytest.mark.parametrize(("jit_compile", "on_tpu"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("groups", "rate"), [(4, 0.3), (2, 0.3), (1, 0.3), (2, 0.0)])
def test_gradients(groups, rate, jit_compile, on_tpu):
    """Of queries, keys, values and bias; with dropout, and with queries that see nothing."""
    rng, heads = np.random.default_rng(5), 4
    shapes = (
        [B, heads, Q, H],
        [B, groups, K, H],
        [B, groups, K, H],
        [1, heads, Q, K],
        [B, heads, Q, H],
    )
    *inputs, weights = (tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes)
    mask, dropout, seed = random_inputs()[3], Dropout(rate) if rate else None, tf.constant([1, 2])
    assert not mask.any(-1).all()

    def gradients(attend):
        @tf.function(jit_compile=jit_compile, autograph=False)
        def run(*inputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                result = attend(*inputs)
                loss = tf.reduce_sum(result * weights)
            return [result, *tape.gradient(loss, inputs)]

        return [x.numpy() for x in run(*inputs)]

    arguments = mask, dropout, seed
    ours = gradients(
        lambda q, k, v, bias: dot_product_attention(q, k, v, *arguments, bias, on_tpu=on_tpu)
    )
    expected = gradients(
        lambda q, k, v, bias: plain_attention(
            q, k, v, mask, lambda x: dropout(x, seed) if dropout else x, bias
        )
    )
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("dtype", "error"), [(tf.bfloat16, 0.02), (tf.float16, 0.003)])
@pytest.mark.parametrize(("jit_compile", "on_tpu"), [(False, False), (True, True)])
def test_gradients_in_half_precision(jit_compile, on_tpu, dtype, error):
    """A few units of the last place away from those in float32."""
    inputs, mask = [tf.cast(x, dtype) for x in random_inputs()[:3]], random_inputs()[3]

    @tf.function(jit_compile=jit_compile, autograph=False)
    def run(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            form = on_tpu and inputs[0].dtype == dtype
            result = dot_product_attention(*inputs, mask, on_tpu=form)
            loss = tf.reduce_sum(tf.cast(result, tf.float32) ** 2)
        return tape.gradient(loss, inputs)

    for one, other in zip(
        run(*inputs), run(*(tf.cast(x, tf.float32) for x in inputs)), strict=True
    ):
        assert one.dtype == dtype
        scale = np.abs(other).max()
        np.testing.assert_allclose(tf.cast(one, tf.float32), other, rtol=error, atol=error * scale)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize(("block", "on_tpu"), [(0, False), (0, True), (2, False)])
def test_dropout_of_weights_in_half_precision(precision, block, on_tpu):
    """The weights stay float32 until they are multiplied; the gradients are those in float32."""
    keras.config.set_dtype_policy(precision)
    try:
        layers = [MultiHeadAttention(16, 4, dropout=0.3, block=block)]
        keras.config.set_dtype_policy("float32")
        layers.append(MultiHeadAttention(16, 4, dropout=0.3, block=block))
    finally:
        keras.config.set_dtype_policy("float32")
    for one, other in zip(*(layer.trainable_variables for layer in layers), strict=True):
        other.assign(one.numpy())
    x = tf.constant(np.random.default_rng(7).normal(size=[B, K, 16]), tf.float32)
    sight, seed = Sight(tf.ones([1, 1, K, K], tf.bool)), tf.constant([1, 2])

    def gradients(layer):
        layer.on_tpu = on_tpu

        @tf.function(jit_compile=on_tpu, autograph=False)
        def run(x):
            with tf.GradientTape() as tape:
                result = tf.cast(layer(x, x, sight=sight, rng=seed), tf.float32)
                loss = tf.reduce_sum(result**2)
            return tape.gradient(loss, [one.value for one in layer.trainable_variables])

        return run(x)

    ours, expected = map(gradients, layers)
    scale = max(np.abs(one).max() for one in expected)  # that of the keys' bias is 0
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=0.02 * scale)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_tpu_computes_the_same_layer(kv_heads):
    """It projects by other products: results, and gradients of inputs and weights."""
    rng, layer = np.random.default_rng(6), MultiHeadAttention(16, 4, kv_heads=kv_heads)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) * 0.3)
    queries, memory = (tf.constant(rng.normal(size=[B, n, 16]), tf.float32) for n in (Q, K))
    sight = Sight(tf.constant(random_inputs()[3]))

    def compute(queries, memory):
        with tf.GradientTape() as tape:
            tape.watch([queries, memory])
            result = layer(queries, memory, sight=sight)
            loss = tf.reduce_sum(result**2)
        sources = [queries, memory, *(one.value for one in layer.trainable_variables)]
        return [result, *tape.gradient(loss, sources)]

    expected = compute(queries, memory)
    assert len(expected) == 11
    optimize_for_tpu(layer)
    assert layer.on_tpu
    compiled = tf.function(compute, jit_compile=True, autograph=False)(queries, memory)
    for one, other in zip(compiled, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


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
