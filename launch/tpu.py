"""Train on a Cloud TPU: create it, give it a job, follow the job, delete the TPU.

    python -m launch.tpu create --name=NAME --bucket=gs://BUCKET/jobs --project=PROJECT \\
        --zone=us-central1-a --accelerator_type=v5litepod-8 --spot
    python -m launch.tpu train --name=NAME --bucket=gs://BUCKET/jobs -- \\
        --config=configs/transformer_base.py --data_dir=gs://BUCKET/data/mine
    python -m launch.tpu status|logs|tensorboard|resume|delete --name=NAME --bucket=gs://BUCKET/jobs

The job does not need this machine: the TPU machine fetches it from the bucket, starts the trainer,
restarts it after exit code 42 or a crash, and writes logs and state to the bucket. --dry_run prints
every call and makes none; it needs no credentials. Before anything that costs money is created, its
price class is shown and you are asked, unless you give --yes. See docs/tpu.md.

Exit codes: 0 done; 1 the job whose log was followed has failed; 2 bad usage, or Google Cloud
refused.
"""

import os
import sys
import time

from absl import flags

from common.console import write_stdout
from common.errors import UsageError, no_arguments, run_app, split_arguments
from launch.cloud import job, life, slices
from launch.cloud.service import ADDRESS, DryRun, Service
from launch.cloud.spec import Spec, check_name, from_json
from launch.cloud.store import SPEC, DryStore, Store
from launch.trainer_flags import check_trainer_flags, stage_directories

COMMANDS = ("create", "train", "status", "logs", "tensorboard", "resume", "delete")

_NAME = flags.DEFINE_string("name", None, "Name of the TPU and of its folder in the bucket.")
_BUCKET = flags.DEFINE_string(
    "bucket", None, "Folder for code, logs and models, in the TPU's region: gs://BUCKET/FOLDER."
)
_PROJECT = flags.DEFINE_string("project", None, "create, --dry_run: Google Cloud project.")
_ZONE = flags.DEFINE_string("zone", None, "create, --dry_run: zone, such as us-central1-a.")
_TYPE = flags.DEFINE_string(
    "accelerator_type",
    None,
    f"create, --dry_run: kind and size, such as {slices.EXAMPLES}.",
)
_SPOT = flags.DEFINE_bool("spot", False, "create: cheaper, but can be preempted.")
_IMAGE = flags.DEFINE_string(
    "runtime_version", None, "create: image of the machines. Default: what the type needs."
)
_ACCOUNT = flags.DEFINE_string(
    "service_account", "", "create: service account of the machines. Default: the project's."
)
_USD = flags.DEFINE_float(
    "usd_per_chip_hour", None, "Price of a chip, for the cost that create and status show.", 0.0
)
_YES = flags.DEFINE_bool("yes", False, "Do not ask.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print every call and make none.")
_FOLLOW = flags.DEFINE_bool("follow", False, "logs: continue until the job has ended.")
_ALLOW_DIRTY = flags.DEFINE_bool(
    "allow_dirty", False, "train: also ship uncommitted changes of tracked files."
)
_MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts",
    10,
    "train: how often to restart the trainer; a run of more than 10 minutes resets the count.",
    lower_bound=0,
)
_DELETE_WHEN_ENDED = flags.DEFINE_bool(
    "delete_when_ended",
    False,
    "train: the machine deletes the TPU once the job is done or has failed; its service account "
    "needs the role TPU Admin.",
)


def parse_flags(argv: list[str]) -> list[str]:
    """Return the command, followed by the arguments after "--"."""
    own, trainer_flags = split_arguments(argv)
    rest = flags.FLAGS(own)
    if len(rest) < 2 or rest[1] not in COMMANDS:
        given = f"{rest[1]!r} is not a command" if len(rest) > 1 else "which command?"
        raise UsageError(f"{given}: python -m launch.tpu {'|'.join(COMMANDS)} --name=... (--help)")
    no_arguments(rest[1:])
    if trainer_flags and rest[1] != "train":
        raise UsageError(f"flags of the trainer, after --, are for train, not for {rest[1]}")
    return [rest[1], *trainer_flags]


def _folder() -> str:
    if not _NAME.value or not _BUCKET.value:
        missing = "bucket" if _NAME.value else "name"
        raise UsageError(f"--{missing}=... is missing (--help lists the flags)")
    check_name(_NAME.value)
    return f"{_BUCKET.value.rstrip('/')}/{_NAME.value}"


def _spec_of_flags() -> Spec | None:
    """Return the slice that the flags describe; None if they are incomplete."""
    if not (_PROJECT.value and _ZONE.value and _TYPE.value):
        return None
    image = _IMAGE.value or slices.parse(_TYPE.value).image
    return Spec(
        _NAME.value or "",
        _PROJECT.value,
        _ZONE.value,
        _TYPE.value,
        _SPOT.value,
        image,
        _folder(),
        _ACCOUNT.value,
    )


