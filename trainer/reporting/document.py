"""Model directories in, one HTML file out."""

from collections.abc import Sequence

from common.files import check_output, write_output
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
    check_output(output, "output")
    names = names_of(directories)
    runs = [read_run(path, name) for path, name in zip(directories, names, strict=True)]
    write_output(output, render(runs).encode("utf-8", "backslashreplace"), "output")
    return names
