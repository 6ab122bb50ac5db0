"""What TensorFlow's gs:// client leaves to us when requests fail."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.services.gcs import GcsService

_ROOT = Path(__file__).parents[2]
_FOLDERS, _FILES = 6, 4
_REMOVE_TREES = """
import sys
from common import files
for path in sys.argv[1:]:
    files.remove_tree(path)
"""
_WRITE = """
import sys
import numpy as np
from common import files
for number, path in enumerate(sys.argv[1:]):
    files.write_bytes(path, np.random.default_rng(number).bytes(1_000_000))
"""
_READ = """
import sys
import tensorflow as tf
from data_pipeline.dataset import rows
answers, read = [], tf.function(lambda: rows.read_records(*arguments, up_to_damage=True))
arguments = sys.argv[1], 0, 20, 116
for _ in range(30):
    try:
        answers.append(b"".join(read().numpy()) == tf.io.gfile.GFile(sys.argv[2], "rb").read())
    except tf.errors.AbortedError:
        answers.append(None)
assert False not in answers and True in answers and None in answers, answers
"""


_LOCK = """
import sys
from common import files, lock
from common.errors import UsageError
with lock.held(sys.argv[1]):
    try:
        with lock.held(sys.argv[1]):
            raise AssertionError
    except UsageError as error:
        assert "is in use by process" in str(error), error
assert files.list_names(sys.argv[1]) == []
"""


def _run(service: GcsService, script: str, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=_ROOT,
        env={**os.environ, **service.environ},
        check=True,
    )


@pytest.mark.faults
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


@pytest.mark.faults
def test_uploads_that_break_off_go_on_where_they_were():
    """Nothing is stored in part, and nothing sent twice."""
    with GcsService({"cut": 0.3}) as service:
        _run(service, _WRITE, *(f"gs://bucket/{number}" for number in range(6)))
        assert service.log.faults["cut"] > 2
        for number in range(6):
            expected = np.random.default_rng(number).bytes(1_000_000)
            assert service.objects[f"bucket/{number}"] == expected
        assert sum(service.log.uploaded.values()) == 6_000_000


@pytest.mark.faults
def test_storage_that_fails_is_not_damage(tmp_path):
    """With --skip_corrupt_data, a request that fails at last must not make rows empty."""
    records = [bytes([number]) * 100 for number in range(20)]
    with tf.io.TFRecordWriter(str(tmp_path / "rows")) as writer:
        for record in records:
            writer.write(record)
    (tmp_path / "plain").write_bytes(b"".join(records))
    with GcsService({"503": 0.2}) as service:
        service.environ["GCS_RETRY_CONFIG_MAX_RETRIES"] = "0"
        service.put("bucket/rows", (tmp_path / "rows").read_bytes())
        _run(service, _READ, "gs://bucket/rows", str(tmp_path / "plain"))
        assert service.log.faults["503"] > 5


def test_a_directory_is_held_by_one_process():
    with GcsService({"503": 0.15}) as service:
        service.put("bucket/other", b"")
        _run(service, _LOCK, "gs://bucket/model")
