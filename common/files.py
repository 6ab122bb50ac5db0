"""Small file helpers for local and remote (`gs://`) paths alike."""

import contextlib
import hashlib
import io
import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

_BLOCK_BYTES = 1 << 20
_TEMPORARY = "_incomplete-"
_ATTEMPTS = 6
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds


def passing_errors() -> tuple[type[Exception], ...]:
    """Errors of storage that may be gone at the next start: TensorFlow's, for a gs:// that does not
    answer, after it has tried ten times."""
    from tensorflow import errors

    return errors.UnavailableError, errors.AbortedError, errors.DeadlineExceededError


class _RawFile(io.RawIOBase):
    """A file of `tf.io.gfile` as Python's io classes want it."""

    def __init__(self, path: str):
        from tensorflow.io import gfile

        self._file = gfile.GFile(path, "rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # Buffer is 3.12+
        block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_binary(path: str) -> io.BufferedReader:
    """Opens a file for reading bytes.

    Unlike GFile, whose readline takes away every carriage return, it gives the lines as they are.

    Args:
        path: the file, local or remote.

    Returns:
        A reader, to be closed. Reading raises `tf.errors.OpError` if the file cannot be read.
    """
    return io.BufferedReader(_RawFile(path), _BLOCK_BYTES)


def sha256(path: str) -> str:
    """Returns the SHA-256 of a file's bytes as a hexadecimal string."""
    from tensorflow.io import gfile

    digest = hashlib.sha256()
    with gfile.GFile(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_bytes(path: str) -> bytes:
    """Returns the content of a file."""
    from tensorflow.io import gfile

    with gfile.GFile(path, "rb") as file:
        return file.read()


def write_bytes(path: str, content: bytes) -> None:
    """Writes a file under a temporary name beside `path` and renames it."""
    from tensorflow.io import gfile

    temporary = temporary_name(path)
    with gfile.GFile(temporary, "wb") as file:
        file.write(content)
    gfile.rename(temporary, path, overwrite=True)


def write_json(path: str, value: Any) -> None:
    """Writes `value` as JSON, as `write_bytes` does."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def read_json(path: str) -> Any:
    """Returns the value of a JSON file."""
    return json.loads(read_bytes(path).decode("utf-8"))


def temporary_name(path: str) -> str:
    """Returns a name beside `path` for a file that is being written.

    A Beam runner may run the same work twice at a time, so the name is different on every call.
    """
    directory, name = os.path.split(path)
    return os.path.join(directory, f"{_TEMPORARY}{os.urandom(6).hex()}-{name}")


def is_temporary(name: str) -> bool:
    """Whether a file's name is one of `temporary_name`."""
    return name.startswith(_TEMPORARY)


def exists(path: str) -> bool:
    """Whether there is such a file or directory."""
    from tensorflow.io import gfile

    return gfile.exists(path)


def remove(path: str) -> None:
    """Deletes a file, if there is one.

    On an object store, what was deleted while the answer was lost seems to be there for 5 s more.
    """
    from tensorflow import errors
    from tensorflow.io import gfile

    with contextlib.suppress(errors.NotFoundError):
        gfile.remove(path)


def remove_tree(directory: str) -> None:
    """Deletes a directory with all that is in it, if there is one.

    `gfile.rmtree` does not do on an object store: where a single request fails it says that there
    is no such directory, or says nothing and leaves files behind.
    """
    from tensorflow import errors
    from tensorflow.io import gfile

    with contextlib.suppress(errors.NotFoundError):
        if "://" not in directory:
            gfile.rmtree(directory)
            return
        for name in gfile.listdir(directory):
            path = os.path.join(directory, name)
            if name.endswith("/"):
                remove_tree(path.rstrip("/"))
            else:
                remove(path)
        remove(f"{directory}/")  # the object that stands for a directory


def read_lines(path: str) -> Iterator[str]:
    """Yields the lines of a UTF-8 file that this job has written; only "\\n" ends a line."""
    with open_binary(path) as file:
        for line in file:
            yield line.decode().removesuffix("\n")


def join(paths: Sequence[str], path: str) -> None:
    """Writes the contents of files one after the other."""
    from tensorflow.io import gfile

    with gfile.GFile(path, "wb") as out:
        out.write(b"")  # makes the file also if nothing follows
        for part in paths:
            out.write(read_bytes(part))


def _pause(attempt: int) -> None:
    """Waits longer after each attempt; at random, so that many workers do not come at once."""
    time.sleep(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.0))


def list_names(directory: str) -> list[str]:
    """Names in a directory, without a slash at the end.

    TensorFlow's gs:// client repeats a request that fails, but to tell whether a path is a
    directory it turns any failure into "no": its `listdir` says of a bucket that does not answer
    that there is no such directory.

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
