"""How a model learns where a token stands: what `model.positions` and `attention_window` name.

Axis letters: B batch, L length, Q query length, K key length, N heads, H size of a head, D width.
"""

import math
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from configs.schema import ModelConfig
from trainer.model.positions import ancestor_mask

_BUCKETS, _MAX_DISTANCE = 32, 128  # T5's


@dataclass(frozen=True)
class Sight:
    """What attention is told about positions.

    A dataclass, so that Keras treats it as one object and casts none of its tensors.

    Attributes:
        mask: bool, broadcastable to [B, N, Q, K]; True where a query may look.
        bias: float32 [1, N, Q, K], added to the logits; None for none.
        rotation: float32 [2, Q, H / 2], cosines and sines for the queries, and for keys of the same
            positions; None for none.
    """

    mask: tf.Tensor
    bias: tf.Tensor | None = None
    rotation: tf.Tensor | None = None


class PositionEncoding(keras.layers.Layer):
    """Tell one stack of layers about positions, in the way that the configuration names.

    Absolute encodings are added to the embeddings and count from the start of each segment. The
    relative ones act in self-attention and count along the row: between two tokens of a segment the
    distance is the same.

    Args:
        config: of the model.
        causal: whether the stack sees only what is before a position.
    """

    def __init__(self, config: ModelConfig, *, causal: bool, **kwargs):
        super().__init__(**kwargs)
        self.config, self.causal = config, causal
        if config.positions == "learned":
            self.table = self.add_weight(
                name="positions",
                shape=[config.max_positions, config.width],
                initializer=keras.initializers.RandomNormal(stddev=config.width**-0.5),
            )
        if config.positions == "t5":
            self.biases = self.add_weight(
                name="biases",
                shape=[_BUCKETS, config.heads],
                initializer=keras.initializers.RandomNormal(stddev=1.0),
                autocast=False,  # float32 in every precision, as the logits are
            )
        self.built = True

    def add_to(self, x: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        """Add the absolute encoding, if there is one.

        Args:
            x: [B, L, D], scaled embeddings.
            positions: int32 [B, L], in their segments.

        Returns:
            [B, L, D].
        """
        width = self.config.width
        if self.config.positions == "sinusoidal":
            return x + tf.cast(sinusoidal_positions(positions, width), x.dtype)
        if self.config.positions == "learned":
            # Radford et al. 2018; scaled like the embeddings. Beyond the table: its last row.
            rows = tf.minimum(positions, self.config.max_positions - 1)
            return x + tf.cast(tf.gather(self.table, rows), x.dtype) * width**0.5
        return x

    def sight(self, mask: tf.Tensor, queries: tf.Tensor, keys: tf.Tensor) -> Sight:
        """Return what self-attention sees.

        Args:
            mask: bool, broadcastable to [B, N, Q, K]: segments and, in a decoder, causality.
            queries: int32 [Q], the places of the queries in the row.
            keys: int32 [K], the places of the keys.
        """
        config = self.config
        distance = keys - queries[:, tf.newaxis]  # [Q, K], negative for what is before
        if config.attention_window:
            # Beltagy et al. 2020, Longformer, section 3.1.
            mask &= tf.abs(distance) <= config.attention_window
        bias, rotation = None, None
        if config.positions == "t5":
            buckets = t5_buckets(distance, two_sided=not self.causal)  # [Q, K]
            bias = tf.gather(self.biases.value, buckets)  # [Q, K, N]
            bias = tf.transpose(bias, [2, 0, 1])[tf.newaxis]  # [1, N, Q, K]
        if config.positions == "alibi":
            slopes = tf.constant(alibi_slopes(config.heads), tf.float32)[:, tf.newaxis, tf.newaxis]
            bias = -slopes * tf.cast(tf.abs(distance), tf.float32)  # [N, Q, K]
            bias = bias[tf.newaxis]  # [1, N, Q, K]
        if config.positions == "rotary":
            rotation = rotary_angles(queries, config.width // config.heads)  # [2, Q, H / 2]
        return Sight(mask, bias, rotation)

    def step_sight(
        self,
        size: tf.Tensor,
        position: tf.Tensor,
        beams: tf.Tensor | int,
        ancestors: tf.Tensor | None = None,
    ) -> Sight:
        """Return what K hypotheses see at one position, of a cache; see `TransformerLayer.step`.

        Args:
            size: T * K, the entries of the cache.
            position: int32 scalar, the last position that is filled.
            beams: K.
            ancestors: see `trainer.model.positions.ancestor_mask`.
        """
        mask = ancestor_mask(size, position, ancestors)  # [B or 1, 1, K, T * K]
        return self.sight(mask, tf.fill([beams], position), tf.range(size) // beams)


def sinusoidal_positions(positions: tf.Tensor, width: int) -> tf.Tensor:
    """Return sines and cosines of geometrically spaced wave lengths (Vaswani et al. 2017, 3.5).

    The first half of the vector holds the sines and the second half the cosines, which is the
    paper's interleaved layout with its columns permuted.

    Args:
        positions: int32 [B, L], any length: nothing is tabulated.
        width: D, an even number.

    Returns:
        float32 [B, L, D].
    """
    half = width // 2
    wave = tf.exp(tf.range(half, dtype=tf.float32) * (-math.log(10_000.0) / half))  # [D/2]
    angle = tf.cast(positions, tf.float32)[..., tf.newaxis] * wave  # [B, L, D/2]
    return tf.concat([tf.sin(angle), tf.cos(angle)], axis=-1)  # [B, L, D]


def rotary_angles(places: tf.Tensor, size: int) -> tf.Tensor:
    """Return the cosines and sines of rotary embeddings (Su et al. 2021, RoFormer, 3.2.2).

    Args:
        places: int32 [L].
        size: H, an even number.

    Returns:
        float32 [2, L, H / 2].
    """
    half = size // 2
    wave = tf.exp(tf.range(half, dtype=tf.float32) * (-math.log(10_000.0) / half))  # [H/2]
    angle = tf.cast(places, tf.float32)[:, tf.newaxis] * wave  # [L, H/2]
    return tf.stack([tf.cos(angle), tf.sin(angle)])  # [2, L, H/2]


def rotate(x: tf.Tensor, rotation: tf.Tensor) -> tf.Tensor:
    """Turn each pair of numbers of a head by its angle; a pair is (i, i + H / 2).

    The paper pairs neighbours: the same with the columns permuted. The product of a rotated query
    and a rotated key depends on their distance alone.

    Args:
        x: [B, N, L, H].
        rotation: of `rotary_angles`, [2, L, H / 2].

    Returns:
        [B, N, L, H] in the dtype of `x`.
    """
    first, second = tf.split(tf.cast(x, tf.float32), 2, axis=-1)  # [B, N, L, H/2] each
    cosine, sine = rotation[0], rotation[1]  # [L, H/2]
    turned = [first * cosine - second * sine, first * sine + second * cosine]
    return tf.cast(tf.concat(turned, axis=-1), x.dtype)  # [B, N, L, H]


def t5_buckets(distance: tf.Tensor, *, two_sided: bool) -> tf.Tensor:
    """Return the bucket of each distance (Raffel et al. 2020, T5, section 2.1), of 32.

    Small distances have a bucket each, larger ones share buckets whose borders grow like a
    geometric series, and all from 128 on share the last. An encoder has half of the buckets for
    either side.

    Args:
        distance: int32, any shape: place of the key minus place of the query.
        two_sided: whether keys after the query are seen.

    Returns:
        int32 of the same shape, in [0, 32).
    """
    buckets = _BUCKETS // 2 if two_sided else _BUCKETS
    exact = buckets // 2
    far = np.arange(exact, _MAX_DISTANCE + 1)
    share = np.log(far / exact) / np.log(_MAX_DISTANCE / exact)
    far = exact + np.floor(share * (buckets - exact) + 1e-9).astype(np.int32)
    table = np.concatenate([np.arange(exact), np.minimum(far, buckets - 1)]).astype(np.int32)
    away = tf.abs(distance) if two_sided else tf.maximum(-distance, 0)
    bucket = tf.gather(tf.constant(table), tf.minimum(away, _MAX_DISTANCE))
    return bucket + buckets * tf.cast(distance > 0, tf.int32) if two_sided else bucket


def alibi_slopes(heads: int) -> list[float]:
    """Return the slope of each head (Press et al. 2022, Train Short, Test Long, section 3).

    A geometric series from 2^(-8 / N) down to 2^-8. Where N is no power of two, the series of the
    next smaller one, and then every other slope of the series twice as long.
    """
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-4 * (i + 1) / power) for i in range(0, 2 * power, 2)]
    return slopes + between[: heads - power]
