"""Who the workers are, from each kind of environment; and two real ones that agree on numbers."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from trainer.distributed import cluster
from trainer.distributed.cluster import Worker, find_cluster

ROOT = str(Path(__file__).parents[3])
TWO = {"worker": ["a:2222", "b:2222"]}


def tf_config(jobs, task_type="worker", index=0) -> dict[str, str]:
    config = {"cluster": jobs, "task": {"type": task_type, "index": index}}
    return {"TF_CONFIG": json.dumps(config)}


def slurm(rank: int, node: int, local: int, nodes: str, tasks: str) -> dict[str, str]:
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
        "SLURM_JOB_ID": "7002",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_TASKS_PER_NODE": tasks,
    }


def kubernetes(index: str, hosts: str) -> dict[str, str]:
    return {"JOB_COMPLETION_INDEX": index, "WORKER_HOSTS": hosts}


def test_tf_config():
    found = find_cluster("tf_config", tf_config(TWO, index=1))
    assert found.addresses == ["a:2222", "b:2222"]
    assert found.worker == Worker(1, 2)
    assert not found.worker.is_chief


def test_a_chief_is_worker_0_and_shifts_the_others():
    jobs = {"chief": ["c:1"], "worker": ["a:1", "b:1"], "evaluator": []}
    chief = find_cluster("auto", tf_config(jobs, "chief"))
    assert chief.addresses == ["c:1", "a:1", "b:1"]
    assert chief.worker == Worker(0, 3)
    assert chief.worker.is_chief
    last = find_cluster("auto", tf_config(jobs, "worker", 1))
    assert last.worker == Worker(2, 3)
    assert last.addresses[last.worker.index] == "b:1"


def test_index_as_text_and_ipv6():
    found = find_cluster("auto", tf_config({"worker": ["[fd00::1]:80", "[fd00::2]:80"]}, index="1"))
    assert found.worker == Worker(1, 2)


def test_resolver():
    resolver = find_cluster("auto", tf_config(TWO, index=1)).resolver(gpus=4)
    assert resolver.cluster_spec().as_dict() == TWO
    assert (resolver.task_type, resolver.task_id, resolver.rpc_layer) == ("worker", 1, "grpc")
    assert resolver.num_accelerators() == {"GPU": 4}


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"TF_CONFIG": "{worker"}, "TF_CONFIG is not JSON: "),
        ({"TF_CONFIG": "[1]"}, "TF_CONFIG must look like "),
        ({"TF_CONFIG": "{}"}, "TF_CONFIG must look like "),
        ({"TF_CONFIG": json.dumps({"cluster": TWO})}, "TF_CONFIG must look like "),
        (tf_config(["a:1"]), "TF_CONFIG must look like "),
        (tf_config(TWO, index=None), "TF_CONFIG must look like "),
        (tf_config({"worker": ["a:1"], "ps": ["b:1"]}), "cluster.ps .* asynchronously"),
        (tf_config({"worker": ["a:1"], "evaluator": ["b:1"]}), "cluster.evaluator .*evaluate"),
        (tf_config({"worker": ["a:1"], "master": ["b:1"]}), "cluster.master .*chief and worker"),
        (tf_config({"chief": ["a:1", "b:1"]}, "chief"), "more than one address"),
        (tf_config(TWO, index=2), "worker 2, but there are 2 of them, counted from 0"),
        (tf_config(TWO, index=-1), "worker -1, but there are 2"),
        (tf_config(TWO, "chief"), "chief 0, but there are 0"),
        (tf_config({}), "worker 0, but there are 0"),
        (tf_config({"worker": ["a:1", "b:1", "a:1"]}), "a:1 is there 2 times"),
        (tf_config({"worker": ["a"]}), "'a' is not an address like host:2222"),
        (tf_config({"worker": ["a:0"]}), "'a:0' is not an address"),
        (tf_config({"worker": ["a:65536"]}), "'a:65536' is not an address"),
        (tf_config({"worker": ["grpc://a:1"]}), "'grpc://a:1' is not an address"),
        (tf_config({"worker": ["a b:1"]}), "'a b:1' is not an address"),
        (tf_config({"worker": [1]}), "1 is not an address"),
        (tf_config({"worker": ["train-0..ns:1"]}), "'train-0..ns:1' is not an address"),
        (tf_config({"worker": [f"{'a' * 64}:1"]}), "is not an address"),
        (kubernetes("0", "a:1,,b:1"), "WORKER_HOSTS: '' is not an address"),
        (kubernetes("2", "a:1,b:1"), "WORKER_HOSTS: .*worker 2, but there are 2"),
        (kubernetes("first", "a:1,b:1"), "needs JOB_COMPLETION_INDEX"),
        ({"JOB_COMPLETION_INDEX": "0"}, "and WORKER_HOSTS="),
        (slurm(1, 1, 0, "n[1-2]", "2(x2)"), "--distribution=block"),
        (slurm(0, 0, 0, "n[1-2", "1(x2)"), "Slurm variables cannot be read"),
        (slurm(0, 0, 0, "n[1-3]", "1(x2)"), "Slurm variables cannot be read"),
        (slurm(0, 0, 0, "n[1-2]", "one"), "Slurm variables cannot be read"),
        ({"SLURM_PROCID": "0"}, "--strategy=multi_worker finds no cluster: set TF_CONFIG"),
        ({}, "python -m launch.local"),
    ],
)
def test_refusals(environ, message):
    with pytest.raises(UsageError, match=message) as refusal:
        find_cluster("auto", environ)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tf_config", "TF_CONFIG must look like"),
        ("slurm", "SLURM_PROCID is not set: start the trainer with srun"),
        ("kubernetes", "JOB_COMPLETION_INDEX"),
        ("mpi", "--cluster=mpi is not known; choose one of auto, tf_config, slurm, kubernetes"),
    ],
)
def test_a_named_source_that_is_not_there(source, message):
    with pytest.raises(UsageError, match=message):
        find_cluster(source, {})


def test_slurm_keeps_the_order_of_the_nodes():
    """Rank 2 is the first on the third node: n10, though "n10" sorts before "n8"."""
    found = find_cluster("slurm", slurm(2, 2, 0, "n[8-9],n10,gpu-a", "1(x4)"))
    assert found.addresses == ["n8:15032", "n9:15032", "n10:15032", "gpu-a:15032"]
    assert found.worker == Worker(2, 4)


def test_slurm_with_several_tasks_on_a_node():
    found = find_cluster("auto", slurm(3, 1, 0, "n[01-02]", "3,1"))
    assert found.addresses == ["n01:15032", "n01:15033", "n01:15034", "n02:15032"]
    assert found.worker == Worker(3, 4)


def test_slurm_ports_stay_below_those_that_linux_hands_out():
    environ = slurm(0, 0, 0, "n1", "16") | {"SLURM_JOB_ID": "41999"}
    assert find_cluster("slurm", environ).addresses[15] == "n1:30999"


def test_kubernetes():
    found = find_cluster("auto", kubernetes("1", "job-0.svc:2222, job-1.svc:2222"))
    assert found.addresses == ["job-0.svc:2222", "job-1.svc:2222"]
    assert found.worker == Worker(1, 2)


def test_auto_prefers_tf_config_then_slurm():
    every = tf_config(TWO) | slurm(0, 0, 0, "n1", "1") | kubernetes("0", "k:1")
    assert find_cluster("auto", every).addresses == TWO["worker"]
    del every["TF_CONFIG"]
    assert find_cluster("auto", every).addresses == ["n1:15032"]
    assert find_cluster("kubernetes", every).addresses == ["k:1"]


def test_auto_reads_this_process_environment(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config(TWO)["TF_CONFIG"])
    assert find_cluster().addresses == TWO["worker"]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_one_process_is_the_identity_and_traces_nothing():
    strategy = tf.distribute.MirroredStrategy(["/device:CPU:0", "/device:CPU:1"])
    assert cluster.worker_of(strategy) == Worker(0, 1)
    result = cluster.sum_over_workers(strategy, [1, 2.5])
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, [1, 2.5])
    np.testing.assert_array_equal(cluster.from_chief(strategy, [[3.0]]), [[3.0]])
    assert cluster.same_everywhere(strategy, "text")
    cluster.barrier(strategy)
    assert cluster._sum_function(strategy).experimental_get_tracing_count() == 0


@pytest.mark.parametrize(
    ("addresses", "hosts"),
    [(["a:1", "a:2"], 1), (["a:1", "b:1"], 2), (["[::1]:1", "[::1]:2", "[::2]:1"], 2)],
)
def test_machines_are_counted_by_their_names(monkeypatch, addresses, hosts):
    spec = SimpleNamespace(as_dict=lambda: {"worker": addresses})
    strategy = SimpleNamespace(cluster_resolver=SimpleNamespace(cluster_spec=lambda: spec))
    monkeypatch.setattr(cluster, "worker_of", lambda _: Worker(0, len(addresses)))
    assert cluster.hosts_of(strategy) == hosts
    monkeypatch.setattr(cluster, "worker_of", lambda _: Worker(0, 1))
    assert cluster.hosts_of(None) == 1


def test_a_worker_counts_once_whatever_its_replicas():
    """The compiled sum itself, over the two replicas of one worker."""
    strategy = tf.distribute.MirroredStrategy(["/device:CPU:0", "/device:CPU:1"])
    values = tf.constant([1.0, 2.0**53 - 1, np.inf], tf.float64)
    total = cluster._sum_function(strategy)(values)
    np.testing.assert_array_equal(total, [1.0, 2.0**53 - 1, np.inf])


_WORKER = """
import json, os, signal, threading
from trainer.distributed import cluster
from trainer.distributed.strategy import make_strategy
from trainer.runtime import signals
from tensorflow.python.eager import context

