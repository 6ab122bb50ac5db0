"""Suppress the notices that TensorFlow prints when it is imported.

It prints lines about oneDNN and CUDA, whatever the environment variables of its log say.
"""

import contextlib
import importlib.abc
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import IO

# Every run reports by itself whether there is a GPU to train on.
_NOTICES = r"absl::InitializeLog\(\)|oneDNN custom operations are on|Could not find cuda drivers"


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            execute = _without_notices(spec.loader.exec_module)
            spec.loader.exec_module = execute  # type: ignore[assignment, method-assign]
        return spec


def drop_notices() -> None:
    """Leave `_NOTICES` out of standard error while TensorFlow is imported, whenever that is."""
    if "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


def _without_notices(execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def execute_filtered(module: ModuleType) -> None:
        if not shutil.which("grep"):
            return execute(module)
        # Another process drops the lines, so that the last words of a crash get out.
        command = ["grep", "-vE", _NOTICES]
        with (
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2) as process,
            _errors_to(process.stdin),
        ):
            execute(module)

    return execute_filtered


@contextlib.contextmanager
def _errors_to(pipe: IO[bytes] | None) -> Iterator[None]:
    assert pipe
    kept = os.dup(2)
    os.dup2(pipe.fileno(), 2)
    pipe.close()
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
