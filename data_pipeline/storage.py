"""Listing directories of object stores, which TensorFlow's gs:// client gets wrong.

The client repeats a request that fails, but to tell whether a path is a directory it turns any
failure into "no". So `tf.io.gfile.listdir` says of a bucket that does not answer that there is no
such directory.
"""

import random
import time

from data_pipeline.files import exists

_ATTEMPTS = 6
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds


def _pause(attempt: int) -> None:
    """Waits longer after each attempt; at random, so that many workers do not come at once."""
    time.sleep(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.0))


def list_names(directory: str) -> list[str]:
    """Names in a directory, without a slash at the end.

    Args:
        directory: local or remote.

    Returns:
        the names, in any order; none if there is no such directory.

    Raises:
        tf.errors.OpError: it cannot be told what is there. `NotFoundError` if the directory
            exists and yet cannot be listed.
    """
    from tensorflow import errors
    from tensorflow.io import gfile

    for attempt in range(_ATTEMPTS):
        try:
            return [name.rstrip("/") for name in gfile.listdir(directory)]
        except errors.NotFoundError:
            # Unlike the listing, this fails where the answer is not known.
            if not exists(directory):
                return []
            # On a disk this is no passing thing: a file stands there, say.
            if "://" not in directory or attempt == _ATTEMPTS - 1:
                raise
        _pause(attempt)
    raise AssertionError  # the last attempt returns or raises
