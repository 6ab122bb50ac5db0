"""What Slurm, Kubernetes and Vertex AI are given to run a training, from one description of it.

All follow the trainer's exit codes (docs/operations.md): 0 is done, 2 is for a human, 42 is saved
and wants to be started again, everything else is started again a limited number of times.
"""

import shlex
from dataclasses import dataclass
from typing import Any

from common.errors import UsageError
from launch.cloud import slices

PORT = 2222
MOUNT = "/mnt/shared"
_BAD_INPUT, _STOPPED = 2, 42

Manifest = dict[str, Any]

# Of GKE: label cloud.google.com/gke-tpu-accelerator; chips of one host -> gke-tpu-topology.
_GKE_TPUS = {
    "v4": ("tpu-v4-podslice", {4: "2x2x1"}),
    "v5litepod": ("tpu-v5-lite-podslice", {1: "1x1", 4: "2x2", 8: "2x4"}),
    "v5p": ("tpu-v5p-slice", {4: "2x2x1"}),
    "v6e": ("tpu-v6e-slice", {1: "1x1", 4: "2x2", 8: "2x4"}),
}


@dataclass(frozen=True)
class Training:
    """A training that somebody else is to start.

    Attributes:
        name: of the job; lower-case letters, digits and hyphens.
        flags: of `trainer.main`, without those that follow from the platform.
        workers: processes, one a machine.
        gpus: of each machine; 0 for CPUs.
        image: of the container, "" where there is none.
        claim: name of a PersistentVolumeClaim that all pods mount on `MOUNT`; "" for none.
        grace_seconds: between the signal and the end.
        max_restarts: of what ended with neither 0, 2 nor 42.
        spot: whether the machines may be taken away.
    """

    name: str
    flags: tuple[str, ...]
    workers: int
    gpus: int
    image: str = ""
    claim: str = ""
    grace_seconds: int = 300
    max_restarts: int = 10
    spot: bool = False

    @property
    def strategy(self) -> tuple[str, ...]:
        """Flags that say where it runs."""
        return ("--strategy=multi_worker" if self.workers > 1 else "--strategy=mirrored",)

    def arguments(self, *where: str) -> list[str]:
        """What comes after "python"; `where` takes the place of `strategy`."""
        grace = f"--grace_seconds={self.grace_seconds}"
        return ["-m", "trainer.main", *(where or self.strategy), grace, *self.flags]


def slurm(training: Training, python: str, hours: float, options: tuple[str, ...]) -> str:
    """A script for sbatch: one task a node, the whole node's GPUs.

    Args:
        training: what to run.
        python: path of the interpreter that has the project installed, on all nodes.
        hours: time limit of one allocation; the job goes back into the queue when it is over.
        options: of sbatch, such as "--partition=gpu".
    """
    minutes = max(1, round(hours * 60))
    settings = [
        f"--job-name={training.name}",
        f"--nodes={training.workers}",
        "--ntasks-per-node=1",
        *([f"--gpus-per-node={training.gpus}"] if training.gpus else []),
        f"--time={minutes}",
        "--requeue",
        "--open-mode=append",
        f"--output={training.name}-%j.log",
        # To the tasks, and not to this script.
        f"--signal=TERM@{training.grace_seconds}",
        *options,
    ]
    command = shlex.join([python, *training.arguments()])
    directives = "\n".join(f"#SBATCH {setting}" for setting in settings)
    return f"""#!/bin/bash
{directives}

# Exit codes of the trainer: 0 done; 2 bad input, for a human; 42 asked to stop, all is saved; the
# rest, a lost worker for one, is worth another start.
restarts=0
while true; do
    began=$SECONDS
    srun --label --distribution=block --kill-on-bad-exit=0 --wait=0 \\
        {command}
    code=$?
    case $code in
    0 | {_BAD_INPUT}) exit $code ;;
    {_STOPPED})
        echo "stopped on request: back into the queue"
        scontrol requeue "$SLURM_JOB_ID"
        exit $code
        ;;
    esac
    ((SECONDS - began > 600)) && restarts=0
    ((++restarts > {training.max_restarts})) && exit $code
    pause=$((restarts < 7 ? 1 << (restarts - 1) : 60))
    echo "code $code: restart $restarts of {training.max_restarts} in $pause s"
    sleep $pause
done
"""


def _pod(training: Training, arguments: list[str], resources: Manifest, env: list) -> Manifest:
    mounts = [{"name": "memory", "mountPath": "/dev/shm"}]
    volumes: list[Manifest] = [{"name": "memory", "emptyDir": {"medium": "Memory"}}]
    if training.claim:
        mounts.append({"name": "shared", "mountPath": MOUNT})
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": training.claim}})
    container = {
        "name": "trainer",
        "image": training.image,
        "command": ["python", *arguments],
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}, *env],
        "volumeMounts": mounts,
        **({"resources": {"limits": resources}} if resources else {}),
    }
    return {
        "restartPolicy": "Never",
        # Saving takes a part of it; the signal comes at its beginning.
        "terminationGracePeriodSeconds": training.grace_seconds,
        "containers": [container],
        "volumes": volumes,
    }


