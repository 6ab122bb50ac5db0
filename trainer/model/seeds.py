"""Initial weights that follow from a seed alone."""

import contextlib
import random
from collections.abc import Iterator

import keras
from keras.src.random import seed_generator


@contextlib.contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Let a model that is built meanwhile get the initial weights of a seed.

    Keras draws the seeds of its initializers from Python's generator, which is everybody's: a
    thread that still prepares data, or waits to repeat a request, may draw from it meanwhile.
    """
    keras.utils.set_random_seed(seed)
    shared = seed_generator.python_random
    seed_generator.python_random = random.Random(seed)
    try:
        yield
    finally:
        seed_generator.python_random = shared
