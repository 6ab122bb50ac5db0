"""The processes that train together: who they are, and how they agree on a number.

Under `--strategy=multi_worker` every worker is a process that runs the same program, with a replica
on each of its GPUs (or one on its CPU). `find_cluster` reads from the environment who they are.
With a single process, under any strategy, the sums below are the identity and run no TensorFlow
operation.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

# These are not public; tests/trainer/distributed/test_cluster.py guards them.
from tensorflow.python.distribute import multi_worker_util
from tensorflow.python.distribute.cluster_resolver.slurm_cluster_resolver import (
    expand_hostlist,
    expand_tasks_per_node,
)
from tensorflow.python.eager import context

from common.errors import UsageError
from trainer.distributed.heartbeat import PROGRESS

CLUSTERS = ("auto", "tf_config", "slurm", "kubernetes")

_ADDRESS = re.compile(r"(?:[^\s:/\[\]]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})")  # host or [IPv6], port
_LEAVE_MILLISECONDS = 60_000
_REFUSED_JOBS = {
    "ps": "parameter servers update asynchronously, and this trainer promises synchronous steps",
    "evaluator": "the trainer evaluates on its workers; trainer.evaluate scores a saved model",
}


def _is_name(address: str) -> bool:
    """Return whether a host's name can be looked up: none of its labels is empty or too long."""
    try:
        address.rpartition(":")[0].encode("idna")
    except UnicodeError:
        return False
    return True