def _find_spec(store: Store | DryStore, asked: Spec | None) -> Spec:
    """Return the spec that `create` wrote or, if somebody deleted it, that of the flags."""
    known = store.read(SPEC)
    if known is None and asked is None:
        raise UsageError(
            f"{store.folder} has no {SPEC}: no such TPU, or it is deleted; if it exists, give "
            "--project, --zone and --accelerator_type"
        )
    spec = from_json(known) if known else asked
    assert spec is not None
    for name, given in (("project", _PROJECT.value), ("zone", _ZONE.value)):
        if given and given != getattr(spec, name):
            raise UsageError(f"--{name}={given}, but {spec.name} is in {getattr(spec, name)}")
    return spec


def _ask(question: str) -> None:
    """Raise `UsageError` unless the user, or --yes, says yes."""
    if _YES.value or _DRY_RUN.value:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody can answer here; give --yes to confirm")
    print(f"{question} [y/N] ", end="", flush=True)  # input() would raise on Ctrl-D
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was done")


def _train(spec: Spec, store: Store | DryStore, trainer_flags: list[str]) -> None:
    values = job.check_flags(spec, trainer_flags)
    config = check_trainer_flags(trainer_flags, spec.slice.replicas)
    for directory in stage_directories(config):
        job.check_place("config.data.stages", directory)
    commit, archive = job.pack(_ALLOW_DIRTY.value)
    job.check_config(commit, values)
    made = job.make(
        spec, trainer_flags, commit, archive, _MAX_RESTARTS.value, _DELETE_WHEN_ENDED.value
    )
    print(f"commit {commit[:12]}, {len(archive):,} bytes; on the machine:")
    for command in (*made["install"], " ".join(made["argv"])):
        print(f"  {command}")
    job.submit(made, archive, store)
    if not _DRY_RUN.value:
        print(f"{spec.name} starts it once it is active: python -m launch.tpu logs --follow ...")


def _status(spec: Spec, service: Service | DryRun, store: Store | DryStore) -> None:
    found, machine, said = service.resource(spec), service.machine(spec), job.state(store)
    if _DRY_RUN.value:
        return
    print(f"{spec.name}: {spec.accelerator_type}, {spec.price_class}, {spec.zone}")
    print(f"queue: {f'{found.state} {found.reason}'.strip() if found else 'not there'}")
    if machine:
        print(f"node: {machine.state} {machine.health}")
    if machine and machine.created:
        hours = (time.time() - machine.created) / 3600
        chip_hours = hours * spec.slice.chips
        money = "" if _USD.value is None else f", {chip_hours * _USD.value:,.2f} USD"
        print(f"age of the node: {hours:.2f} h, {chip_hours:.2f} chip hours{money}")
    facts = [f"{key}={said[key]}" for key in said if key not in ("generation", "time")]
    print(f"job: {' '.join(facts) or 'the machine has not started one'}")
    if said:
        print(f"last report: {time.time() - said['time']:.0f} s ago")
    ended = said.get("state") in ("done", "failed")
    gone = found is None or found.state not in (*life.QUEUED, "ACTIVE")
    if gone and not ended:
        print("the TPU is gone and the job is not done: python -m launch.tpu resume")
    if ended and (found or machine):
        print("the job has ended and the TPU still costs money: python -m launch.tpu delete")


def _logs(store: Store | DryStore) -> int:
    for part in job.read_logs(store, _FOLLOW.value and not _DRY_RUN.value):
        write_stdout(part)
    return int(_FOLLOW.value and job.state(store).get("state") == "failed")


def _tensorboard(store: Store | DryStore) -> None:
    logdir = f"--logdir={job.model_dir(store)}/tensorboard"
    argv = [sys.executable, "-m", "tensorboard.main", logdir]
    print(" ".join(argv), flush=True)
    if not _DRY_RUN.value:
        os.execv(argv[0], argv)


def main(arguments: list[str]) -> int:
    """Run the command; return the exit code."""
    command, trainer_flags = arguments[0], arguments[1:]
    folder, asked = _folder(), _spec_of_flags()
    if asked is None and command == "create":  # checked before the credentials
        raise UsageError("create needs --project=..., --zone=... and --accelerator_type=...")
    store: Store | DryStore
    service: Service | DryRun | None
    if _DRY_RUN.value:
        if asked is None:
            raise UsageError("--dry_run needs --project=..., --zone=... and --accelerator_type=...")
        store = DryStore(folder, None if command == "create" else asked.to_json().encode())
        service = DryRun(there=command != "create")
        print(f"dry run, no credentials are needed; calls (/v2: {ADDRESS}):")
    else:
        store, service = Store(folder), None
    spec = asked if asked and command == "create" else _find_spec(store, asked)
    if command == "train":
        _train(spec, store, trainer_flags)
    elif command == "logs":
        return _logs(store)
    elif command == "tensorboard":
        _tensorboard(store)
    else:
        service = service or Service()
        if command in ("create", "resume"):
            print(life.describe(spec, _USD.value), flush=True)
        if command == "status":
            _status(spec, service, store)
        else:
            getattr(life, command)(spec, service, store, _ask)
    return 0


if __name__ == "__main__":
    run_app(main, parse_flags, result_on_stdout=sys.argv[1:2] in (["status"], ["logs"]))
