"""Check the devices of this machine: a matrix product with a known result, and a sweep of memory.

    python -m trainer.check_machine
    python -m trainer.check_machine --multiply_seconds=60 --memory_mib=4096

A processor or memory that gives wrong numbers raises no error. Every device multiplies two matrices
of small whole numbers, whose product is exact in any order and precision, again and again; then
memory is filled with patterns and read. launch.local --check_machine does so on each worker first.

Exit codes: 0 all is well; 1 a device computes or keeps wrong numbers.
"""

import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import flags

from common.errors import RetryError, no_arguments, run_app

_SIZE = 1024  # rows and columns of the matrices
_PERIOD = 17  # of their numbers, -8 to 8: sums stay below 2**17, and are exact as float32
_CHUNK = 2**24  # int32 numbers: 64 MiB
_PATTERNS = (0x00000000, 0x55555555, 0x2AAAAAAA, 0x7FFFFFFF)

_SECONDS = flags.DEFINE_float(
    "multiply_seconds", 2.0, "Time to multiply on each device.", lower_bound=0.0
)
_MEMORY = flags.DEFINE_integer("memory_mib", 256, "Memory to sweep on each device.", lower_bound=0)


def main(argv: list[str]) -> None:
    """Check all devices of this process; print a line for each."""
    no_arguments(argv)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    for device in devices:
        with tf.device(device.name):
            times = multiply(_SECONDS.value)
            chunks = -(-_MEMORY.value * 2**20 // (4 * _CHUNK))
            sweep(chunks)
        print(
            f"{device.name}: {times} products exact, {chunks * 64} MiB keep what was written",
            flush=True,
        )


def multiply(seconds: float, product: Callable = tf.linalg.matmul) -> int:
    """Multiply the matrices for so long, at least once; return how often.

    Raises:
        RetryError: a number was wrong.
    """
    row, column = np.indices((_SIZE, _SIZE))
    left = (row + column) % _PERIOD - _PERIOD // 2
    right = (3 * row + column) % _PERIOD - _PERIOD // 2
    # Rows of the result repeat with the period, and so do columns.
    known = (left[:_PERIOD] @ right[:, :_PERIOD])[row % _PERIOD, column % _PERIOD]
    left, right, known = (tf.constant(one, tf.float32) for one in (left, right, known))
    times, end = 0, time.monotonic() + seconds
    while not times or time.monotonic() < end:
        wrong = tf.where(product(left, right) != known)
        if len(wrong):
            place = tuple(map(int, wrong[0]))
            raise RetryError(
                f"{left.device}: {len(wrong)} numbers of a matrix product are wrong, the first at "
                f"{place}; leave this machine out"
            )
        times += 1
    return times


def sweep(chunks: int, keep: Callable = tf.identity) -> None:
    """Fill chunks of 64 MiB with patterns, and read them after all are filled.

    Raises:
        RetryError: a number has changed.
    """
    places = tf.range(_CHUNK)
    for pattern in _PATTERNS if chunks else ():
        filled = [keep(tf.bitwise.bitwise_xor(places, pattern)) for _ in range(chunks)]
        for chunk in filled:
            changed = tf.where(tf.bitwise.bitwise_xor(chunk, pattern) != places)
            if len(changed):
                raise RetryError(
                    f"{chunk.device}: memory has changed {len(changed)} numbers of the pattern "
                    f"{pattern:#010x}; leave this machine out"
                )


if __name__ == "__main__":
    run_app(main)
