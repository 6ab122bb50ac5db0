"""Beam's side of the command line: options, and which runner runs the job."""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    StandardOptions,
    _BeamArgumentParser,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from data_pipeline.errors import UsageError

_LOCAL_RUNNERS = (None, "DirectRunner", "FnApiRunner", "SwitchingDirectRunner")


class _Parser(_BeamArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (a Beam option)")


class Runner:
    """Runs Beam pipelines with the options of the command line.

    Attributes:
        shares_work: whether there is more than one worker to share the reading with.
    """

    def __init__(self, beam_args: Sequence[str] = ()):
        """Checks the options.

        Args:
            beam_args: such as `--runner=DirectRunner`, `--direct_num_workers=2`.

        Raises:
            UsageError: Beam does not know an option or its value.
        """
        logging.getLogger("apache_beam").setLevel(logging.ERROR)
        check_options(beam_args)
        self._options = PipelineOptions(list(beam_args))
        self._local = self._options.view_as(StandardOptions).runner in _LOCAL_RUNNERS
        direct = self._options.view_as(DirectOptions)
        self.shares_work = not self._local or direct.direct_num_workers != 1
        self._in_processes = self._local and (
            # Threads would wait for each other, cleaning being Python code, so several workers
            # are processes unless threads are asked for.
            direct.direct_running_mode == "multi_processing"
            or (direct.direct_running_mode == "in_memory" and self.shares_work)
        )
        if self._in_processes:
            # Otherwise Beam starts its own worker command instead of ours.
            direct.direct_running_mode = "in_memory"

    def run(self, build: Callable[[beam.Pipeline], None]) -> None:
        """Builds a pipeline and runs it to its end.

        Args:
            build: adds the steps to the pipeline.

        Raises:
            UsageError: Beam has no such runner.
        """
        # By name, the direct runner first looks for Prism, a program that it would download.
        environment = _worker_environment() if self._in_processes else None
        runner = FnApiRunner(environment) if self._local else None
        try:
            pipeline = beam.Pipeline(runner=runner, options=self._options)
        except ValueError as error:
            raise UsageError(f"Beam cannot make this runner: {error}") from error
        build(pipeline)
        pipeline.run().wait_until_finish()


def _worker_environment() -> SubprocessSDKEnvironment:
    """Says how to start a worker process: this Python, with this package in its path."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return SubprocessSDKEnvironment.from_command_string(
        f"PYTHONPATH={shlex.quote(path)} {shlex.quote(sys.executable)} -m data_pipeline.worker"
    )


def check_options(beam_args: Sequence[str]) -> None:
    """Raises `UsageError` for an option that Beam does not know (Beam itself only warns)."""
    parser = _Parser(allow_abbrev=False, add_help=False)
    # The same class may be listed twice when a module was loaded twice.
    for options in {str(cls): cls for cls in PipelineOptions.__subclasses__()}.values():
        options._add_argparse_args(parser)
    try:
        _, unknown = parser.parse_known_args(list(beam_args))
    except argparse.ArgumentError as error:
        raise UsageError(f"{error} (a Beam option)") from error
    if unknown:
        raise UsageError(
            f"unknown flag {unknown[0]!r}: neither this program nor Beam knows it "
            "(--help lists the flags)"
        )
