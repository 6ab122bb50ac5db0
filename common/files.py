"""Helpers for files, local and remote (`gs://`) alike."""

import contextlib
import hashlib
import io
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from common.console import error_text
from common.errors import UsageError

_BLOCK_BYTES = 1 << 20
_TEMPORARY = "_incomplete-"
_ATTEMPTS = 6
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds


def passing_errors() -> tuple[type[Exception], ...]:
    """Return the errors of storage that may be gone at the next start.

    TensorFlow raises them for a gs:// that does not answer, after it has tried ten times.
    """
    from tensorflow import errors

    return errors.UnavailableError, errors.AbortedError, errors.DeadlineExceededError


@contextlib.contextmanager
def storage_errors(problem: str, cure: str = "") -> Iterator[None]:
    """Make one line of what storage refuses; errors that may pass go through.

    Args:
        problem: what cannot be done, such as "data/demo cannot be written".
        cure: how to mend it, where the reason that storage gives does not say enough.

    Raises:
        UsageError: with the problem, the reason and the cure.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError):
            from tensorflow import errors  # only now: a command without TensorFlow reads files too

            if isinstance(error, passing_errors()) or not isinstance(error, errors.OpError):
                raise
        reason = getattr(error, "strerror", None) or error_text(error)
        raise UsageError(f"{problem}: {reason}{'; ' if cure else ''}{cure}") from error


def is_refusal(error: Exception) -> bool:
    """Return whether TensorFlow may not use a path, or does not know its kind, such as s3://."""
    from tensorflow import errors

    if isinstance(error, errors.UnimplementedError):
        return error.message.startswith("File system scheme")
    return isinstance(error, errors.PermissionDeniedError | errors.UnauthenticatedError)


class _RawFile(io.RawIOBase):
    """Adapt a file of `tf.io.gfile` to Python's io classes."""

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
    """Open a file for reading bytes.

    GFile's own readline drops every carriage return; this reader gives the lines as they are.
    The caller closes it. Reading raises `tf.errors.OpError` if the file cannot be read.
    """
    return io.BufferedReader(_RawFile(path), _BLOCK_BYTES)


def sha256(path: str) -> str:
    """Return the SHA-256 of a file's bytes as a hexadecimal string."""
    from tensorflow.io import gfile

    digest = hashlib.sha256()
    with gfile.GFile(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_bytes(path: str) -> bytes:
    """Return the content of a file."""
    from tensorflow.io import gfile

    with gfile.GFile(path, "rb") as file:
        return file.read()


def write_bytes(path: str, content: bytes, *, alone: bool = False) -> None:
    """Write a file under a temporary name beside `path`, then rename it.

    Args:
        path: the file; what is there is replaced.
        content: its bytes.
        alone: whether no other process writes this file. The temporary name is then always
            PATH.incomplete, so that the next start overwrites what a killed process has left.
    """
    from tensorflow import errors
    from tensorflow.io import gfile

    temporary = f"{path}.incomplete" if alone else temporary_name(path)
    try:
        with gfile.GFile(temporary, "wb") as file:
            file.write(content)
        gfile.rename(temporary, path, overwrite=True)
    except errors.OpError:
        with contextlib.suppress(errors.OpError):
            gfile.remove(temporary)
        raise


def write_json(path: str, value: Any) -> None:
    """Write `value` as JSON, as `write_bytes` does."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def open_input(path: str) -> BinaryIO:
    """Open the file that --input names, for reading bytes; it has a descriptor.

    A remote file is copied to this machine first.

    Raises:
        UsageError: when it cannot be read.
    """
    with storage_errors(f"--input={path} cannot be read"):
        if "://" not in path:
            return open(path, "rb")
        content = read_bytes(path)
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    copy.write(content)
    copy.seek(0)
    return copy


def check_output(path: str) -> None:
    """Check early that `write_output` can write the file that --output names.

    Raises:
        UsageError: when `path` is empty or a directory, or nothing can be written beside it.
    """
    from tensorflow.io import gfile

    if not path or gfile.isdir(path):
        raise UsageError(f"--output={path} is {'a directory' if path else 'empty'}; name a file")
    if "://" in path or (os.path.exists(path) and not os.path.isfile(path)):  # a device or a pipe
        return
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise UsageError(f"--output={path}: its directory does not exist; make it first")
    with (
        storage_errors(f"--output={path} cannot be written"),
        tempfile.TemporaryFile(dir=directory),
    ):
        pass


def write_output(path: str, content: bytes) -> None:
    """Write the file that --output names, as `write_bytes` does.

    A device or a pipe is not replaced, but written to.

    Raises:
        UsageError: when it cannot be written.
    """
    with storage_errors(f"--output={path} cannot be written"):
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "wb") as file:
                file.write(content)
        else:
            write_bytes(path, content)


def read_json(path: str) -> Any:
    """Return the value of a JSON file."""
    return json.loads(read_bytes(path).decode("utf-8"))


def temporary_name(path: str) -> str:
    """Return a name beside `path` for a file that is being written.

    The name is different on every call: a Beam runner may run the same work twice at a time.
    """
    directory, name = os.path.split(path)
    return os.path.join(directory, f"{_TEMPORARY}{os.urandom(6).hex()}-{name}")


def is_temporary(name: str) -> bool:
    """Return whether `temporary_name` has given this file name."""
    return name.startswith(_TEMPORARY)


def exists(path: str) -> bool:
    """Return whether there is such a file or directory."""
    from tensorflow.io import gfile

    return gfile.exists(path)


def remove(path: str) -> None:
    """Delete a file, if there is one.

    On an object store, a file whose deletion got no answer still seems to exist for 5 s.
    """
    from tensorflow import errors
    from tensorflow.io import gfile

    with contextlib.suppress(errors.NotFoundError):
        gfile.remove(path)


def remove_tree(directory: str) -> None:
    """Delete a directory and everything in it, if there is one.

    `gfile.rmtree` is not enough on an object store: when a single request fails, it reports that
    there is no such directory, or reports nothing and leaves files behind.
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
    """Yield the lines of a UTF-8 file that this job has written; only "\\n" ends a line."""
    with open_binary(path) as file:
        for line in file:
            yield line.decode().removesuffix("\n")


def join(paths: Sequence[str], path: str) -> None:
    """Write the contents of `paths`, one after the other, to `path`."""
    from tensorflow.io import gfile

    with gfile.GFile(path, "wb") as out:
        out.write(b"")  # creates the file even if nothing follows
        for part in paths:
            out.write(read_bytes(part))


def _pause(attempt: int) -> None:
    """Wait longer after each attempt; at random, so that many workers do not come at once."""
    time.sleep(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.0))


def list_names(directory: str) -> list[str]:
    """Return the names in a directory, in any order, without a slash at the end.

    TensorFlow's gs:// client repeats a request that fails. But when it looks whether a path is a
    directory, it takes any failure for "no": its `listdir` says that a bucket which does not answer
    does not exist.

    Args:
        directory: local or remote; one that does not exist holds no names.

    Raises:
        tf.errors.OpError: when the answer is not known. `NotFoundError` if the directory exists
            but cannot be listed.
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
            # On a disk this does not pass: a file of that name stands there, for example.
            if "://" not in directory or attempt == _ATTEMPTS - 1:
                raise
        _pause(attempt)
    raise AssertionError  # the last attempt returns or raises
