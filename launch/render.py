"""Print the job description with which Slurm, Kubernetes or Vertex AI runs a training.

    python -m launch.render slurm --name=mine --workers=2 --gpus=8 -- \\
        --config=configs/transformer_big.py --data_dir=/nfs/data --model_dir=/nfs/model > mine.sh
    python -m launch.render jobset --name=mine --workers=2 --gpus=8 --image=IMAGE -- FLAGS
    python -m launch.render gke_tpu --name=mine --tpu_type=v5litepod-8 --image=IMAGE -- FLAGS
    python -m launch.render vertex --name=mine --workers=2 --gpus=8 --image=IMAGE \\
        --machine_type=a3-highgpu-8g --accelerator=NVIDIA_H100_80GB -- FLAGS

FLAGS are those of trainer.main. Their configuration has to be valid, and its batch divisible among
all replicas. docs/clusters.md explains the output.

Exit codes: 0 done; 2 bad usage.
"""

import re
import shlex

import yaml
from absl import flags

from common.errors import UsageError, run_app, split_arguments
from launch.cloud import slices
from launch.clusters import manifests as clusters
from launch.trainer_flags import check_trainer_flags, stage_directories

TARGETS = ("slurm", "jobset", "gke_tpu", "vertex")
_OURS = ("strategy", "cluster", "tpu", "tpu_type", "grace_seconds", "num_virtual_devices")

# Flags that would do nothing for other targets.
_ONLY_FOR = {
    "image": ("jobset", "gke_tpu", "vertex"),
    "claim": ("jobset", "gke_tpu"),
    "spot": ("jobset", "gke_tpu", "vertex"),
    "python": ("slurm",),
    "hours": ("slurm",),
    "sbatch": ("slurm",),
    "tpu_type": ("gke_tpu",),
    "machine_type": ("vertex",),
    "accelerator": ("vertex",),
    "days": ("vertex",),
}

_NAME = flags.DEFINE_string("name", None, "Name of the job.")
_WORKERS = flags.DEFINE_integer("workers", 1, "Machines, with one process each.", lower_bound=1)
_GPUS = flags.DEFINE_integer("gpus", 0, "GPUs per machine.", lower_bound=0)
_IMAGE = flags.DEFINE_string("image", "", "Container image with this project installed.")
_CLAIM = flags.DEFINE_string(
    "claim", "", f"PersistentVolumeClaim that all pods mount on {clusters.MOUNT}."
)
_GRACE = flags.DEFINE_integer(
    "grace_seconds",
    None,
    "Seconds between the signal to stop and the kill, on Kubernetes and Slurm. Default: 300, or 25 "
    "with --spot.",
    lower_bound=10,
)
_MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts", 10, "How often to restart after lost workers and crashes.", 0
)
_SPOT = flags.DEFINE_bool("spot", False, "jobset, gke_tpu (on GKE), vertex: spot machines.")
_PYTHON = flags.DEFINE_string("python", ".venv/bin/python", "slurm: interpreter on all nodes.")
_HOURS = flags.DEFINE_float("hours", 24.0, "slurm: time limit of one allocation.", 0.1)
_SBATCH = flags.DEFINE_multi_string(
    "sbatch", [], "slurm: another option, such as --partition=gpu; can be repeated."
)
_TPU_TYPE = flags.DEFINE_string(
    "tpu_type", None, f"gke_tpu: accelerator type, such as {slices.EXAMPLES}."
)
_MACHINE = flags.DEFINE_string("machine_type", None, "vertex: such as a3-highgpu-8g.")
_ACCELERATOR = flags.DEFINE_string("accelerator", "", "vertex: such as NVIDIA_H100_80GB.")
_DAYS = flags.DEFINE_float("days", 7.0, "vertex: time limit of the job.", 0.01)


def parse_flags(argv: list[str]) -> list[str]:
    """Return the target, followed by the arguments after "--"."""
    own, trainer_flags = split_arguments(argv)
    rest = flags.FLAGS(own)
    if len(rest) != 2 or rest[1] not in TARGETS:
        raise UsageError(f"usage: python -m launch.render {'|'.join(TARGETS)} ... -- FLAGS")
    return [rest[1], *trainer_flags]


