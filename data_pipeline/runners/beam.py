"""Beam's side of the job: its options, which of its runners runs the job, and its workers."""

import argparse
import contextlib
import importlib
import importlib.util
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
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

from common import files
from common.errors import UsageError
from data_pipeline.runners.local import Runner, Task, Work, run_without_collector

_LOCAL_RUNNERS = (None, "DirectRunner", "FnApiRunner", "SwitchingDirectRunner")
_DASK_RUNNER = "apache_beam.runners.dask.dask_runner.DaskRunner"
_DASK_SECONDS = 30  # to wait for the first Dask worker


class _Parser(_BeamArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (a Beam option)")


class BeamRunner(Runner):
    """Does the work with Beam, as the options of the command line say.

    Attributes:
        shares_work: whether there are several workers.
    """

    def __init__(self, beam_args: Sequence[str]):
        """Check the options.

        Args:
            beam_args: such as `--runner=DirectRunner`, `--direct_num_workers=2`.

        Raises:
            UsageError: Beam does not know an option or its value, or a Dask cluster is not there or
                not ready for this job.
        """
        logging.getLogger("apache_beam").setLevel(logging.ERROR)
        chosen = PipelineOptions(list(beam_args)).view_as(StandardOptions).runner
        self._dask = chosen in ("DaskRunner", _DASK_RUNNER)
        if self._dask:
            _import_dask()  # before the check, so that its own options are known
        check_options(beam_args)
        self._options = PipelineOptions(list(beam_args))
        if self._dask:
            self._prepare_dask()
        self._local = chosen in _LOCAL_RUNNERS
        direct = self._options.view_as(DirectOptions)
        if direct.direct_num_workers < 0:
            raise UsageError(
                f"--direct_num_workers={direct.direct_num_workers}: expected 0 (one per core) or "
                "more"
            )
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
        result = pipeline.run()
        client = getattr(result, "client", None)  # a new one for each pipeline on Dask
        with contextlib.closing(client) if client else contextlib.nullcontext():
            result.wait_until_finish()

    def _prepare_dask(self) -> None:
        """Fill in what Beam would choose badly, and check whether the workers can do the job."""
        from apache_beam.runners.dask.dask_runner import DaskOptions

        # Beam knows a short name for most runners, but not for this one.
        self._options.view_as(StandardOptions).runner = _DASK_RUNNER
        options = self._options.view_as(DaskOptions)
        if not (options.address or options.scheduler_file):
            raise UsageError(
                "--runner=DaskRunner needs --dask_client_address=tcp://HOST:PORT or "
                "--dask_scheduler_file=FILE of a running cluster (dask scheduler, dask worker)"
            )
        if not (options.npartitions or options.partition_size):
            # Ours are a few large items; Beam puts 128 into a partition, all for one worker.
            options.partition_size = 1
        with _dask_client(options) as client:
            try:
                client.wait_for_workers(1, timeout=_DASK_SECONDS)
                # As text: a function of this package is found by name, in the package.
                client.run(exec, "import data_pipeline.job")
            except TimeoutError as error:
                raise UsageError(
                    f"the Dask cluster at {client.scheduler.address} has no workers; start some "
                    f"with: dask worker {client.scheduler.address}"
                ) from error
            except ImportError as error:
                raise UsageError(
                    f"a Dask worker of {client.scheduler.address} cannot do this job: {error}; "
                    "install this package there, in the same version, with its dependencies"
                ) from error


class _Do(beam.DoFn):
    """(item, path) -> a file with the result or with what is wrong with the input."""

    def __init__(self, task: Task):
        self._task = task

    def setup(self) -> None:
        self._task.setup()

    def process(self, element: tuple[Any, str]) -> None:
        item, path = element
        directory = os.path.dirname(path)
        if not files.exists(directory):
            raise UsageError(
                f"{directory}: a worker does not find this directory; --output_dir and the input "
                "must be absolute paths on storage that all machines share, or gs://"
            )
        try:
            value = {"result": run_without_collector(self._task, item)}
        except UsageError as error:
            value = {"error": str(error)}
        files.write_json(path, value)


def _import_dask() -> None:
    """Import Beam's Dask runner, which defines the options; `UsageError` if Dask is missing."""
    if not importlib.util.find_spec("distributed"):
        raise UsageError(
            "--runner=DaskRunner needs the package distributed, which is not installed; install it "
            "with: pip install -e '.[dask]'"
        )
    importlib.import_module(_DASK_RUNNER.rpartition(".")[0])
    # The client tells of every lost connection; what matters is raised.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def _dask_client(options: Any) -> Iterator[Any]:
    """Connect to the cluster of `DaskOptions` as Beam will; `UsageError` if it is not there."""
    import distributed

    arguments = options.get_all_options(drop_default=True, current_only=True)
    options._extract_bag_kwargs(arguments)
    try:
        client = distributed.Client(**arguments)
    except (OSError, ValueError) as error:
        place = options.address or options.scheduler_file
        raise UsageError(f"no Dask scheduler at {place}: {error}") from error
    with client:
        yield client


def _worker_environment() -> SubprocessSDKEnvironment:
    """Say how to start a worker process: this Python, with this package in its path."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return SubprocessSDKEnvironment.from_command_string(
        f"PYTHONPATH={shlex.quote(path)} {shlex.quote(sys.executable)} "
        "-m data_pipeline.runners.beam_worker"
    )


def check_options(beam_args: Sequence[str]) -> None:
    """Raise `UsageError` for an option that Beam does not know (Beam itself only warns)."""
    parser = _Parser(allow_abbrev=False, add_help=False)
    # The same class may be listed twice when a module was loaded twice.
    for options in {str(cls): cls for cls in PipelineOptions.__subclasses__()}.values():
        options._add_argparse_args(parser)
    try:
        _, unknown = parser.parse_known_args(list(beam_args))
    except argparse.ArgumentError as error:
        raise UsageError(f"{error} (a Beam option)") from error
    if unknown and not unknown[0].startswith("-"):
        raise UsageError(f"unexpected argument {unknown[0]!r}; flags are written --name=value")
    if unknown:
        raise UsageError(
            f"unknown flag {unknown[0]!r}: neither this program nor Beam knows it "
            "(--help lists the flags)"
        )
