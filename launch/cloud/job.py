"""What the machine is to run: the code of a commit, how to install it, and the trainer's flags."""

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.errors import UsageError
from launch.cloud.service import address
from launch.cloud.spec import Spec
from launch.cloud.store import CODE, JOB, LOGS, STATE, DryStore, Store

FOLLOW_SECONDS = 10.0
SILENT_SECONDS = 300.0
"""A machine that has given no sign of life for so long is gone, or cut off."""

_ROOT = Path(__file__).parents[2]
_OURS = ("strategy", "tpu", "tpu_zone", "tpu_project", "tpu_type")
_VENV = (
    "python3 -m venv --clear{0} .venv || "
    "(apt-get update -q && apt-get install -y -q python3-venv && python3 -m venv --clear{0} .venv)"
)
# The image of a slice of several hosts brings the TensorFlow whose server runs on all of them.
_INSTALL = {
    True: (
        _VENV.format(""),
        ".venv/bin/python -m pip install --quiet --constraint requirements/tpu.txt -e '.[tpu]'",
    ),
    False: (
        _VENV.format(" --system-site-packages"),
        # The second package is what TensorFlow finds a slice by name with.
        ".venv/bin/python -m pip install --quiet -e . cloud-tpu-client",
    ),
}


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True)
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise UsageError(
            f"git {arguments[0]}: {' '.join(message)}; train ships a commit, so this must be a "
            "clone of the repository"
        )
    return done.stdout


def pack(allow_dirty: bool) -> tuple[str, bytes]:
    """The commit that is checked out, and its files as tar.gz.

    Args:
        allow_dirty: ships changes that are not committed too, of files that git knows.

    Raises:
        UsageError: if there are such changes and they are not allowed, or git fails.
    """
    commit = _git("rev-parse", "HEAD").decode().strip()
    changes = _git("status", "--porcelain").decode().splitlines()
    tracked = [line[3:] for line in changes if not line.startswith("??")]
    if tracked and not allow_dirty:
        raise UsageError(
            f"{len(tracked)} changed file(s), {tracked[0]} first: train ships a commit; commit "
            "them, or --allow_dirty to ship them as they are"
        )
    if tracked:
        # A commit of the changes, which changes neither branch nor files.
        commit = _git("stash", "create").decode().strip()
    return commit, _git("archive", "--format=tar.gz", commit)


def check_config(commit: str, values: dict[str, str]) -> None:
    """Raises `UsageError` if --config is not among the files that are shipped: one that git does
    not know would be found missing by the machine, when the chips are paid for already."""
    config = values.get("config", "")
    if config and not _git("ls-tree", "--name-only", commit, "--", config):
        raise UsageError(f"--config={config} is not in the commit: git add and commit it first")


def check_flags(spec: Spec, trainer_flags: Sequence[str]) -> dict[str, str]:
    """The trainer's flags of the form --name=value, by name.

    Raises:
        UsageError: for one that `train` sets by itself, and for files the machine cannot have.
    """
    values = {}
    for flag in trainer_flags:
        if not flag.startswith("--"):
            raise UsageError(f"after --: {flag!r} is no flag of the form --name=value")
        name, _, value = flag.removeprefix("--").partition("=")
        values[name] = value
    for name in _OURS:
        if name in values:
            raise UsageError(f"--{name} after --: it follows from --accelerator_type; leave it out")
    for name in ("data_dir", "model_dir", "init_from"):
        if name in values and not values[name].startswith("gs://"):
            raise UsageError(
                f"--{name}={values[name]} is a path of this machine; copy it first: "
                f"python -m launch.storage push {values[name]} gs://..."
            )
    if not spec.slice.single_host and "data_dir" not in values:
        raise UsageError("a slice of several hosts needs --data_dir=gs://... after --")
    config = values.get("config", "")
    if config and (config.startswith("/") or not (_ROOT / config).is_file()):
        raise UsageError(f"--config={config} is not a file of this repository, as configs/demo.py")
    return values


def make(
    spec: Spec,
    trainer_flags: Sequence[str],
    commit: str,
    archive: bytes,
    max_restarts: int,
    delete_when_ended: bool,
) -> dict:
    """The content of job.json."""
    flags = check_flags(spec, trainer_flags)
    model_dir = flags.get("model_dir", f"{spec.folder}/model")
    where = ["--tpu=local"]
    if not spec.slice.single_host:
        where = [f"--tpu={spec.name}", f"--tpu_zone={spec.zone}", f"--tpu_project={spec.project}"]
    digest = hashlib.sha256(archive).hexdigest()
    job: dict = {
        "commit": commit,
        "code": f"{CODE}{digest[:16]}.tar.gz",
        "code_sha256": digest,
        "install": list(_INSTALL[spec.slice.single_host]),
        "argv": [
            ".venv/bin/python",
            "-m",
            "trainer.main",
            "--strategy=tpu",
            *where,
            f"--tpu_type={spec.accelerator_type}",
            *trainer_flags,
        ],
        "model_dir": model_dir,
        "max_restarts": max_restarts,
    }
    if "model_dir" not in flags:
        job["argv"].append(f"--model_dir={model_dir}")
    if delete_when_ended:
        path = f"{spec.parent}/queuedResources/{spec.name}"
        job["delete_url"] = f"{address()}/v2/{path}?force=true"
    return job


def submit(job: dict, archive: bytes, store: Store | DryStore) -> None:
    """Gives the job to the machine, which may not be there yet; a second time changes nothing.

    Raises:
        UsageError: if another job runs, or this one has ended.
    """
    before, now = store.read(JOB), state(store)
    ended = now.get("state") in ("done", "failed")
    if before is not None and json.loads(before) == job:
        if ended:
            raise UsageError(
                f"this very job is {now['state']} already; resume starts a failed one again"
            )
        print("this very job is there already")
        return
    if before is not None and not ended and is_fresh(now):
        raise UsageError(
            f"another job is {now['state']} on this TPU; wait for its end, or delete the TPU"
        )
    if not store.names(job["code"]):
        store.write(job["code"], archive)
    store.write(JOB, json.dumps(job, indent=1).encode())


def state(store: Store | DryStore) -> dict:
    """What the machine says of the job; {} if it has said nothing of this version of it."""
    content, generation = store.read_version(JOB)
    said = store.read(STATE) if content else None
    found = json.loads(said) if said else {}
    return found if found.get("generation") == generation else {}


def is_fresh(found: dict) -> bool:
    """Whether the machine has told of a job at work a short time ago."""
    working = found.get("state") in ("installing", "running")
    return working and time.time() - found["time"] < SILENT_SECONDS


def start_again(store: Store | DryStore) -> None:
    """Lets a job that has ended start again: the machine goes by the version of job.json."""
    content = store.read(JOB)
    if content:
        store.write(JOB, content)
        print("the job starts again")


def read_logs(store: Store | DryStore, follow: bool) -> Iterator[bytes]:
    """What the job printed.

    Args:
        store: where it lies.
        follow: goes on until the job has ended.
    """
    after = ""
    while True:
        # Before the parts: the last of them is there before the end is told.
        ended = state(store).get("state") in ("done", "failed")
        for name in store.names(LOGS, after):
            after = name
            yield store.read(name) or b""
        if ended or not follow:
            return
        time.sleep(FOLLOW_SECONDS)


def model_dir(store: Store | DryStore) -> str:
    """gs:// address of the job's model directory, or of where it would be."""
    content = store.read(JOB)
    return json.loads(content)["model_dir"] if content else f"{store.folder}/model"