def check_flags(trainer_flags: list[str], needs_bucket: bool) -> None:
    """Check the trainer's flags, except for the configuration.

    Args:
        trainer_flags: the arguments after "--".
        needs_bucket: whether the machines share no file system.

    Raises:
        UsageError: if a flag is one that the platform decides, or if a directory is missing or
            the machines cannot share it.
    """
    values = {}
    for flag in trainer_flags:
        name, _, value = flag.lstrip("-").partition("=")
        if not flag.startswith("-") or not value:
            raise UsageError(f"after --: {flag!r} is not of the form --name=value")
        values[name] = value
    for name in _OURS:
        if name in values:
            raise UsageError(f"--{name} after --: launch.render sets it; leave it out")
    for name in ("data_dir", "model_dir"):
        if name not in values:
            raise UsageError(f"after --: --{name}=... is missing; all machines have to share it")
    for name in filter(values.__contains__, ("data_dir", "model_dir", "init_from")):
        if needs_bucket:
            check_place(name, values[name])


def check_place(name: str, path: str) -> None:
    """Raise `UsageError` if machines that share no file system lack the path of this flag."""
    if not path.startswith(("gs://", f"{clusters.MOUNT}/")):
        raise UsageError(
            f"--{name}={path}: the machines do not have it; use gs://BUCKET/... or, on Kubernetes, "
            f"--claim=NAME and {clusters.MOUNT}/..."
        )
    if path.startswith(f"{clusters.MOUNT}/") and not _CLAIM.value:
        raise UsageError(f"--{name}={path} needs --claim=NAME, the volume to mount")


def main(argv: list[str]) -> int:
    """Print the job description."""
    target, trainer_flags = argv[0], argv[1:]
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", _NAME.value or ""):
        raise UsageError("--name=... is missing, or not of lower-case letters, digits and hyphens")
    if target != "slurm" and not _IMAGE.value:
        raise UsageError(f"{target} needs --image=..., with this project installed")
    for name, targets in _ONLY_FOR.items():
        if flags.FLAGS[name].present and target not in targets:
            raise UsageError(f"--{name} is for {' and '.join(targets)}, not for {target}; drop it")
    check_flags(trainer_flags, needs_bucket=target != "slurm")
    tpu = (
        slices.parse(_TPU_TYPE.value, "tpu_type")
        if target == "gke_tpu" and _TPU_TYPE.value
        else None
    )
    if target == "gke_tpu" and (tpu is None or _WORKERS.value > 1 or _GPUS.value):
        raise UsageError("gke_tpu needs --tpu_type=..., and has neither --workers nor --gpus")
    replicas = tpu.replicas if tpu else _WORKERS.value * max(1, _GPUS.value)
    config = check_trainer_flags(trainer_flags, replicas)
    for directory in stage_directories(config) if target != "slurm" else ():
        check_place("config.data.stages", directory)
    for option in _SBATCH.value:
        if not option.startswith("-"):
            raise UsageError(f"--sbatch={option}: an option of sbatch begins with a hyphen")
    training = clusters.Training(
        name=_NAME.value or "",
        flags=tuple(trainer_flags),
        workers=_WORKERS.value,
        gpus=_GPUS.value,
        image=_IMAGE.value,
        claim=_CLAIM.value,
        # GKE gives a pod on a spot machine 25 seconds.
        grace_seconds=_GRACE.value or (25 if _SPOT.value else 300),
        max_restarts=_MAX_RESTARTS.value,
        spot=_SPOT.value,
    )
    if target == "slurm":
        options = tuple(_SBATCH.value)
        print(clusters.slurm(training, _PYTHON.value, _HOURS.value, options), end="")
        return 0
    if target == "jobset":
        manifest = clusters.jobset(training)
    elif target == "gke_tpu":
        manifest = clusters.gke_tpu(training, _TPU_TYPE.value or "")
    else:
        if not _MACHINE.value or bool(_ACCELERATOR.value) != bool(_GPUS.value):
            raise UsageError(
                "vertex needs --machine_type=..., and --accelerator=... and --gpus=... together"
            )
        manifest = clusters.vertex(training, _MACHINE.value, _ACCELERATOR.value, _DAYS.value)
    command = shlex.join(["python", "-m", "launch.render", target])
    print(f"# Rendered by {command}; exit codes: docs/operations.md.")
    print(yaml.safe_dump(manifest, sort_keys=False, width=100), end="")
    return 0


if __name__ == "__main__":
    run_app(main, parse_flags, result_on_stdout=True)
