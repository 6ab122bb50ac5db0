"""Dropout is a function of seed, step, replica and layer, with the rate that was asked for."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.model.dropout import Dropout, number_dropouts, step_rng, use_device_generator

SHAPE = [100, 1000]


def dropped(rng, rate=0.3, stream=0, shape=SHAPE) -> np.ndarray:
    """Where a tensor of ones was dropped."""
    layer = Dropout(rate)
    layer.stream = stream
    return layer(tf.ones(shape), rng).numpy() == 0


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_and_expectation(rate):
    """The share of zeros is the rate, to 5 standard deviations; the rest keeps the mean."""
    exact = round(rate * 256) / 256
    assert abs(exact - rate) <= 1 / 512
    result = Dropout(rate)(tf.ones(SHAPE), step_rng(1, 2, 3)).numpy()
    deviation = np.sqrt(exact * (1 - exact) / result.size)
    assert abs(np.mean(result == 0) - exact) < 5 * deviation
    np.testing.assert_allclose(result[result != 0], 1 / (1 - exact), rtol=1e-6)
    assert abs(result.mean() - 1) < 5 * deviation / (1 - exact)
    # No column and no row is treated differently: every bit of every random word is used.
    for axis, count in ((0, SHAPE[0]), (1, SHAPE[1])):
        spread = np.sqrt(exact * (1 - exact) / count)
        assert np.abs(np.mean(result == 0, axis=axis) - exact).max() < 6 * spread


def test_same_seed_same_mask():
    np.testing.assert_array_equal(dropped(step_rng(1, 2, 3)), dropped(step_rng(1, 2, 3)))


@pytest.mark.parametrize(
    "other",
    [
        {"rng": step_rng(2, 5, 0)},
        {"rng": step_rng(1, 6, 0)},
        {"rng": step_rng(1, 5, 1)},
        {"rng": step_rng(1, 5, 0), "stream": 1},
    ],
    ids=["seed", "step", "replica", "layer"],
)
def test_other_masks_are_independent(other):
    """Two masks agree as often as chance has it."""
    first, second = dropped(step_rng(1, 5, 0)), dropped(**other)
    rate = round(0.3 * 256) / 256
    chance = rate**2 + (1 - rate) ** 2
    deviation = np.sqrt(chance * (1 - chance) / first.size)
    assert abs(np.mean(first == second) - chance) < 5 * deviation


def test_step_and_replica_are_not_interchangeable():
    assert np.any(step_rng(1, 2, 3).numpy() != step_rng(1, 3, 2).numpy())


def test_without_seed_or_rate_nothing_happens():
    x = tf.random.stateless_normal([3, 4], [1, 2])
    np.testing.assert_array_equal(Dropout(0.5)(x, None), x)
    np.testing.assert_array_equal(Dropout(0.0)(x, step_rng(1, 2, 3)), x)


def test_compiled_masks_are_the_same():
    """XLA, a plain graph with an unknown shape and eager mode draw the same bits."""
    x, rng = tf.ones([3, 5, 7]), step_rng(1, 2, 3)
    layer = Dropout(0.4)
    eager = layer(x, rng).numpy()
    np.testing.assert_array_equal(tf.function(layer, jit_compile=True)(x, rng), eager)
    signature = [tf.TensorSpec([None, None, 7]), tf.TensorSpec([2], tf.int32)]
    graph = tf.function(lambda x, rng: layer(x, rng), input_signature=signature)
    np.testing.assert_array_equal(graph(x, rng), eager)


def test_the_generator_of_the_device(make_model):
    """Rate, mean and independence are as with Philox; the masks are others."""
    layers = [Dropout(0.3) for _ in range(2)]
    for stream, layer in enumerate(layers):
        layer.stream, layer.fast = stream, True

    @tf.function(jit_compile=True)
    def draw(rng, other):
        x = tf.ones(SHAPE)
        return layers[0](x, rng), layers[0](x, other), layers[1](x, rng), layers[0](x, rng)

    results = [result.numpy() for result in draw(step_rng(1, 5, 0), step_rng(1, 6, 0))]
    rate = round(0.3 * 256) / 256
    for result in results:
        np.testing.assert_allclose(result[result != 0], 1 / (1 - rate), rtol=1e-6)
        deviation = np.sqrt(rate * (1 - rate) / result.size)
        assert abs(np.mean(result == 0) - rate) < 5 * deviation
    first, other_step, other_layer, again = (result == 0 for result in results)
    np.testing.assert_array_equal(again, first)
    chance = rate**2 + (1 - rate) ** 2
    deviation = np.sqrt(chance * (1 - chance) / first.size)
    for other in (other_step, other_layer, dropped(step_rng(1, 5, 0))):
        assert abs(np.mean(first == other) - chance) < 5 * deviation
    model = make_model(dropout=0.1)
    use_device_generator(model)
    assert all(layer.fast for layer in model._flatten_layers() if isinstance(layer, Dropout))


def test_half_precision_and_gradient():
    """The dtype stays, and what was dropped has no gradient."""
    x = tf.ones([64, 4], tf.bfloat16)
    layer = Dropout(0.5, dtype="bfloat16")
    with tf.GradientTape() as tape:
        tape.watch(x)
        result = layer(x, step_rng(1, 2, 3))
    assert result.dtype == tf.bfloat16
    np.testing.assert_array_equal(
        tf.cast(tape.gradient(result, x), tf.float32), tf.cast(result, tf.float32)
    )
    assert set(tf.cast(result, tf.float32).numpy().flat) == {0.0, 2.0}


def test_every_layer_of_a_model_has_its_own_stream(make_model):
    """2 after the embeddings; 2 + 2 in an encoder layer and 3 + 3 in a decoder layer."""
    model = make_model(
        encoder_layers=2,
        decoder_layers=2,
        dropout=0.1,
        attention_dropout=0.1,
        activation_dropout=0.1,
    )
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, Dropout)]
    assert sorted(layer.stream for layer in layers) == list(range(2 + 2 * 4 + 2 * 6))
    streams = [layer.stream for layer in layers]
    number_dropouts(model)
    assert [layer.stream for layer in layers] == streams


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_impossible_rates(rate):
    with pytest.raises(ValueError, match="a dropout rate is in"):
        Dropout(rate)


def test_the_highest_rate_allowed():
    """A rate just below 1 drops almost everything, and divides by nothing."""
    result = Dropout(0.999)(tf.ones(SHAPE), step_rng(1, 2, 3)).numpy()
    assert np.isfinite(result).all()
    assert 0.99 < np.mean(result == 0) < 1
