"""Attention in blocks against attention as a whole matrix."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.model.attention import (
    MultiHeadAttention,
    dot_product_attention,
    recorded_weights,
)
from trainer.model.attention_blocks import attention_in_blocks
from trainer.model.dropout import Dropout
from trainer.model.encodings import Sight

B, N, G, L, H = 2, 4, 2, 22, 8
SIZE = 5  # of a block: the last one of a row has 2 places


def make_mask(kind: str, keys: int = L) -> np.ndarray:
    """[B, 1, L, K]; segments of unequal length, and padding."""
    segments = np.sort(np.random.default_rng(1).integers(1, 5, [B, max(L, keys)]), axis=1)
    segments[1, -6:] = 0
    mask = segments[:, :L, None] == segments[:, None, :keys]
    if kind == "causal":
        mask &= np.tril(np.ones([L, keys], bool))
    if kind == "window":
        mask &= np.abs(np.arange(L)[:, None] - np.arange(keys)) <= 3
    return mask[:, None]


def make_inputs(keys: int = L, heads: int = N, dtype=tf.float32) -> list[tf.Tensor]:
    rng = np.random.default_rng(2)
    shapes = [B, N, L, H], [B, heads, keys, H], [B, heads, keys, H]
    return [tf.constant(rng.normal(size=shape), dtype) for shape in shapes]


def with_gradients(attend, inputs, mask, *, jit_compile: bool = False) -> list[np.ndarray]:
    """The result where a query sees anything, and the gradients of a random weighted sum of it."""
    sees = tf.constant(mask.any(-1, keepdims=True))  # [B, 1, L, 1]
    weights = tf.constant(np.random.default_rng(3).normal(size=[B, N, L, H]), tf.float32)

    @tf.function(jit_compile=jit_compile or None, autograph=False)
    def run(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            result = tf.where(sees, attend(*inputs), tf.zeros([], inputs[0].dtype))
            loss = tf.reduce_sum(tf.cast(result, tf.float32) * weights)
        return [result, *tape.gradient(loss, inputs)]

    return [tf.cast(x, tf.float32).numpy() for x in run(*inputs)]


@pytest.mark.parametrize(
    ("kind", "keys", "heads", "jit_compile"),
    [
        ("segments", L, N, False),
        ("segments", 13, N, True),  # as to an encoder's output
        ("causal", L, G, True),
        ("window", L, G, False),
    ],
)
def test_equals_the_whole_matrix(kind, keys, heads, jit_compile):
    inputs, mask = make_inputs(keys, heads), make_mask(kind, keys)
    whole = with_gradients(lambda *x: dot_product_attention(*x, mask), inputs, mask)
    blocks = with_gradients(
        lambda *x: attention_in_blocks(SIZE, *x, mask), inputs, mask, jit_compile=jit_compile
    )
    assert mask.any(-1).all() == (keys == L)
    for ours, expected in zip(blocks, whole, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    blind = tf.constant(~mask.any(-1, keepdims=True))
    assert (tf.where(blind, attention_in_blocks(SIZE, *inputs, mask), 0.0) == 0).numpy().all()


@pytest.mark.parametrize(("dtype", "error"), [(tf.bfloat16, 0.03), (tf.float16, 0.004)])
def test_half_precision(dtype, error):
    """As far from the whole matrix as its own rounding: a few units of the last place."""
    mask = make_mask("causal")
    whole = with_gradients(lambda *x: dot_product_attention(*x, mask), make_inputs(), mask)
    halves = make_inputs(dtype=dtype)
    blocks = with_gradients(lambda *x: attention_in_blocks(SIZE, *x, mask), halves, mask)
    for ours, expected in zip(blocks, whole, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=error, atol=error * np.abs(expected).max())


def test_blocks_that_nobody_sees_are_left_out():
    """A number that is none does not reach the result from there; from a whole matrix it does."""
    query, key, value = make_inputs()
    place = np.arange(L) // SIZE
    mask = (place[:, None] == place)[None, None]
    spoiled = tf.where(tf.constant(place)[:, None] == 2, np.nan, value)
    ours = attention_in_blocks(SIZE, query, key, spoiled, mask).numpy()
    expected = dot_product_attention(query, key, value, mask).numpy()
    np.testing.assert_allclose(
        ours[:, :, place != 2], expected[:, :, place != 2], rtol=1e-5, atol=1e-6
    )
    assert np.isnan(dot_product_attention(query, key, spoiled, mask)).all()


def test_dropout():
    """The weights, which a matrix of ones on the diagonal shows, are 0 or grow by the usual factor;
    and the gradients are those of just these weights.
    """
    length, rate = 32, 0.25
    rng = np.random.default_rng(4)
    query, key = (tf.constant(rng.normal(size=[B, N, length, length]), tf.float32) for _ in "qk")
    value = tf.eye(length, batch_shape=[B, N])
    mask, seed, layer = np.ones([1, 1, length, length], bool), tf.constant([1, 2]), Dropout(rate)

    def run(*x):
        return attention_in_blocks(8, *x, mask, layer, seed)

    ours = run(query, key, value).numpy()
    whole = dot_product_attention(query, key, value, mask).numpy()
    kept = ours > 0
    np.testing.assert_allclose(ours[kept], (whole / (1 - rate))[kept], rtol=1e-5)
    assert kept.mean() == pytest.approx(1 - rate, abs=0.02)  # of 8,192: four deviations
    blocks = kept.reshape([B, N, 4, 8, 4, 8]).transpose([2, 4, 0, 1, 3, 5]).reshape([16, -1])
    assert len(np.unique(blocks, axis=0)) == 16  # each block has a mask of its own
    np.testing.assert_array_equal(run(query, key, value), ours)

    def gradients(attend):
        with tf.GradientTape() as tape:
            tape.watch([query, key, value])
            loss = tf.reduce_sum(attend(query, key, value) ** 2)
        return tape.gradient(loss, [query, key, value])

    def dropped(x, rng):
        return x * tf.cast(kept, tf.float32) / (1 - rate)

    expected = gradients(lambda *x: dot_product_attention(*x, mask, dropped))
    for one, other in zip(gradients(run), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_where_the_layer_works_in_blocks(monkeypatch):
    """On rows longer than a block; not while decoding, and not where the weights are asked for."""
    called = []
    monkeypatch.setattr(
        "trainer.model.attention.attention_in_blocks",
        lambda size, query, *rest: called.append(size) or tf.zeros_like(query),
    )
    layer = MultiHeadAttention(16, 4, block=4)
    x = tf.ones([1, 6, 16])
    sight = Sight(tf.ones([1, 1, 6, 6], tf.bool))
    layer(x, x, sight=sight)
    assert called == [4]
    layer(x[:, :4], x[:, :4], sight=Sight(sight.mask[:, :, :4, :4]))
    layer.attend(x[:, :1], *layer.keys_and_values(x), Sight(sight.mask[:, :, :1]))
    with recorded_weights() as weights:
        layer(x, x, sight=sight)
    assert called == [4] and len(weights) == 1