def _job(training: Training, pod: Manifest, backoff_limit: int) -> Manifest:
    """The spec of an Indexed Job."""

    def on_code(action: str, code: int) -> Manifest:
        codes = {"containerName": "trainer", "operator": "In", "values": [code]}
        return {"action": action, "onExitCodes": codes}

    return {
        "completionMode": "Indexed",
        "completions": training.workers,
        "parallelism": training.workers,
        "backoffLimit": backoff_limit,
        "podFailurePolicy": {
            "rules": [
                on_code("FailJob", _BAD_INPUT),
                # A pod of the same index takes its place, and it does not count: all workers end
                # with this code together, and meet again.
                on_code("Ignore", _STOPPED),
            ]
        },
        "template": {"spec": pod},
    }


def jobset(training: Training) -> Manifest:
    """A JobSet (jobset.x-k8s.io/v1alpha2): workers with GPUs that find each other by name."""
    names = [f"{training.name}-worker-0-{index}" for index in range(training.workers)]
    hosts = ",".join(f"{name}.{training.name}:{PORT}" for name in names)
    env = [{"name": "WORKER_HOSTS", "value": hosts}] if training.workers > 1 else []
    resources = {"nvidia.com/gpu": training.gpus} if training.gpus else {}
    pod = _pod(training, training.arguments(), resources, env)
    if training.spot:
        pod["nodeSelector"] = {"cloud.google.com/gke-spot": "true"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": training.name},
        "spec": {
            "network": {
                "enableDNSHostnames": True,
                "subdomain": training.name,
                # Workers wait for each other before they are ready.
                "publishNotReadyAddresses": True,
            },
            "failurePolicy": {
                "maxRestarts": training.max_restarts,
                "rules": [
                    {
                        "name": "badInput",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                # One pod that ends with another code ends its Job, and so all are made anew.
                {"name": "worker", "replicas": 1, "template": {"spec": _job(training, pod, 0)}}
            ],
        },
    }


def gke_tpu(training: Training, tpu_type: str) -> Manifest:
    """A Job on one TPU host of Google Kubernetes Engine.

    Raises:
        UsageError: for a slice of several hosts, and for one that GKE does not have.
    """
    family = tpu_type.partition("-")[0]
    chips = slices.parse(tpu_type).chips
    if family not in _GKE_TPUS:
        raise UsageError(f"--tpu_type={tpu_type}: GKE offers {', '.join(_GKE_TPUS)}")
    accelerator, topologies = _GKE_TPUS[family]
    if chips not in topologies:
        raise UsageError(
            f"--tpu_type={tpu_type} is a slice of several hosts, which TensorFlow drives from one "
            "process through servers that only Cloud TPU's images bring; use launch.tpu, or "
            f"{', '.join(f'{chips} chips' for chips in topologies)}"
        )
    where = ("--strategy=tpu", "--tpu=local", f"--tpu_type={tpu_type}")
    pod = _pod(training, training.arguments(*where), {"google.com/tpu": chips}, [])
    pod["nodeSelector"] = {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topologies[chips],
        **({"cloud.google.com/gke-spot": "true"} if training.spot else {}),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": training.name},
        "spec": _job(training, pod, training.max_restarts),
    }


def vertex(training: Training, machine_type: str, accelerator: str, days: float) -> Manifest:
    """A CustomJobSpec of Vertex AI, for `gcloud ai custom-jobs create --config=FILE`.

    Vertex AI sets TF_CONFIG, in which the one replica of the first pool is the chief.

    Args:
        training: what to run.
        machine_type: such as "a3-highgpu-8g".
        accelerator: such as "NVIDIA_H100_80GB"; "" for none.
        days: after which Vertex AI ends the job.
    """
    machine: Manifest = {"machineType": machine_type}
    if accelerator:
        machine |= {"acceleratorType": accelerator, "acceleratorCount": training.gpus}
    container = {
        "imageUri": training.image,
        "command": ["python", *training.arguments()],
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
    }

    def pool(replicas: int) -> Manifest:
        return {"machineSpec": machine, "replicaCount": replicas, "containerSpec": container}

    others = [pool(training.workers - 1)] if training.workers > 1 else []
    return {
        "workerPoolSpecs": [pool(1), *others],
        "scheduling": {
            "timeout": f"{round(days * 86400)}s",
            # One worker alone cannot go on; the model directory has the last checkpoint.
            "restartJobOnWorkerRestart": True,
            **({"strategy": "SPOT"} if training.spot else {}),
        },
    }
