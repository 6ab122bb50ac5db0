"""Run a command in this process, which saves the seconds that its imports take."""

import contextlib
import io
import os
import re
import runpy
import sys
import warnings
from collections.abc import Iterator
from unittest import mock

from absl import app, flags

_RESTORED = "restored."  # absl does not know the module of a flag that was hidden before
_PACKAGES = ("benchmarks.", "data_pipeline.", "launch.", "trainer.", _RESTORED)


# TensorFlow's own start-up notices, which the build "tensorflow" writes whatever the log level is.
_NOTICE = re.compile(r"WARNING: All log messages before absl::InitializeLog|I\d{4} \d\d:\d\d:")


def own_lines(stderr: str) -> list[str]:
    """Return the lines of standard error that are not TensorFlow's notices at its start."""
    return [line for line in stderr.splitlines() if not _NOTICE.match(line)]


@contextlib.contextmanager
def _own_flags() -> Iterator[None]:
    """Hide the flags of other commands that this process has imported; they may share names."""
    app.define_help_flags()
    parsed = flags.FLAGS.is_parsed()
    defined = {
        name: flags.FLAGS[name]
        for name in flags.FLAGS
        if flags.FLAGS.find_module_defining_flag(name, _RESTORED).startswith(_PACKAGES)
    }
    for name in defined:
        delattr(flags.FLAGS, name)
    others = set(flags.FLAGS)
    try:
        yield
    finally:
        for name in set(flags.FLAGS) - others:
            delattr(flags.FLAGS, name)
        for name, flag in defined.items():
            flags.FLAGS[name] = flag
        if not parsed:
            flags.FLAGS.unparse_flags()


def run_command(module: str, *arguments: str) -> tuple[int, str, str]:
    """Run `python -m module arguments`, with nothing on standard input.

    Returns:
        The exit code, standard output and standard error.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    argv = [module, *arguments]
    code: int | str = 0
    with (
        _own_flags(),
        open(os.devnull) as stdin,
        mock.patch.multiple(sys, argv=argv, stdin=stdin, stdout=out, stderr=err),
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
    return code, *(stream.buffer.getvalue().decode() for stream in (out, err))
