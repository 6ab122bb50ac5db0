"""launch.tpu as a user types it, and what it packs for the machine."""

import os
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path
from unittest import mock

import pytest

from common.errors import UsageError
from launch.cloud import job
from launch.cloud.spec import Spec
from launch.cloud.store import JOB, STATE, Store
from tests.commands import run_command
from tests.services.storage import BUCKET

ROOT = Path(__file__).parents[3]
FOLDER = f"gs://{BUCKET}/jobs/mine"
HERE = ["--name=mine", f"--bucket=gs://{BUCKET}/jobs/"]
WHERE = ["--project=p", "--zone=us-central1-a", "--accelerator_type=v5litepod-8"]
SPEC = Spec("mine", "p", "us-central1-a", "v5litepod-8", True, "x", FOLDER)
POD = Spec("mine", "p", "us-central2-b", "v4-32", False, "x", FOLDER)


def run(*arguments, **env):
    """Exit code, stdout, stderr of launch.tpu, on a machine without credentials."""
    inherited = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "NO_GCE_CHECK": "true"}
    with mock.patch.dict(os.environ, {**inherited, **env}, clear=True):
        return run_command("launch.tpu", *arguments)


def test_a_dry_run_without_credentials_fits_on_a_screen():
    done = subprocess.run(
        [sys.executable, "-m", "launch.tpu", "create", "--dry_run", "--spot", *HERE, *WHERE],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "NO_GCE_CHECK": "true"},
        capture_output=True,
        text=True,
    )
    code, out, err = done.returncode, done.stdout, done.stderr
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert sum(-(-len(line) // 80) for line in lines) <= 24  # rows of a terminal of 24 x 80
    assert max(map(len, lines)) <= 100
    assert "no credentials are needed" in out
    assert "price class: spot" in out
    assert "(/v2: https://tpu.googleapis.com)" in out
    assert f"POST /v2/projects/p/locations/{SPEC.zone}/queuedResources?queuedResourceId" in out
    assert "acceleratorType = v5litepod-8" in out


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.tpu_v2", None)
    code, out, err = run("create", *HERE, *WHERE, STORAGE_EMULATOR_HOST="http://localhost:1")
    assert (code, out) == (2, "")
    assert err == (
        "error: google-cloud-tpu is not installed; run "
        "pip install -c requirements/cpu.txt -e '.[cloud]'\n"
    )
    assert run("create", "--dry_run", *HERE, *WHERE)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which command?"),
        (["make"], "'make' is not a command"),
        (["status"], "--name=... is missing"),
        (["create", *HERE, "--dry_run"], "needs --project"),
        (["delete", *HERE, *WHERE, "--", "--x=1"], "are for train, not for delete"),
    ],
)
def test_bad_usage(arguments, message):
    code, out, err = run(*arguments, STORAGE_EMULATOR_HOST="http://localhost:1")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", *HERE, *WHERE[:2], "--accelerator_type=v5e-8"], "calls it v5litepod-8"),
        (["create", *HERE], "create needs --project"),
        (["status", "--name=Bad", HERE[1]], "--name=Bad: use at most 40 lower-case letters"),
        (["status", *HERE], "no Google Cloud credentials on this machine"),
    ],
)
def test_without_credentials_an_error_is_one_line_too(arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_create_status_logs_delete(cloud, bucket_service):
    env = {"STORAGE_EMULATOR_HOST": bucket_service[1], "TPU_EMULATOR_HOST": cloud.address}
    code, out, err = run("create", *HERE, *WHERE, "--spot", **env)
    assert (code, cloud.made) == (2, [])
    assert "price class: spot" in out
    assert "create it? Nobody can answer here; give --yes to confirm" in err
    assert run("create", *HERE, *WHERE, "--spot", "--yes", **env)[0] == 0
    assert cloud.made == ["mine"]
    assert "spot" in cloud.resources["mine"]

    store = Store(FOLDER)
    store.write(JOB, b'{"model_dir": "gs://bucket/m"}')
    generation = store.read_version(JOB)[1]
    told = f'{{"generation": "{generation}", "state": "failed", "code": 1, "time": {time.time()}}}'
    store.write(STATE, told.encode())
    store.write("logs/2.txt", b"last\n")
    store.write("logs/1.txt", b"first\n")
    assert run("logs", "--follow", *HERE, **env) == (1, "first\nlast\n", "")
    code, out, _ = run("status", *HERE, "--usd_per_chip_hour=1.2", **env)
    assert code == 0
    assert "job: state=failed code=1" in out
    assert "still costs money" in out
    code, out, _ = run("tensorboard", "--dry_run", *HERE, *WHERE, **env)
    assert out.splitlines()[-1].endswith(f"--logdir={FOLDER}/model/tensorboard")

    code, _, err = run("delete", *HERE, "--zone=us-east1-d", **env)
    assert (code, err) == (2, "error: --zone=us-east1-d, but mine is in us-central1-a\n")
    assert run("delete", *HERE, "--yes", **env)[0] == 0
    assert (cloud.resources, cloud.nodes) == ({}, {})
    assert store.names("") == ["logs/1.txt", "logs/2.txt"]
    code, _, err = run("delete", *HERE, "--yes", **env)
    assert code == 2
    assert "no such TPU, or it is deleted" in err


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository of one commit, in the place of this one."""

    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "a.py").write_text("old\n")
    git("add", "a.py")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    monkeypatch.setattr(job, "_ROOT", tmp_path)
    # For the commit of what is not committed.
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "a")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@b")
    return tmp_path


def content(archive):
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar if one.isfile()}


def test_the_commit_is_shipped_and_nothing_else(repository):
    (repository / "new.py").write_text("git does not know it\n")
    commit, archive = job.pack(allow_dirty=False)
    assert len(commit) == 40
    assert content(archive) == {"a.py": b"old\n"}
    assert job.pack(allow_dirty=False) == (commit, archive)  # the same bytes: the same job
    (repository / "a.py").write_text("new\n")
    with pytest.raises(UsageError, match=r"1 changed file\(s\), the first a\.py"):
        job.pack(allow_dirty=False)
    other, archive = job.pack(allow_dirty=True)
    assert other != commit
    assert content(archive) == {"a.py": b"new\n"}
    assert (repository / "a.py").read_text() == "new\n"


def test_a_config_that_git_does_not_know_is_refused(repository):
    (repository / "mine.py").write_text("a config\n")
    job.check_flags(SPEC, ["--config=mine.py"])
    commit, _ = job.pack(allow_dirty=True)
    with pytest.raises(UsageError, match=r"--config=mine\.py is not in the commit; git add"):
        job.check_config(commit, {"config": "mine.py"})
    job.check_config(commit, {"config": "a.py"})
    job.check_config(commit, {})


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.train.stepz=5", "train.stepz"),
        ("--config.train.batch_tokens=777", "--config.train.batch_tokens=777 makes "),
        ("--config.data.stages=data/mix:9", "launch.storage push data/mix gs://..."),
    ],
)
def test_a_configuration_that_cannot_run_is_refused_before_it_costs_money(flag, message):
    place = "--accelerator_type=v5litepod-8"
    job_flags = "--config=configs/transformer_base.py", flag
    code, out, err = run(
        "train", "--dry_run", "--allow_dirty", *HERE, *WHERE[:2], place, "--", *job_flags
    )
    assert code == 2 and "job.json" not in out and message in err and err.count("\n") == 1


def test_outside_of_a_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UsageError, match="run it in a clone of the repository"):
        job.pack(allow_dirty=False)


def test_what_the_machine_is_to_run():
    flags = ["--config=configs/demo.py", "--data_dir=gs://b/d", "--config.train.steps=5"]
    made = job.make(SPEC, flags, "commit", b"x", 3, True)
    assert made["argv"] == [
        *(".venv/bin/python", "-m", "trainer.main", "--strategy=tpu", "--tpu=local"),
        *("--tpu_type=v5litepod-8", *flags, f"--model_dir={FOLDER}/model"),
    ]
    assert "--constraint requirements/tpu.txt -e '.[tpu]'" in made["install"][1]
    assert made["delete_url"] == (
        "https://tpu.googleapis.com/v2/projects/p/locations/us-central1-a/queuedResources/mine"
        "?force=true"
    )
    made = job.make(POD, ["--data_dir=gs://b/d", "--model_dir=gs://b/m"], "commit", b"x", 3, False)
    assert made["argv"][4:7] == ["--tpu=mine", "--tpu_zone=us-central2-b", "--tpu_project=p"]
    assert made["argv"][-1] == "--model_dir=gs://b/m"
    assert "--system-site-packages" in made["install"][0]
    assert "delete_url" not in made


@pytest.mark.parametrize(
    ("spec", "flag", "message"),
    [
        (SPEC, "--tpu=other", "--tpu after --: train sets it from the slice"),
        (SPEC, "--data_dir=data/mine", "launch.storage push data/mine gs://"),
        (SPEC, "--model_dir=models/mine", "is a path on this machine"),
        (SPEC, "--config=configs/missing.py", "is not a file of this repository"),
        (SPEC, "steps=5", "is not of the form --name=value"),
        (POD, "--config=configs/demo.py", "needs --data_dir=gs://"),
    ],
)
def test_flags_that_cannot_work_there(spec, flag, message):
    with pytest.raises(UsageError, match=message):
        job.check_flags(spec, [flag])
