"""Beam's side of the job: its options, which of its runners runs the job, and its workers."""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    StandardOptions,
    _BeamArgumentParser,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from data_pipeline import files
from data_pipeline.errors import UsageError
from data_pipeline.runner import Runner, Task, Work, run_without_collector

_LOCAL_RUNNERS = (None, "DirectRunner", "FnApiRunner", "SwitchingDirectRunner")


class _Parser(_BeamArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (a Beam option)")


class BeamRunner(Runner):
    """Does the work with Beam, as the options of the command line say.

    Attributes:
        shares_work: whether there are several workers.
    """

    def __init__(self, beam_args: Sequence[str]):
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

    def map_small(self, label: str, task: Task, items: Sequence[Any], work_dir: str) -> list[Any]:
        """As `map`; in this process, if the workers would be on this machine."""
        return (Runner() if self._local else self).map(label, task, items, work_dir)

    def _run(self, label: str, task: Task, work: Work) -> None:
        # By name, the direct runner first looks for Prism, a program that it would download.
        environment = _worker_environment() if self._in_processes else None
        runner = FnApiRunner(environment) if self._local else None
        try:
            pipeline = beam.Pipeline(runner=runner, options=self._options)
        except ValueError as error:
            raise UsageError(f"Beam cannot make this runner: {error}") from error
        elements = pipeline | "Items" >> beam.Create(work)
        if self.shares_work:
            elements = elements | "Share" >> beam.Reshuffle()
        _ = elements | label >> beam.ParDo(_Do(task))
        pipeline.run().wait_until_finish()


class _Do(beam.DoFn):
    """(item, path) -> a file with the result or with what is wrong with the input."""

    def __init__(self, task: Task):
        self._task = task

    def setup(self) -> None:
        self._task.setup()

    def process(self, element: tuple[Any, str]) -> None:
        item, path = element
        try:
            value = {"result": run_without_collector(self._task, item)}
        except UsageError as error:
            value = {"error": str(error)}
        files.write_json(path, value)


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