@dataclass(frozen=True)
class Worker:
    """This process among those that train together: number `index` of `count`."""

    index: int
    count: int

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes what only one may write: checkpoints, metrics, messages."""
        return self.index == 0


@dataclass(frozen=True)
class Cluster:
    """All workers, and which of them this process is.

    Args:
        where: where this was read from, for messages.
        jobs: "chief" (one address or none) and "worker" -> their addresses, as in TF_CONFIG.
        task_type: "chief" or "worker".
        task_index: which one of them, from 0.

    Raises:
        UsageError: for an address that is not host:port or is there twice, and for a task that is
            not among the jobs.
    """

    where: str
    jobs: dict[str, list[str]]
    task_type: str
    task_index: int

    def __post_init__(self):
        for address in self.addresses:
            match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
            if not match or not 0 < int(match[1]) < 65536 or not _is_name(address):
                raise UsageError(f"{self.where}: {address!r} is not an address like host:2222")
        tasks = len(self.jobs.get(self.task_type, []))
        if not 0 <= self.task_index < tasks:
            raise UsageError(
                f"{self.where}: this process is {self.task_type} {self.task_index}, but there are "
                f"{tasks} of them, counted from 0"
            )
        address, times = Counter(self.addresses).most_common(1)[0]
        if times > 1:
            raise UsageError(
                f"{self.where}: {address} is there {times} times; every worker needs its own"
            )

    @property
    def addresses(self) -> list[str]:
        """host:port of every worker, in the order of the indices."""
        return [*self.jobs.get("chief", []), *self.jobs.get("worker", [])]

    @property
    def worker(self) -> Worker:
        """This process."""
        return _worker(self.jobs, self.task_type, self.task_index)

    def resolver(self, gpus: int) -> tf.distribute.cluster_resolver.ClusterResolver:
        """Return the cluster as TensorFlow wants it, for workers with so many GPUs each."""
        return tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(self.jobs),
            task_type=self.task_type,
            task_id=self.task_index,
            num_accelerators={"GPU": gpus},
            rpc_layer="grpc",
        )


def find_cluster(source: str = "auto", environ: Mapping[str, str] | None = None) -> Cluster:
    """Find the cluster that this process was started in.

    Args:
        source: "tf_config", "slurm", "kubernetes", or "auto" for the first of these that the
            environment describes.
        environ: the environment variables; None for those of this process.

    Raises:
        UsageError: if the environment describes no cluster, or one that cannot be.
    """
    environ = os.environ if environ is None else environ
    if source not in CLUSTERS:
        raise UsageError(f"--cluster={source} is not known; choose one of {', '.join(CLUSTERS)}")
    if source == "auto":
        source = _guess(environ)
    if source == "tf_config":
        return _from_tf_config(environ)
    if source == "slurm":
        return _from_slurm(environ)
    return _from_kubernetes(environ)


def _guess(environ: Mapping[str, str]) -> str:
    if environ.get("TF_CONFIG"):
        return "tf_config"
    if "SLURM_PROCID" in environ and "SLURM_STEP_NUM_TASKS" in environ:
        return "slurm"
    if "JOB_COMPLETION_INDEX" in environ:
        return "kubernetes"
    raise UsageError(
        "--strategy=multi_worker finds no cluster: set TF_CONFIG on every worker, or start them "
        "with srun or as a Kubernetes Indexed Job; for workers on this machine alone use "
        "python -m launch.local"
    )


def _from_tf_config(environ: Mapping[str, str]) -> Cluster:
    """Read TF_CONFIG, which tf.distribute defines and most platforms set."""
    try:
        config = json.loads(environ.get("TF_CONFIG") or "{}")
    except json.JSONDecodeError as error:
        raise UsageError(f"TF_CONFIG is not JSON: {error}") from error
    try:
        jobs = {job: list(tasks) for job, tasks in config["cluster"].items() if tasks}
        task_type, task_index = str(config["task"]["type"]), int(config["task"]["index"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            'TF_CONFIG must look like {"cluster": {"worker": ["host:port", ...]}, '
            '"task": {"type": "worker", "index": 0}}'
        ) from error
    for job in jobs:
        if job not in ("chief", "worker"):
            reason = _REFUSED_JOBS.get(job, "the jobs are chief and worker")
            raise UsageError(f"TF_CONFIG: cluster.{job} is not for this trainer: {reason}")
    if len(jobs.get("chief", [])) > 1:
        raise UsageError("TF_CONFIG: cluster.chief has more than one address; there is one chief")
    return Cluster("TF_CONFIG", jobs, task_type, task_index)


def _from_slurm(environ: Mapping[str, str]) -> Cluster:
    """Read what srun says of its step, with one task per worker.

    Of TensorFlow's `SlurmClusterResolver` only the parsers are of use: it sorts the nodes as text,
    so that node10 comes before node9 and tasks take each other's address; it fails without GPUs;
    and it overwrites the CUDA_VISIBLE_DEVICES that Slurm has set.

    The ports of a node's workers follow from the number of the job, so that two jobs on one node
    seldom meet, and are below 32768, where Linux begins to hand out ports.
    """
    try:
        rank, local, node, job = (
            int(environ[f"SLURM_{name}"]) for name in ("PROCID", "LOCALID", "NODEID", "JOB_ID")
        )
        hosts = expand_hostlist(environ["SLURM_STEP_NODELIST"])
        tasks = expand_tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])
        counted = list(zip(hosts, tasks, strict=True))
    except KeyError as error:
        raise UsageError(
            f"{error.args[0]} is not set: start the trainer with srun, one task a worker"
        ) from error
    except ValueError as error:
        raise UsageError(f"the Slurm variables cannot be read ({error}); set TF_CONFIG") from error
    if rank != sum(tasks[:node]) + local:
        raise UsageError(
            "the tasks of this Slurm step are not placed in blocks: add "
            "--distribution=block to srun"
        )
    port = 15000 + 16 * (job % 1000)
    workers = [f"{host}:{port + number}" for host, count in counted for number in range(count)]
    return Cluster("the Slurm step", {"worker": workers}, "worker", rank)


def _from_kubernetes(environ: Mapping[str, str]) -> Cluster:
    """Read the WORKER_HOSTS and JOB_COMPLETION_INDEX of an Indexed Job behind a headless service.

    The names of its pods are known before they start and stay the same when a pod is replaced, so
    the pod template lists them in order: WORKER_HOSTS="train-0.train:2222,train-1.train:2222". The
    service should have publishNotReadyAddresses, as workers wait for each other before they are
    ready. TensorFlow's `KubernetesClusterResolver` would have to be allowed to list the pods of all
    namespaces, fails unless all of them run already, and cannot tell which pod this is.
    """
    try:
        index = int(environ["JOB_COMPLETION_INDEX"])
        hosts = environ["WORKER_HOSTS"]
    except (KeyError, ValueError) as error:
        raise UsageError(
            "a Kubernetes worker needs JOB_COMPLETION_INDEX, which a Job has with completionMode: "
            "Indexed, and WORKER_HOSTS=job-0.service:2222,job-1.service:2222,... in its template"
        ) from error
    workers = [host.strip() for host in hosts.split(",")]
    return Cluster("WORKER_HOSTS", {"worker": workers}, "worker", index)


def set_heartbeat(cluster: Cluster, seconds: float) -> None:
    """Set the time without a heartbeat after which TensorFlow takes a worker for dead.

    Call it before the strategy is made, which would choose 10 s and otherwise the same settings.
    """
    jobs = tf.compat.v1.ConfigProto().experimental.coordination_config.coordinated_job_list
    for job, tasks in cluster.jobs.items():
        jobs.add(name=job, num_tasks=len(tasks))
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=multi_worker_util.coordination_leader(tf.train.ClusterSpec(cluster.jobs)),
        heartbeat_timeout_in_ms=round(1000 * seconds),
        coordinated_jobs=list(jobs),
    )


def worker_of(strategy: tf.distribute.Strategy) -> Worker:
    """Return which worker of the strategy this process is; 0 of 1 unless it is multi_worker.

    A TPU slice of several hosts counts as one: a single process drives all of them.
    """
    # Not for every strategy with a resolver: that of a TPU slice lists the hosts.
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return Worker(0, 1)
    resolver = strategy.cluster_resolver
    jobs = resolver.cluster_spec().as_dict()
    return _worker(jobs, resolver.task_type, resolver.task_id) if jobs else Worker(0, 1)


def hosts_of(strategy: tf.distribute.Strategy) -> int:
    """Return on how many machines the workers of a strategy run, by their addresses."""
    if worker_of(strategy).count == 1:
        return 1
    jobs = strategy.cluster_resolver.cluster_spec().as_dict().values()
    return len({address.rpartition(":")[0] for addresses in jobs for address in addresses})


def _worker(jobs: Mapping[str, Sequence[str]], task_type: str, task_index: int) -> Worker:
    """A chief, if there is one, is worker 0; the workers then count from 1."""
    chiefs = len(jobs.get("chief", []))
    index = task_index if task_type == "chief" else chiefs + task_index
    return Worker(index, chiefs + len(jobs.get("worker", [])))


def sum_over_workers(strategy: tf.distribute.Strategy, values: ArrayLike) -> np.ndarray:
    """Return the sum of what the workers pass, the same on each of them.

    All workers must call it at the same point of the program, with the same shape: it waits for
    them. Every worker counts once, whatever the number of its replicas.

    Args:
        strategy: the strategy of this process.
        values: an array or sequence of any shape. Integers are exact while the sum stays below
            2**53 in magnitude.

    Returns:
        float64, in the shape of `values`.
    """
    array = np.array(values, np.float64)
    if worker_of(strategy).count == 1 or not array.size:  # of nothing, the reduction would crash
        return array
    with PROGRESS:
        return _sum_function(strategy)(tf.constant(array)).numpy()


def from_chief(strategy: tf.distribute.Strategy, values: ArrayLike) -> np.ndarray:
    """Return what the chief passes, on every worker. Call it as `sum_over_workers`."""
    array = np.array(values, np.float64)
    # Adding zeros changes nothing, not even infinity and NaN.
    return sum_over_workers(
        strategy, array if worker_of(strategy).is_chief else np.zeros_like(array)
    )


def gather(strategy: tf.distribute.Strategy, text: str) -> list[str]:
    """Return the texts of all workers, on every worker. Call it as `sum_over_workers`."""
    worker, data = worker_of(strategy), np.frombuffer(text.encode(), np.uint8)
    sizes = np.zeros(worker.count)
    sizes[worker.index] = len(data)
    sizes = sum_over_workers(strategy, sizes).astype(int)
    ends = np.cumsum(sizes)
    # A power of two, because every new shape takes collective keys.
    joined = np.zeros(1 << int(ends[-1]).bit_length(), np.float64)
    joined[ends[worker.index] - len(data) : ends[worker.index]] = data
    joined = sum_over_workers(strategy, joined).astype(np.uint8)
    parts = (joined[end - size : end] for end, size in zip(ends, sizes, strict=True))
    return [part.tobytes().decode() for part in parts]


def same_everywhere(strategy: tf.distribute.Strategy, text: str) -> bool:
    """Tell all workers whether all of them pass the same text. Call it as `sum_over_workers`.

    It compares 48 bits of SHA-256, which a float64 holds exactly.
    """
    digest = float(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))
    of_chief = from_chief(strategy, [digest])[0]
    agreeing = sum_over_workers(strategy, [digest == of_chief])[0]
    return bool(agreeing == worker_of(strategy).count)


def barrier(strategy: tf.distribute.Strategy) -> None:
    """Wait until all workers have called this."""
    sum_over_workers(strategy, [0.0])


def hear_signals(tell: Callable[[str], object]) -> None:
    """Call `tell` when a worker got a SIGTERM that TensorFlow's handler took, not ours.

    It is in place for a moment while the strategy is made (see `trainer.runtime.signals`), and
    tells all workers, under this key of the coordination service.
    """

    def wait() -> None:
        with contextlib.suppress(tf.errors.OpError):  # the service has ended, and the run with it
            context.context().get_config_key_value("TF_DEFAULT_PREEMPTION_NOTICE_KEY")
            tell("SIGTERM")

    threading.Thread(target=wait, daemon=True, name="preemption").start()


def leave(strategy: tf.distribute.Strategy) -> None:
    """Wait until nobody needs anything from this worker any more and its process may end.

    A barrier is not enough: a worker that has passed it might end, and close its connections, while
    another one still receives what lets it pass. So each says through the coordination service that
    it has passed, and waits for all others to say so. The chief hosts the service and goes last.
    """
    worker = worker_of(strategy)
    if worker.count == 1:
        return
    service = context.context()
    try:
        barrier(strategy)
        service.set_config_key_value(f"passed/{worker.index}", "yes")
        for index in range(worker.count):
            service.get_config_key_value(f"passed/{index}", _LEAVE_MILLISECONDS)
    except tf.errors.OpError as error:
        # The chief has left, so all had passed; or a worker died now that everything is saved.
        print(f"leaving alone: another worker has ended ({type(error).__name__})", flush=True)
    if worker.is_chief:
        time.sleep(1)  # until the answers are out


@functools.cache
def _sum_function(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function that sums a float64 tensor over the workers.

    It is kept and traced once for each shape: every trace takes new collective keys, which
    TensorFlow never gives back.
    """
    local_replicas = len(strategy.extended.worker_devices)

    def on_replica(values):
        replica = tf.distribute.get_replica_context()
        is_first = tf.equal(replica.replica_id_in_sync_group % local_replicas, 0)
        once = tf.where(is_first, values, tf.zeros_like(values))
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, once)

    @tf.function(autograph=False)
    def total(values):
        return strategy.experimental_local_results(strategy.run(on_replica, args=(values,)))[0]

    return total
