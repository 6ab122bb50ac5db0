"""Devices that compute or keep wrong numbers, planted."""

import pytest
import tensorflow as tf

from common.errors import RetryError
from trainer import check_machine


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(check_machine, "_SIZE", 64)
    monkeypatch.setattr(check_machine, "_CHUNK", 1000)


def flip(tensor, place, bit):
    """The tensor with one bit of one number flipped."""
    flat = tf.bitcast(tf.reshape(tensor, [-1]), tf.int32)
    mask = tf.one_hot(place, tf.size(flat), 1 << bit, 0, dtype=tf.int32)
    return tf.reshape(tf.bitcast(tf.bitwise.bitwise_xor(flat, mask), tensor.dtype), tensor.shape)


def test_a_good_machine():
    assert check_machine.multiply(0.0) == 1
    check_machine.sweep(2)


def test_the_product_is_exact_in_bfloat16():
    """Numbers of bfloat16, summed in float32, as accelerators do."""

    def product(left, right):
        left, right = (tf.cast(tf.cast(one, "bfloat16"), tf.float32) for one in (left, right))
        return tf.linalg.matmul(left, right)

    assert check_machine.multiply(0.0, product) == 1


def test_a_flipped_bit_in_a_product_is_found():
    with pytest.raises(RetryError, match=r"1 numbers of a matrix product .* at \(2, 5\)"):
        check_machine.multiply(0.0, lambda a, b: flip(tf.linalg.matmul(a, b), 2 * 64 + 5, 3))


@pytest.mark.parametrize("bit", [0, 17, 30])
def test_a_flipped_bit_in_memory_is_found(bit):
    with pytest.raises(RetryError, match="memory has changed 1 numbers of the pattern 0x0"):
        check_machine.sweep(1, lambda chunk: flip(chunk, 999, bit))
