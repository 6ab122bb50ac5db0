"""A bucket that does not answer is not taken for one that is empty."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.gcs import GcsService

_ROOT = Path(__file__).parents[2]
_LOOK = """
import tensorflow as tf
from data_pipeline.dataset.manifest import load_manifest
from trainer.checkpoints import files as checkpoint_files

def show(name, look, *arguments):
    try:
        print(name, look(*arguments))
    except Exception as error:
        print(name, type(error).__name__)

show("checkpoints", checkpoint_files.steps, "gs://bucket/model/checkpoints")
show("none", checkpoint_files.steps, "gs://bucket/elsewhere")
show("dataset", load_manifest, "gs://bucket/data")
"""


def _start(command: list[str], service: GcsService) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        cwd=_ROOT,
        env={**os.environ, **service.environ, "GCS_RETRY_CONFIG_MAX_RETRIES": "2"},
        capture_output=True,
        text=True,
        check=False,
    )


def _run(script: str, service: GcsService) -> str:
    done = _start([sys.executable, "-c", script], service)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _look(faults: dict[str, float]) -> list[str]:
    with GcsService(faults) as service:
        service.put("bucket/model/checkpoints/ckpt-4.json", b"{}")
        return _run(_LOOK, service).splitlines()


@pytest.mark.faults
def test_outage_is_not_an_empty_directory():
    """Or the run would start anew, in the place of the one that is there."""
    assert _look({}) == ["checkpoints [4]", "none []", "dataset UsageError"]
    assert _look({"503": 1.0}) == [
        "checkpoints AbortedError",
        "none AbortedError",
        "dataset AbortedError",
    ]


@pytest.mark.parametrize(
    ("module", "end"),
    [
        ("trainer.main", "start again, to go on from the checkpoint"),
        pytest.param("trainer.evaluate", "start again", marks=pytest.mark.faults),
    ],
)
def test_code_1_has_it_started_again(module, end):
    with GcsService({"503": 1.0}) as service:
        flags = ["--data_dir=gs://bucket/data", "--model_dir=gs://bucket/model"]
        done = _start([sys.executable, "-m", module, *flags], service)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and last.endswith(f"; {end}")
    assert "503" in last and "Traceback" not in done.stderr
