"""What the process of every command needs before TensorFlow or Keras is imported.

Packages with commands call `prepare` when they are imported, so it comes first.
"""

import os

from common.console import keep_descriptors


def prepare() -> None:
    """Keep the standard descriptors, and choose Keras' backend, over any setting of the user."""
    keep_descriptors()
    os.environ["KERAS_BACKEND"] = "tensorflow"
