"""Dropout as a pure function of a seed.

Keras' own Dropout keeps its seed in a variable: every replica of a mirrored strategy reads the
same one and so draws the same mask, and the variable is not in a checkpoint. Here the mask is a
function of (seed, step, replica, layer), and of nothing else: replicas differ, and a resumed run
draws what the uninterrupted one would have drawn.

Two generators make the bits. Philox gives the same ones on every device and under every compiler.
XLA's default generator is the TPU's own, several times faster there; it gives the same bits on the
same kind of device under the same version of the compiler.
"""

import math

import keras
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops


def step_rng(seed: int, step: tf.Tensor, replica: tf.Tensor | int) -> tf.Tensor:
    """Return the seed of all dropout in one step on one replica.

    Returns:
        int32 [2].
    """
    rng = tf.constant([seed, 0], tf.int32)
    for number in (step, replica):
        rng = tf.random.experimental.stateless_fold_in(rng, tf.cast(number, tf.int32), alg="philox")
    return rng


class Dropout(keras.layers.Layer):
    """Set a share of the values to zero and scale the others up to keep the expectation.

    One random byte decides a value, a quarter of the random bits of a float32 draw, so the rate
    is rounded to a 256th; the scale uses the rounded rate and the expectation stays exact.

    Args:
        rate: share of values to drop, in [0, 1).
    """

    def __init__(self, rate: float, **kwargs):
        super().__init__(autocast=False, **kwargs)  # attention's weights are float32
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"a dropout rate is in [0, 1), not {rate}")
        self.drop_below = min(255, round(rate * 256))
        self.stream = 0  # set by number_dropouts
        self.fast = False  # set by use_device_generator
        self.built = True

    def call(self, x: tf.Tensor, rng: tf.Tensor | None) -> tf.Tensor:
        """Drop values of `x`, of any shape and float dtype; none if `rng`, int32 [2], is None."""
        if rng is None or self.drop_below == 0:
            return x
        if self.fast:
            keep = self._device_bytes(tf.shape(x), rng) >= self.drop_below
        else:
            keep = self._philox_bytes(x, rng) >= self.drop_below
        return tf.where(keep, x * (256.0 / (256 - self.drop_below)), tf.zeros([], x.dtype))

    def _philox_bytes(self, x: tf.Tensor, rng: tf.Tensor) -> tf.Tensor:
        """Return random bytes of the shape of `x`."""
        shape, static = tf.shape(x), x.shape.as_list()
        # With a static shape the byte count is a Python number, as XLA wants it.
        size = math.prod(static) if None not in static else tf.reduce_prod(shape)
        seed = tf.stack([rng[0] + self.stream, rng[1]])
        words = tf.random.stateless_uniform(
            [(size + 3) // 4], seed, None, None, tf.uint32, alg="philox"
        )
        random_bytes = tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:size]  # [size]
        return tf.reshape(random_bytes, shape)

    def _device_bytes(self, shape: tf.Tensor, rng: tf.Tensor) -> tf.Tensor:
        """Return random bytes of a shape from XLA's default generator."""
        # Folded in, not added: nearby states of an unknown generator might give similar bits.
        own = tf.random.experimental.stateless_fold_in(rng, self.stream, alg="philox")
        state = tf.bitcast(tf.stack([own, rng]), tf.uint64)  # [2]
        _, random_bytes = gen_xla_ops.xla_rng_bit_generator(
            algorithm=tf.random.Algorithm.AUTO_SELECT.value,
            initial_state=state,
            shape=shape,
            dtype=tf.uint8,
        )
        return random_bytes


def number_dropouts(model: keras.Model) -> None:
    """Give every Dropout of `model` its own stream of random numbers, in the order of layers."""
    for stream, layer in enumerate(_dropouts(model)):
        layer.stream = stream


def use_device_generator(model: keras.Model) -> None:
    """Let every Dropout of `model` draw from XLA's default generator; for compiled steps only."""
    for layer in _dropouts(model):
        layer.fast = True


def _dropouts(model: keras.Model) -> list[Dropout]:
    return [layer for layer in model._flatten_layers() if isinstance(layer, Dropout)]
