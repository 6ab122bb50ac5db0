"""What launch.render writes, checked against schemas; and Slurm's script, run with stand-ins."""

import os
import re
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from common.errors import UsageError
from launch.clusters import manifests as clusters
from launch.clusters.manifests import Training
from tests.commands import run_command
from trainer.distributed.cluster import find_cluster

ROOT = Path(__file__).parents[3]
FLAGS = ("--data_dir=gs://b/data", "--model_dir=gs://b/model", "--config=configs/demo.py")


def training(**fields) -> Training:
    values = {"name": "mine", "flags": FLAGS, "workers": 2, "gpus": 8, "image": "image"}
    return Training(**{**values, **fields})


def check_job(job: dict) -> None:
    """Against the schema of Kubernetes; unknown fields are errors."""
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "mine"}, **job}
    kubernetes_validate.validate(whole, "1.37", strict=True)


def check_fields(value: dict, allowed: dict) -> None:
    """That a tree has no fields but those of `allowed`, with the types given there."""
    for name, inner in value.items():
        assert name in allowed, name
        kind = allowed[name]
        if isinstance(kind, type):
            assert type(inner) is kind, name
        elif isinstance(kind, list):
            for one in inner:
                check_fields(one, kind[0])
        else:
            check_fields(inner, kind)


# jobset.x-k8s.io/v1alpha2, as far as it is used; the jobs in it are of batch/v1.
_JOBSET = {
    "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
    "failurePolicy": {
        "maxRestarts": int,
        "rules": [{"name": str, "action": str, "onJobFailureReasons": list}],
    },
    "replicatedJobs": [{"name": str, "replicas": int, "template": dict}],
}

# CustomJobSpec of Vertex AI, version 1, as far as it is used.
_VERTEX = {
    "workerPoolSpecs": [
        {
            "machineSpec": {"machineType": str, "acceleratorType": str, "acceleratorCount": int},
            "replicaCount": int,
            "containerSpec": {
                "imageUri": str,
                "command": list,
                "env": [{"name": str, "value": str}],
            },
        }
    ],
    "scheduling": {"timeout": str, "restartJobOnWorkerRestart": bool, "strategy": str},
}


def container(pod: dict) -> dict:
    (only,) = pod["containers"]
    return only


def codes(job: dict) -> dict[int, str]:
    """Exit code -> what the Job does."""
    rules = job["podFailurePolicy"]["rules"]
    return {rule["onExitCodes"]["values"][0]: rule["action"] for rule in rules}


