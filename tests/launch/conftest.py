"""The launcher as a user runs it, with small scripts in the place of the trainer."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]

# What every worker begins with. `attempt` counts the starts of this worker, from 0.
_WORKER = """
import json, os, signal, subprocess, sys, time
config = json.loads(os.environ["TF_CONFIG"])
index = config["task"]["index"]
with open(f"starts-{index}", "a+") as starts:
    starts.write("x")
    attempt = starts.tell() - 1

def on_sigterm(then):
    def handler(number, frame):
        print("got SIGTERM")
        then()
    signal.signal(signal.SIGTERM, handler)
    print("ready", os.getpid())

def wait():
    while True:
        time.sleep(0.02)
"""

# The launcher with other constants, such as its pauses.
_PATCHED = """
import runpy, sys
from launch.processes import supervisor
vars(supervisor).update({constants})
sys.argv[0] = "local.py"
runpy.run_module("launch.local", run_name="__main__")
"""


class Launch:
    """A running launcher whose workers run `body`."""

    def __init__(self, folder: Path, body: str, arguments: tuple, constants: dict, options: dict):
        (folder / "job.py").write_text(_WORKER + body)
        program = ["-m", "launch.local"]
        if constants:
            program = ["-c", _PATCHED.format(constants=constants)]
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, *program, "--module=job", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
        )

    def read_until(self, text: str, count: int) -> list[str]:
        """The lines of stdout up to the `count`-th that holds `text`; only these hold it."""
        lines = []
        while count:
            line = self.process.stdout.readline()
            assert line, f"no more output; stderr: {self.process.stderr.read()}"
            if text in line:
                lines.append(line.rstrip("\n"))
                count -= 1
        return lines

    def finish(self, code: int) -> tuple[str, str]:
        """The rest of stdout and stderr, once it has ended with that code."""
        stdout, stderr = self.process.communicate(timeout=300)
        assert self.process.returncode == code, stderr
        return stdout, stderr

    def starts(self) -> list[int]:
        """How often each of two workers was started, as far as it came to write that down."""
        files = [self.folder / f"starts-{index}" for index in range(2)]
        return [len(file.read_text()) if file.exists() else 0 for file in files]


@pytest.fixture
def launch(tmp_path) -> Callable[..., Launch]:
    """Returns a function that starts the launcher."""
    started = []

    def start(body: str, *arguments: str, constants: dict | None = None, **options) -> Launch:
        started.append(Launch(tmp_path, body, arguments, constants or {}, options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.fixture(scope="module")
def bucket_service():
    from tests.services.storage import emulator

    with emulator() as running:
        yield running


@pytest.fixture
def cloud(bucket_service, monkeypatch):
    """An empty project: no TPU, and a bucket with nothing in it."""
    from launch.cloud import life, service
    from tests.services.tpu import TpuService

    server, address = bucket_service
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    monkeypatch.setattr(life, "POLL_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(service, "RETRY_SECONDS", (0.01, 0.01, 300.0))
    with TpuService() as running:
        monkeypatch.setenv("TPU_EMULATOR_HOST", running.address)
        yield running
    server.wipe(keep_buckets=True)
