"""Datasets and model directories on gs://, through a service that fails now and then."""

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from benchmarks import same_run
from configs.flags import SMALL_MODEL
from data_pipeline.dataset.manifest import load_manifest
from tests.services.gcs import FAULTS, GcsService

_ROOT = Path(__file__).parents[2]
_FLAGS = (
    *SMALL_MODEL,
    "--config.optimizer.ema_decay=0.9",
    "--config.train.batch_tokens=1024",
    "--config.train.steps=16",
    "--config.train.steps_per_loop=2",
    "--config.train.checkpoint_every=4",
    "--config.train.evaluate_every=8",
    "--config.decode.validation_sentences=10",
)
_DATA = (
    "--train=builtin:train?size=400",
    "--valid=builtin:valid?size=20",
    "--test=builtin:test?size=20",
    "--vocab_size=600",
    "--num_shards=2",
    "--row_length=64",
)


def _start(module: str, *arguments: str, service: GcsService | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=_ROOT,
        env={**os.environ, **(service.environ if service else {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _run(module: str, *arguments: str, service: GcsService | None = None) -> str:
    process = _start(module, *arguments, service=service)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """A folder with a dataset, and a model that was trained on it, on this machine's disk."""
    folder = tmp_path_factory.mktemp("local")
    _run("data_pipeline.main", *_DATA, f"--output_dir={folder}/data")
    _run("trainer.main", *_FLAGS, f"--data_dir={folder}/data", f"--model_dir={folder}/model")
    return folder


def _download(service: GcsService, prefix: str, folder: Path) -> None:
    for name, content in service.objects.items():
        if name.startswith(prefix) and not name.endswith("/"):  # those stand for folders
            path = folder / name.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _assert_little_was_sent(service: GcsService) -> None:
    stored = sum(service.stored[name] for name in service.log.uploaded)
    assert sum(service.log.uploaded.values()) < 2 * stored


@pytest.mark.faults
def test_everything_with_all_faults(local, tmp_path):
    """The data job, a killed training, its second start, a test; one request in ten fails."""
    with GcsService(dict.fromkeys(FAULTS, 0.1 / len(FAULTS))) as service:
        _run("data_pipeline.main", *_DATA, "--output_dir=gs://bucket/data", service=service)
        data = {path.name: path.read_bytes() for path in (local / "data").iterdir()}
        found = {name: service.objects.get(f"bucket/data/{name}") for name in data}
        assert found == data

        arguments = (*_FLAGS, "--data_dir=gs://bucket/data", "--model_dir=gs://bucket/model")
        training = _start("trainer.main", *arguments, service=service)
        deadline = time.monotonic() + 300
        while not any(name.endswith("ckpt-8.json") for name in list(service.objects)):
            assert training.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        training.send_signal(signal.SIGKILL)
        training.communicate()
        output = _run("trainer.main", *arguments, service=service)
        assert "resumed at step" in output and "new run" not in output
        _run("trainer.evaluate", "--model_dir=gs://bucket/model", "--split=test", service=service)

        assert sum(service.log.faults.values()) > 20
        _assert_little_was_sent(service)
        _download(service, "bucket/model/", tmp_path)
    assert same_run.differences(str(local / "model"), str(tmp_path)) == []


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS)
def test_training_with_one_fault(local, tmp_path, fault):
    """One request in ten fails in this way."""
    with GcsService({fault: 0.1}) as service:
        for path in (local / "data").iterdir():
            service.put(f"bucket/data/{path.name}", path.read_bytes())
        arguments = (*_FLAGS, "--data_dir=gs://bucket/data", "--model_dir=gs://bucket/model")
        _run("trainer.main", *arguments, service=service)
        log = service.log
        _assert_little_was_sent(service)
        _download(service, "bucket/model/", tmp_path)
        stored = sum(service.stored[name] for name in log.uploaded)
        print(
            f"{fault}: {log.requests} requests, {log.faults[fault]} faults, "
            f"{sum(log.uploaded.values())} bytes uploaded, {stored} stored"
        )
    assert same_run.differences(str(local / "model"), str(tmp_path)) == []


@pytest.mark.faults
def test_documents_from_a_bucket(tmp_path):
    """Of a language model: compressed files that a pattern names; one request in ten fails."""
    with GcsService(dict.fromkeys(FAULTS, 0.1 / len(FAULTS))) as service:
        for number, pack in enumerate((gzip.compress, zstandard.compress)):
            text = "\n\n".join(f"document {i} of file {number}" for i in range(20))
            suffix = ("gz", "zst")[number]
            service.put(f"bucket/text/{number}.txt.{suffix}", pack(text.encode()))
        _run(
            "data_pipeline.main",
            "--task=language_model",
            "--train=text:gs://bucket/text/*.txt.*",
            "--valid=text:gs://bucket/text/0.txt.gz",
            "--disable_filters=near_duplicate",
            "--model_type=char",
            "--row_length=32",
            f"--output_dir={tmp_path}/data",
            service=service,
        )
    splits = load_manifest(str(tmp_path / "data")).splits
    assert (splits["train"].pairs_in, splits["valid"].kept) == (40, 20)
