"""The job for the TPU machine: the code of a commit, how to install it, and the trainer's flags."""

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
"""A machine that has not reported for this long is gone or cut off."""

_ROOT = Path(__file__).parents[2]
_OURS = ("strategy", "tpu", "tpu_zone", "tpu_project", "tpu_type")
_VENV = (
    "python3 -m venv --clear{0} .venv || "
    "(apt-get update -q && apt-get install -y -q python3-venv && python3 -m venv --clear{0} .venv)"
)
# The image of a multi-host slice brings its own TensorFlow, whose server runs on every host.
_INSTALL = {
    True: (
        _VENV.format(""),
        ".venv/bin/python -m pip install --quiet --constraint requirements/tpu.txt -e '.[tpu]'",
    ),
    False: (
        _VENV.format(" --system-site-packages"),
        # TensorFlow needs the second package to find a slice by name.
        ".venv/bin/python -m pip install --quiet -e . cloud-tpu-client",
    ),
}


def _git(*arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True)
    except FileNotFoundError as error:
        raise UsageError("train ships a commit and needs git, which is not installed") from error
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise UsageError(
            f"git {arguments[0]}: {' '.join(message)}; train ships a commit, so run it in a clone "
            "of the repository"
        )
    return done.stdout


def pack(allow_dirty: bool) -> tuple[str, bytes]:
    """Return the id of the checked-out commit, and its files as tar.gz.

    Args:
        allow_dirty: also ship uncommitted changes of tracked files.

    Raises:
        UsageError: if there are such changes and they are not allowed, or git fails.
    """
    commit = _git("rev-parse", "HEAD").decode().strip()
    changes = _git("status", "--porcelain").decode().splitlines()
    tracked = [line[3:] for line in changes if not line.startswith("??")]
    if tracked and not allow_dirty:
        raise UsageError(
            f"{len(tracked)} changed file(s), the first {tracked[0]}: train ships a commit; "
            "commit them, or give --allow_dirty to ship them as they are"
        )
    if tracked:
        # This makes a commit of the changes without touching the branch or the files.
        commit = _git("stash", "create").decode().strip()
    return commit, _git("archive", "--format=tar.gz", commit)


def check_config(commit: str, values: dict[str, str]) -> None:
    """Raise `UsageError` if the file of --config is not shipped with the commit.

    The machine would notice only when the chips already cost money.
    """
    config = values.get("config", "")
    if config and not _git("ls-tree", "--name-only", commit, "--", config):
        raise UsageError(f"--config={config} is not in the commit; git add and commit it first")


def check_flags(spec: Spec, trainer_flags: Sequence[str]) -> dict[str, str]:
    """Return the values of the trainer's flags by name.

    Raises:
        UsageError: for a flag that `train` sets itself, and for files that the machine lacks.
    """
    values = {}
    for flag in trainer_flags:
        if not flag.startswith("--"):
            raise UsageError(f"after --: {flag!r} is not of the form --name=value")
        name, _, value = flag.removeprefix("--").partition("=")
        values[name] = value
    for name in _OURS:
        if name in values:
            raise UsageError(f"--{name} after --: train sets it from the slice; leave it out")
    for name in ("data_dir", "model_dir", "init_from"):
        if name in values:
            check_place(name, values[name])
    if not spec.slice.single_host and "data_dir" not in values:
        raise UsageError("a multi-host slice needs --data_dir=gs://... after --")
    config = values.get("config", "")
    if config and (config.startswith("/") or not (_ROOT / config).is_file()):
        raise UsageError(
            f"--config={config} is not a file of this repository, such as configs/demo.py"
        )
    return values


def check_place(name: str, path: str) -> None:
    """Raise `UsageError` if the path of this flag is not in a bucket."""
    if not path.startswith("gs://"):
        raise UsageError(
            f"--{name}={path} is a path on this machine; copy it to a bucket first: "
            f"python -m launch.storage push {path} gs://..."
        )


def make(
    spec: Spec,
    trainer_flags: Sequence[str],
    commit: str,
    archive: bytes,
    max_restarts: int,
    delete_when_ended: bool,
) -> dict:
    """Return the content of job.json."""
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
    """Put the job where the machine, now or later, looks for it. The same job twice is no change.

    Raises:
        UsageError: if another job is running, or this job has ended.
    """
    before, now = store.read(JOB), state(store)
    ended = now.get("state") in ("done", "failed")
    if before is not None and json.loads(before) == job:
        if ended:
            raise UsageError(f"this job is {now['state']} already; resume restarts a failed one")
        print("this job was submitted already")
        return
    if before is not None and not ended and is_fresh(now):
        raise UsageError(
            f"another job is {now['state']} on this TPU; wait until it ends, or delete the TPU"
        )
    if not store.names(job["code"]):
        store.write(job["code"], archive)
    store.write(JOB, json.dumps(job, indent=1).encode())


def state(store: Store | DryStore) -> dict:
    """Return the machine's report on the job; {} if there is none for this version of it."""
    content, generation = store.read_version(JOB)
    said = store.read(STATE) if content else None
    found = json.loads(said) if said else {}
    return found if found.get("generation") == generation else {}


def is_fresh(found: dict) -> bool:
    """Return whether the machine reported a working job recently."""
    working = found.get("state") in ("installing", "running")
    return working and time.time() - found["time"] < SILENT_SECONDS


def start_again(store: Store | DryStore) -> None:
    """Restart a job that has ended: a new version of job.json is a new job for the machine."""
    content = store.read(JOB)
    if content:
        store.write(JOB, content)
        print("the job will start again")


def read_logs(store: Store | DryStore, follow: bool) -> Iterator[bytes]:
    """Yield the job's output.

    Args:
        store: the job's folder.
        follow: wait for more until the job has ended.
    """
    after = ""
    while True:
        # Read the state first: the machine writes the last part before it reports the end.
        ended = state(store).get("state") in ("done", "failed")
        for name in store.names(LOGS, after):
            after = name
            yield store.read(name) or b""
        if ended or not follow:
            return
        time.sleep(FOLLOW_SECONDS)


def model_dir(store: Store | DryStore) -> str:
    """Return the gs:// address of the job's model directory, which may not exist yet."""
    content = store.read(JOB)
    return json.loads(content)["model_dir"] if content else f"{store.folder}/model"
