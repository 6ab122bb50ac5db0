"""The job on a Dask cluster: a scheduler and two workers, each a process of its own.

Not part of the usual run: `pytest -m distributed`, with the extra `dask` installed.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands import own_lines

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).resolve().parents[3]
FLAGS = (
    "--train=builtin:train?size=25000",
    "--train=0.5*builtin:train?size=12000&seed=2",
    "--valid=builtin:valid?size=200",
    "--vocab_size=4000",
    "--keep_rejected",
)


@dataclass(frozen=True)
class SlowPid:
    """Takes its time, so that there is work for both workers."""

    def setup(self) -> None:
        pass

    def run(self, item: int) -> list[int]:
        time.sleep(0.2)
        return [item, os.getpid()]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Starts a scheduler and two workers; gives (address, a client)."""
    distributed = pytest.importorskip("distributed")
    directory = tmp_path_factory.mktemp("cluster")
    path = str(ROOT)
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"}
    dask = [sys.executable, "-m", "dask"]
    scheduler_file = directory / "scheduler.json"
    of_all = ["--no-dashboard", "--scheduler-file", str(scheduler_file)]
    commands = [["scheduler", "--host=127.0.0.1", "--port=0"]]
    commands += [["worker", "--nthreads=1", "--local-directory", str(directory)]] * 2
    processes = []
    try:
        for number, command in enumerate(commands):
            # In another directory than the job, as on another machine.
            with open(directory / f"{number}.log", "wb") as log:
                processes.append(
                    subprocess.Popen(
                        [*dask, *command, *of_all],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        cwd=directory,
                    )
                )
            deadline = time.monotonic() + 300
            while not scheduler_file.exists() or not scheduler_file.read_text():
                assert time.monotonic() < deadline, (directory / "0.log").read_text()
                time.sleep(0.1)
        address = json.loads(scheduler_file.read_text())["address"]
        with distributed.Client(address) as client:
            client.wait_for_workers(2, timeout=300)
            yield address, client
    finally:
        for process in processes[::-1]:
            process.terminate()
        for process in processes:
            process.wait(60)


def run(directory: Path | str, *flags: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Runs the job."""
    return subprocess.run(
        [sys.executable, "-m", "data_pipeline.main", f"--output_dir={directory}", *FLAGS, *flags],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def on_dask(address: str) -> tuple[str, str]:
    return "--runner=DaskRunner", f"--dask_client_address={address}"


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def executed(client) -> dict[str, int]:
    """Returns worker -> how many tasks it has done."""
    return client.run(lambda dask_worker: dask_worker.state.executed_count)


def test_same_bytes_as_in_this_process(cluster, tmp_path):
    address, client = cluster
    before = executed(client)
    result = run(tmp_path / "dask", *on_dask(address))
    assert (result.returncode, own_lines(result.stderr)) == (0, [])
    assert "shards" in result.stdout and "distributed" not in result.stdout
    done = {worker: count - before[worker] for worker, count in executed(client).items()}
    assert len(done) == 2 and min(done.values()) > 3, done
    assert run(tmp_path / "alone").returncode == 0
    assert contents(tmp_path / "dask") == contents(tmp_path / "alone")


def test_items_are_spread_over_the_workers(cluster, tmp_path):
    from data_pipeline.runners.beam import BeamRunner

    address, client = cluster
    workers = set(client.run(os.getpid).values())
    runner = BeamRunner(on_dask(address))
    results = runner.map("pid", SlowPid(), range(8), str(tmp_path))
    assert [item for item, _ in results] == list(range(8))
    assert {pid for _, pid in results} == workers and len(workers) == 2
    # And what the user says comes first: one partition has one worker.
    runner = BeamRunner([*on_dask(address), "--dask_npartitions=1"])
    assert len({pid for _, pid in runner.map("one", SlowPid(), range(4), str(tmp_path))}) == 1


def test_bad_input_is_one_line(cluster, tmp_path):
    (tmp_path / "bad.tsv").write_bytes(b"a\tb\n" * 100 + b"\xff\tb\n")
    address, _ = cluster
    result = run(tmp_path / "out", f"--train=tsv:{tmp_path / 'bad.tsv'}", *on_dask(address))
    assert result.returncode == 2 and not (tmp_path / "out").exists()
    (line,) = own_lines(result.stderr)
    assert line.startswith("error: ") and "bad.tsv, line 101: not valid UTF-8" in line


def test_directory_that_workers_do_not_see(cluster, tmp_path):
    address, _ = cluster
    result = run("out", *on_dask(address), cwd=tmp_path)
    assert result.returncode == 2 and not (tmp_path / "out").exists()
    (line,) = own_lines(result.stderr)
    assert "a worker does not find this directory" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--runner=DaskRunner needs --dask_client_address=tcp://HOST:PORT"),
        (
            ("--dask_client_address=tcp://127.0.0.1:9", "--dask_connection_timeout=1"),
            "no Dask scheduler at tcp://127.0.0.1:9",
        ),
        (("--dask_client_address=nonsense://1",), "no Dask scheduler at nonsense://1"),
        (("--dask_npartition=1",), "unknown flag '--dask_npartition=1'"),
    ],
)
def test_errors_are_one_line(tmp_path, flags, message):
    result = run(tmp_path / "out", "--runner=DaskRunner", *flags)
    assert result.returncode == 2 and not (tmp_path / "out").exists()
    (line,) = own_lines(result.stderr)
    assert line.startswith("error: ") and message in line
