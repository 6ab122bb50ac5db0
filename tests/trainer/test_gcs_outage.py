"""A bucket that does not answer is not taken for one that is empty."""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from services.gcs import GcsService

_ROOT = Path(__file__).parents[2]
_LOOK = """
import tensorflow as tf
from data_pipeline.manifest import load_manifest
from trainer import checkpoint_files

def show(name, look, *arguments):
    try:
        print(name, look(*arguments))
    except Exception as error:
        print(name, type(error).__name__)

show("checkpoints", checkpoint_files.steps, "gs://bucket/model/checkpoints")
show("none", checkpoint_files.steps, "gs://bucket/elsewhere")
show("dataset", load_manifest, "gs://bucket/data")
"""


def _run(script: str, service: GcsService, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=_ROOT,
        env={**os.environ, **service.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _look(faults: dict[str, float]) -> list[str]:
    with GcsService(faults) as service:
        service.put("bucket/model/checkpoints/ckpt-4.json", b"{}")
        return _run(_LOOK, service, GCS_RETRY_CONFIG_MAX_RETRIES="2").splitlines()


def test_outage_is_not_an_empty_directory():
    """Or the run would start anew, in the place of the one that is there."""
    assert _look({}) == ["checkpoints [4]", "none []", "dataset UsageError"]
    assert _look({"503": 1.0}) == [
        "checkpoints UsageError",
        "none UsageError",
        "dataset AbortedError",
    ]