signals._GUARD_SECONDS = 1e6  # TensorFlow's handler stays
stop = signals.StopRequest().__enter__()
stop.hold()
strategy, description = make_strategy("multi_worker", heartbeat_seconds=61.5)
coordination = context.context().config.experimental.coordination_config
me = cluster.worker_of(strategy)
sums = [cluster.sum_over_workers(strategy, [me.index + 1, i, 2**53 - 3 if me.is_chief else 2])
        for i in range(3)]
traces = cluster._sum_function(strategy).experimental_get_tracing_count()
chief = [cluster.from_chief(strategy, [me.index + 7.25, i]) for i in range(2)]
nothing = cluster.from_chief(strategy, [])
same = [cluster.same_everywhere(strategy, text) for text in ("a", f"a{me.index}", "a")]
cluster.barrier(strategy)
if me.index == 1:
    os.kill(os.getpid(), signal.SIGTERM)
told = threading.Event()
cluster.hear_signals(lambda reason: (stop.request(reason), told.set()))
told.wait()
print(json.dumps({
    "worker": [me.index, me.count], "description": description, "traces": traces,
    "heartbeat": coordination.heartbeat_timeout_in_ms, "service": coordination.service_type,
    "leader": coordination.service_leader, "tasks": len(coordination.coordinated_job_list),
    "sums": [s.tolist() for s in sums], "chief": [c.tolist() for c in chief], "same": same,
    "stop": stop.reason, "nothing": nothing.tolist(),
}), flush=True)
cluster.leave(strategy)
os._exit(0)  # as the trainer ends: at once, while others may still be receiving
"""


_PROXIES = ("http_proxy", "https_proxy", "grpc_proxy")


def run_workers(program: str, jobs: dict[str, list[str]]) -> list[dict]:
    """The last line that each worker of a cluster prints, as JSON; the chief first."""
    processes = []
    try:
        for task_type in ("chief", "worker"):
            for index in range(len(jobs.get(task_type, []))):
                environ = {
                    **os.environ,
                    **tf_config(jobs, task_type, index),
                    **{name: "http://127.0.0.1:9" for name in _PROXIES},  # nobody listens there
                    "PYTHONPATH": ROOT,
                }
                command = [sys.executable, "-c", program]
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
                processes.append(subprocess.Popen(command, env=environ, **pipes))
        results = []
        for process in processes:
            out, err = process.communicate(timeout=600)
            assert process.returncode == 0, err[-3000:]
            results.append(json.loads(out.splitlines()[-1]))
        return results
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_two_processes_agree():
    """A chief and a worker: sums, what the chief has, texts; three sums of a shape trace once.

    A proxy for the outside world is set, which must not be used between workers. In the end both
    learn that one of them got a SIGTERM, which TensorFlow's handler took.
    """
    first, second = free_ports(2)
    jobs = {"chief": [f"localhost:{first}"], "worker": [f"localhost:{second}"]}
    results = run_workers(_WORKER, jobs)
    addresses = f"localhost:{first}, localhost:{second}"
    for index, result in enumerate(results):
        assert result == {
            "worker": [index, 2],
            "description": f"worker {index} of 2 ({addresses}), 2 replicas in all, on CPUs",
            "traces": 1,
            "heartbeat": 61_500,
            "service": "standalone",
            "leader": "/job:chief/replica:0/task:0",
            "tasks": 2,
            "sums": [[3, 2 * i, 2**53 - 1] for i in range(3)],
            "nothing": [],
            "chief": [[7.25, 0], [7.25, 1]],
            "same": [True, False, True],
            "stop": "SIGTERM",
        }
