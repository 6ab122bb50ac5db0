"""Run a command in this process, which saves the seconds that its imports take."""

import io
import os
import runpy
import sys
import warnings
from unittest import mock

from absl import app, flags


def run_command(module: str, *arguments: str) -> tuple[int, str, str]:
    """Run `python -m module arguments`, with nothing on standard input.

    Returns:
        The exit code, standard output and standard error.
    """
    app.define_help_flags()
    before = set(flags.FLAGS)
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code: int | str = 0
    try:
        with (
            open(os.devnull) as stdin,
            mock.patch.multiple(
                sys, argv=[module, *arguments], stdin=stdin, stdout=out, stderr=err
            ),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", RuntimeWarning)  # the test may have imported the module
            try:
                runpy.run_module(module, run_name="__main__")
            except SystemExit as ended:
                code = ended.code or 0
                if isinstance(code, str):  # as Python does at the end of a process
                    print(code, file=err)
                    code = 1
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
    return code, *(stream.buffer.getvalue().decode() for stream in (out, err))
