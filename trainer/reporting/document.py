"""Model directories in, one HTML file out."""

import os
from collections.abc import Sequence

from common import files
from common.errors import UsageError
from trainer.reporting.page import render
from trainer.reporting.records import names_of, read_run


def make_report(directories: Sequence[str], output: str) -> list[str]:
    """Write the report on the runs of some model directories.

    Args:
        directories: of the runs, local or remote, each once.
        output: the file to write; it is replaced if it is there.

    Returns:
        The names that the report gives the runs.

    Raises:
        UsageError: a directory is no model directory, or the file cannot be written.
    """
    names = names_of(directories)
    runs = [read_run(path, name) for path, name in zip(directories, names, strict=True)]
    _write(output, render(runs))
    return names


def _write(path: str, text: str) -> None:
    """Write the page under a temporary name and rename it."""
    if "://" in path:
        files.write_bytes(path, text.encode("utf-8"))
        return
    temporary = files.temporary_name(path)
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise UsageError(f"--output={path} cannot be written: {error.strerror}") from error
