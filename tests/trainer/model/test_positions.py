"""Positions, segments and masks: the worked examples of the docstrings, and the paper's formula."""

import numpy as np
import tensorflow as tf

from trainer.model import encodings, positions

TOKENS = tf.constant([[5, 6, 3, 7, 8, 9, 3, 0, 0]])
SEGMENTS = tf.constant([[1, 1, 1, 2, 2, 2, 2, 0, 0]])
POSITIONS = [[0, 1, 2, 0, 1, 2, 3, 0, 1]]
SHIFTED = [[2, 5, 6, 2, 7, 8, 9, 0, 0]]


def test_positions_in_segments():
    np.testing.assert_array_equal(positions.positions_in_segments(SEGMENTS), POSITIONS)
    unpacked = tf.constant([[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    expected = [[0, 1, 2, 0], [0, 1, 2, 3], [0, 1, 2, 3]]
    np.testing.assert_array_equal(positions.positions_in_segments(unpacked), expected)


def test_shift_right():
    np.testing.assert_array_equal(positions.shift_right(TOKENS, SEGMENTS, bos_id=2), SHIFTED)
    tokens = tf.constant([[3, 9, 3, 3], [0, 0, 0, 0], [4, 5, 6, 3]])
    segments = tf.constant([[1, 2, 2, 3], [0, 0, 0, 0], [1, 1, 1, 1]])
    expected = [[7, 7, 9, 7], [0, 0, 0, 0], [7, 4, 5, 6]]
    np.testing.assert_array_equal(positions.shift_right(tokens, segments, bos_id=7), expected)


def test_sinusoidal_is_the_papers_formula():
    """PE(pos, 2i) = sin(pos / 10000^(2i / D)), PE(pos, 2i + 1) = cos of it: columns permuted."""
    width = 12
    pos = np.array([[0, 1, 2, 50], [3, 499, 1000, 4000]])
    angle = pos[..., np.newaxis] / 10_000.0 ** (np.arange(0, width, 2) / width)
    paper = np.zeros([*pos.shape, width])
    paper[..., 0::2], paper[..., 1::2] = np.sin(angle), np.cos(angle)
    permuted = np.concatenate([paper[..., 0::2], paper[..., 1::2]], axis=-1)
    result = encodings.sinusoidal_positions(tf.constant(pos), width)
    assert result.dtype == tf.float32
    np.testing.assert_allclose(result[0], permuted[0], atol=5e-6)
    np.testing.assert_allclose(result[1], permuted[1], atol=5e-4)  # float32 of a large angle


def test_causal_mask():
    expected = [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    np.testing.assert_array_equal(positions.causal_mask(3)[0, 0], np.array(expected, bool))


def test_same_segment_mask():
    """Each sentence sees itself; padding sees padding, and nothing else sees it."""
    mask = positions.same_segment_mask(tf.constant([[1, 2, 2, 0]]), tf.constant([[1, 1, 2, 0, 0]]))
    expected = [[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1]]
    assert mask.shape == (1, 1, 4, 5)
    np.testing.assert_array_equal(mask[0, 0], np.array(expected, bool))
