"""Job descriptions for Slurm, Kubernetes and Vertex AI, all made from a `Training`.

All follow the trainer's exit codes (docs/operations.md): 0 is done; 2 needs a human; after 42 the
trainer has to start again; after anything else it is restarted a limited number of times.
"""

import shlex
from dataclasses import dataclass
from typing import Any

from common.errors import EXIT_STOPPED, EXIT_USAGE, UsageError
from launch.cloud import slices

PORT = 2222
MOUNT = "/mnt/shared"

Manifest = dict[str, Any]

# GKE's label cloud.google.com/gke-tpu-accelerator; chips of one host -> its label gke-tpu-topology.
_GKE_TPUS = {
    "v4": ("tpu-v4-podslice", {4: "2x2x1"}),
    "v5litepod": ("tpu-v5-lite-podslice", {1: "1x1", 4: "2x2", 8: "2x4"}),
    "v5p": ("tpu-v5p-slice", {4: "2x2x1"}),
    "v6e": ("tpu-v6e-slice", {1: "1x1", 4: "2x2", 8: "2x4"}),
}


@dataclass(frozen=True)
class Training:
    """A training for another system to start.

    Attributes:
        name: of the job; lower-case letters, digits and hyphens.
        flags: of `trainer.main`, without those that the platform decides.
        workers: processes, one per machine.
        gpus: GPUs per machine; 0 for CPUs.
        image: container image; "" if there is none.
        claim: the PersistentVolumeClaim that all pods mount on `MOUNT`; "" for none.
        grace_seconds: between the signal to stop and the kill.
        max_restarts: how often to restart after exit codes other than 0, 2 and 42.
        spot: whether the machines can be preempted.
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
        """The flags that choose the strategy."""
        return ("--strategy=multi_worker" if self.workers > 1 else "--strategy=mirrored",)

    def arguments(self, *where: str) -> list[str]:
        """Return the arguments of python; `where` replaces `strategy`."""
        grace = f"--grace_seconds={self.grace_seconds}"
        return ["-m", "trainer.main", *(where or self.strategy), grace, *self.flags]


def slurm(training: Training, python: str, hours: float, options: tuple[str, ...]) -> str:
    """Return a script for sbatch: one task per node, with all the node's GPUs.

    Args:
        training: what to run.
        python: path, on all nodes, of the interpreter that has the project installed.
        hours: time limit of one allocation, after which the job returns to the queue.
        options: more options of sbatch, such as "--partition=gpu".

    Raises:
        UsageError: if the time limit leaves no time to train before the signal to stop.
    """
    minutes = max(1, round(hours * 60))
    if 60 * minutes < 2 * training.grace_seconds:
        raise UsageError(
            f"--hours={hours:g} ends before a training that is stopped {training.grace_seconds} s "
            "earlier gets anywhere; give more hours or fewer --grace_seconds"
        )
    # Once a worker has ended, the others have this long, and one that stands still is killed. It is
    # more than the 600 s in which they wait to meet, so that they end by themselves where one had
    # bad input: its code 2 is then the highest, which is what srun returns.
    wait = max(660, training.grace_seconds)
    settings = [
        f"--job-name={training.name}",
        f"--nodes={training.workers}",
        "--ntasks-per-node=1",
        *([f"--gpus-per-node={training.gpus}"] if training.gpus else []),
        f"--time={minutes}",
        "--requeue",
        "--open-mode=append",
        f"--output={training.name}-%j.log",
        # The signal goes to the tasks and not to this script.
        f"--signal=TERM@{training.grace_seconds}",
        *options,
    ]
    command = shlex.join([python, *training.arguments()])
    directives = "\n".join(f"#SBATCH {setting}" for setting in settings)
    return f"""#!/bin/bash
{directives}

# The trainer's exit codes: 0 done; 2 bad input, needs a human; 42 stopped on request, all saved;
# anything else, such as a lost worker, is worth a restart.
restarts=0
while true; do
    began=$SECONDS
    srun --label --distribution=block --kill-on-bad-exit=0 --wait={wait} \\
        {command}
    code=$?
    case $code in
    0 | {EXIT_USAGE}) exit $code ;;
    {EXIT_STOPPED})
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
        # From the signal to stop until the kill; saving takes part of it.
        "terminationGracePeriodSeconds": training.grace_seconds,
        "containers": [container],
        "volumes": volumes,
    }


def _job(training: Training, pod: Manifest, backoff_limit: int) -> Manifest:
    """Return the spec of an Indexed Job."""

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
                on_code("FailJob", EXIT_USAGE),
                # A new pod takes its index, and the failure does not count: all workers end with
                # this code together and meet again.
                on_code("Ignore", EXIT_STOPPED),
            ]
        },
        "template": {"spec": pod},
    }


def jobset(training: Training) -> Manifest:
    """Return a JobSet (jobset.x-k8s.io/v1alpha2) of workers that find each other by name."""
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
                # Workers find each other before they are ready.
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
                # A pod that ends with another code fails its Job, and JobSet recreates all pods.
                {"name": "worker", "replicas": 1, "template": {"spec": _job(training, pod, 0)}}
            ],
        },
    }


def gke_tpu(training: Training, tpu_type: str) -> Manifest:
    """Return a Job on one TPU host of Google Kubernetes Engine.

    Raises:
        UsageError: if the slice has several hosts, or GKE does not offer it.
    """
    family = tpu_type.partition("-")[0]
    found = slices.parse(tpu_type, "tpu_type")
    chips = found.chips
    if family not in _GKE_TPUS:
        raise UsageError(f"--tpu_type={tpu_type}: GKE offers {', '.join(_GKE_TPUS)}")
    accelerator, topologies = _GKE_TPUS[family]
    if chips not in topologies:
        why = "GKE offers no such slice; use"
        if not found.single_host:
            why = "a multi-host slice needs servers of TensorFlow's that only Cloud TPU's images "
            why += "have; use launch.tpu, or"
        offered = ", ".join(f"{chips} chips" for chips in topologies)
        raise UsageError(f"--tpu_type={tpu_type}: {why} {offered}")
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
    """Return a Vertex AI CustomJobSpec, for `gcloud ai custom-jobs create --config=FILE`.

    Vertex AI sets TF_CONFIG; the only replica of the first pool is the chief in it.

    Args:
        training: what to run.
        machine_type: such as "a3-highgpu-8g".
        accelerator: such as "NVIDIA_H100_80GB"; "" for none.
        days: time limit of the job.
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
            # The other workers cannot continue alone; all restart from the last checkpoint.
            "restartJobOnWorkerRestart": True,
            **({"strategy": "SPOT"} if training.spot else {}),
        },
    }
