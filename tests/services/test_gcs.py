"""What TensorFlow's gs:// client leaves to us when requests fail."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from services.gcs import GcsService

_ROOT = Path(__file__).parents[2]
_FOLDERS, _FILES = 6, 4
_REMOVE_TREES = """
import sys
from data_pipeline import files
for path in sys.argv[1:]:
    files.remove_tree(path)
"""
_WRITE = """
import sys
import numpy as np
from data_pipeline import files
for number, path in enumerate(sys.argv[1:]):
    files.write_bytes(path, np.random.default_rng(number).bytes(1_000_000))
"""


def _run(service: GcsService, script: str, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=_ROOT,
        env={**os.environ, **service.environ},
        check=True,
    )


def test_trees_are_removed():
    """`gfile.rmtree` raises NotFoundError here, or leaves files."""
    with GcsService({"503": 0.15, "lost": 0.15}) as service:
        for folder in range(_FOLDERS):
            service.put(f"bucket/{folder}/", b"")
            for number in range(_FILES):
                service.put(f"bucket/{folder}/{number}", b"content")
                service.put(f"bucket/{folder}/deeper/{number}", b"content")
        service.put("bucket/0-other", b"content")
        _run(service, _REMOVE_TREES, *(f"gs://bucket/{folder}" for folder in range(_FOLDERS)))
        assert min(service.log.faults[fault] for fault in ("503", "lost")) > 5
        assert list(service.objects) == ["bucket/0-other"]


def test_uploads_that_break_off_go_on_where_they_were():
    """Nothing is stored in part, and nothing sent twice."""
    with GcsService({"cut": 0.3}) as service:
        _run(service, _WRITE, *(f"gs://bucket/{number}" for number in range(6)))
        assert service.log.faults["cut"] > 2
        for number in range(6):
            expected = np.random.default_rng(number).bytes(1_000_000)
            assert service.objects[f"bucket/{number}"] == expected
        assert sum(service.log.uploaded.values()) == 6_000_000