@pytest.mark.parametrize("claim", ["", "disk"])
def test_jobset(claim):
    made = clusters.jobset(training(claim=claim, grace_seconds=120))
    assert made["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    check_fields(made["spec"], _JOBSET)
    (replicated,) = made["spec"]["replicatedJobs"]
    check_job(replicated["template"])
    job = replicated["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (2, 2, 0)
    assert codes(job) == {2: "FailJob", 42: "Ignore"}
    (rule,) = made["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 120
    assert container(pod)["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    command = container(pod)["command"]
    assert command[:4] == ["python", "-m", "trainer.main", "--strategy=multi_worker"]
    assert "--grace_seconds=120" in command and command[-3:] == list(FLAGS)
    assert ("shared" in [volume["name"] for volume in pod["volumes"]]) == bool(claim)


def test_the_trainer_understands_the_jobset():
    (replicated,) = clusters.jobset(training(workers=3))["spec"]["replicatedJobs"]
    env = container(replicated["template"]["spec"]["template"]["spec"])["env"]
    values = {one["name"]: one["value"] for one in env} | {"JOB_COMPLETION_INDEX": "2"}
    cluster = find_cluster("auto", values)
    # <jobset>-<replicated job>-<job>-<pod>.<subdomain>
    assert cluster.addresses[2] == "mine-worker-0-2.mine:2222"
    assert (cluster.worker.index, cluster.worker.count) == (2, 3)


def test_a_misspelt_field_is_found():
    (replicated,) = clusters.jobset(training())["spec"]["replicatedJobs"]
    replicated["template"]["spec"]["template"]["spec"]["restartPolice"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError, match="restartPolice"):
        check_job(replicated["template"])
    with pytest.raises(AssertionError, match="replicaCuont"):
        check_fields({"workerPoolSpecs": [{"replicaCuont": 1}]}, _VERTEX)


@pytest.mark.parametrize(
    ("tpu_type", "selector", "chips"),
    [
        ("v5litepod-8", ("tpu-v5-lite-podslice", "2x4"), 8),
        ("v6e-4", ("tpu-v6e-slice", "2x2"), 4),
        ("v5p-8", ("tpu-v5p-slice", "2x2x1"), 4),
        ("v4-8", ("tpu-v4-podslice", "2x2x1"), 4),
    ],
)
def test_gke_tpu(tpu_type, selector, chips):
    job = clusters.gke_tpu(training(workers=1, gpus=0, spot=True), tpu_type)
    check_job(job)
    assert (job["spec"]["completions"], job["spec"]["backoffLimit"]) == (1, 10)
    assert codes(job["spec"]) == {2: "FailJob", 42: "Ignore"}
    pod = job["spec"]["template"]["spec"]
    label = "cloud.google.com/gke-"
    assert pod["nodeSelector"] == {
        f"{label}tpu-accelerator": selector[0],
        f"{label}tpu-topology": selector[1],
        f"{label}spot": "true",
    }
    assert container(pod)["resources"] == {"limits": {"google.com/tpu": chips}}
    assert container(pod)["command"][3:6] == [
        *("--strategy=tpu", "--tpu=local", f"--tpu_type={tpu_type}")
    ]


def test_a_slice_of_several_hosts_is_not_for_gke():
    for tpu_type, message in (
        ("v5litepod-16", "--tpu_type=v5litepod-16: a multi-host slice needs servers"),
        ("v5litepod-2", r"--tpu_type=v5litepod-2: no slice has that size; .* has 1, 4, 8, 16"),
        ("v5x-8", "--tpu_type=v5x-8 is unknown"),
    ):
        with pytest.raises(UsageError, match=message):
            clusters.gke_tpu(training(workers=1, gpus=0), tpu_type)


def test_vertex():
    made = clusters.vertex(training(workers=4, spot=True), "a3-highgpu-8g", "NVIDIA_H100_80GB", 2.0)
    check_fields(made, _VERTEX)
    assert [pool["replicaCount"] for pool in made["workerPoolSpecs"]] == [1, 3]
    assert made["workerPoolSpecs"][0]["machineSpec"]["acceleratorCount"] == 8
    assert made["scheduling"] == {
        "timeout": "172800s",
        "restartJobOnWorkerRestart": True,
        "strategy": "SPOT",
    }
    alone = clusters.vertex(training(workers=1, gpus=0), "n2-standard-8", "", 1.0)
    assert len(alone["workerPoolSpecs"]) == 1
    assert "--strategy=mirrored" in alone["workerPoolSpecs"][0]["containerSpec"]["command"]


# srun runs the command once for each task; its code is the highest of theirs.
_SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "srun $1" >> "$LOG"; shift; done
highest=0
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=0 SLURM_NODEID=$rank SLURM_STEP_NUM_TASKS=2 \
        SLURM_STEP_NODELIST=node[9-10] SLURM_STEP_TASKS_PER_NODE='1(x2)' "$@"
    code=$?
    ((code > highest)) && highest=$code
done
exit $highest
"""
# Instead of the trainer: says which task it is, and ends with the next of the planned codes.
_TRAINER = """#!/bin/bash
echo "worker $SLURM_PROCID: $*" >> "$LOG"
IFS=, read -ra codes <<< "$CODES"
exit "${codes[$(($(grep -c "worker 0" "$LOG") - 1))]}"
"""


def run_slurm(folder: Path, script: str, plan: str) -> tuple[int, str]:
    """Runs it as sbatch would; the exit code, and what the stand-ins saw."""
    log = folder / "log"
    log.write_text("")
    for name, text in (
        ("srun", _SRUN),
        ("scontrol", '#!/bin/bash\necho "scontrol $*" >> "$LOG"\n'),
        ("sleep", '#!/bin/bash\necho "sleep $*" >> "$LOG"\n'),
        ("trainer", _TRAINER),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "job.sh").write_text(script)
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "17",
        "CODES": plan,
        "LOG": str(log),
    }
    done = subprocess.run(["bash", "job.sh"], cwd=folder, env=environment, check=False)
    return done.returncode, log.read_text()


@pytest.mark.parametrize(
    ("plan", "code", "starts", "pauses"),
    [
        ("0", 0, 1, []),
        ("2", 2, 1, []),
        ("1,1,0", 0, 3, ["1", "2"]),
        ("137,1,1", 1, 3, ["1", "2"]),  # a third restart is one too many
        ("1,42", 42, 2, ["1"]),
    ],
)
def test_slurm(tmp_path, plan, code, starts, pauses):
    made = clusters.slurm(training(max_restarts=2), "trainer", 12.0, ("--partition=gpu",))
    for line in ("--nodes=2", "--gpus-per-node=8", "--time=720", "--partition=gpu", "--requeue"):
        assert f"#SBATCH {line}\n" in made
    assert "#SBATCH --signal=TERM@300\n" in made
    ended, log = run_slurm(tmp_path, made, plan)
    command = "-m trainer.main --strategy=multi_worker --grace_seconds=300 " + " ".join(FLAGS)
    for worker in (0, 1):
        assert log.count(f"worker {worker}: {command}\n") == starts
    assert ended == code
    assert re.findall(r"^sleep (.*)$", log, re.M) == pauses
    assert log.count("srun --distribution=block\n") == starts
    assert log.endswith("scontrol requeue 17\n") == (code == 42)
    assert log.count("scontrol") == (code == 42)


def test_slurm_kills_a_worker_that_stands_still():
    """Not before the others have had the time to end by themselves."""
    for grace, wait in ((300, 660), (900, 900)):
        made = clusters.slurm(training(grace_seconds=grace), "trainer", 12.0, ())
        assert f" --wait={wait} " in made
    with pytest.raises(UsageError, match=r"--hours=1 ends before .* stopped 7200 s earlier"):
        clusters.slurm(training(grace_seconds=7200), "trainer", 1.0, ())


def test_the_command():
    arguments = ("jobset", "--name=mine", "--workers=2", "--image=i", "--")
    code, out, err = run_command(
        "launch.render", *arguments, *FLAGS, "--config.train.batch_tokens=4096"
    )
    assert (code, err) == (0, "")
    assert yaml.safe_load(out)["kind"] == "JobSet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("slurm", "--name=mine", "--", *FLAGS[:1]), "--model_dir=... is missing"),
        (("slurm", "--name=mine", "--", *FLAGS, "--strategy=tpu"), "--strategy after --"),
        (("jobset", "--name=mine", "--", *FLAGS), "jobset needs --image"),
        (("jobset", "--name=M", "--image=i", "--", *FLAGS), "--name=... is missing, or not"),
        (("vertex", "--name=m", "--image=i", "--", *FLAGS[1:], "--data_dir=/d"), "use gs://"),
        (("gke_tpu", "--name=m", "--image=i", "--", *FLAGS), "gke_tpu needs --tpu_type"),
        (
            ("vertex", "--name=m", "--image=i", "--claim=c", "--", *FLAGS),
            "--claim is for jobset and gke_tpu, not for vertex",
        ),
        (("jobset", "--name=m", "--image=i", "--", *FLAGS, "--init_from=m/x"), "--init_from=m/x: "),
        (
            ("jobset", "--name=m", "--image=i", "--", *FLAGS, "--config.data.stages=/d/mix:40"),
            "--config.data.stages=/d/mix: the machines do not have it; use gs://",
        ),
        (("slurm", "--name=m", "--sbatch=gpu", "--", *FLAGS), "--sbatch=gpu: an option of sbatch"),
        (("slurm", "--name=m", "--hours=inf", "--", *FLAGS), "--hours=inf: give a finite number"),
        (("slurm", "--name=m", "--", *FLAGS, "--config.train.stepz=1"), "stepz"),
        (("slurm", "--name=m", "--", *FLAGS, "--precision=float99"), "should be one of <float32|"),
        (("slurm", "--name=m", "--", *FLAGS, "--unknown=1"), "trainer.main says: Unknown command"),
        (("jobset", "--name=m", "--image=i", "--hours=2", "--", *FLAGS), "--hours is for slurm,"),
        (("slurm", "--name=m", "--workers=7", "--", *FLAGS), "7 replica(s) cannot share equally"),
        (("cloud", "--name=m"), "usage: python -m launch.render slurm|jobset|gke_tpu|vertex"),
    ],
)
def test_bad_usage_is_one_line(arguments, message):
    code, out, err = run_command("launch.render", *arguments)
    assert (code, out) == (2, "")
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
