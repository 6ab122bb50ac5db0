"""Where training runs: one device, the GPUs of one machine or of several, or a TPU."""

import os
import re
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from common.console import error_text
from common.errors import RetryError, UsageError
from common.files import passing_errors
from trainer.distributed.cluster import Cluster, find_cluster, set_heartbeat
from trainer.distributed.heartbeat import PROGRESS
from trainer.distributed.wire import listen

STRATEGIES = ("one_device", "mirrored", "multi_worker", "tpu")

_NO_REASON = re.compile(r"Graph execution error|Detected at node|<stack traces")

Made = tuple[tf.distribute.Strategy, str]


def make_strategy(
    name: str,
    num_virtual_devices: int = 0,
    *,
    cluster: str = "auto",
    timeout_seconds: float | None = None,
    heartbeat_seconds: float | None = None,
    meet: Callable[[Cluster], object] | None = None,
    tpu: str = "local",
    tpu_zone: str | None = None,
    tpu_project: str | None = None,
) -> Made:
    """Make the distribution strategy of that name.

    Call it before any other TensorFlow operation of the process: multi_worker and tpu set up
    TensorFlow's runtime, which can be done only once. Under multi_worker it returns when all
    workers have called it.

    Args:
        name: one of `STRATEGIES`.
        num_virtual_devices: splits the CPU into so many devices, each a replica of "mirrored"; 0
            for none. For tests and demonstrations: it makes nothing faster.
        cluster: for multi_worker, where to read who the workers are; see
            `trainer.distributed.cluster.find_cluster`.
        timeout_seconds: for multi_worker, after how many seconds a collective operation that waits
            for another worker fails, longer than the chief's longest pause between steps; None for
            TensorFlow's default, which is to wait.
        heartbeat_seconds: for multi_worker, after how many seconds without a heartbeat TensorFlow
            takes another worker for dead; None for its default, which is 10.
        meet: for multi_worker, called with the cluster before TensorFlow starts, to meet the other
            workers.
        tpu: "local" for the TPU of this machine, or the name or grpc:// address of a slice.
        tpu_zone: the Google Cloud zone of a slice given by name; None for that of this machine.
        tpu_project: its project, likewise.

    Returns:
        The strategy, and a line that says what it runs on.

    Raises:
        UsageError: for a strategy that does not exist or that this machine cannot run.
        RetryError: if a TPU is not available at the moment.
    """
    _check_name(name)
    # These two look for convolutions and for layers to fuse, of which the step has none: the same
    # numbers at the same speed, and the first step comes 0.4 s earlier, with 8 replicas 2 s.
    tf.config.optimizer.set_experimental_options({"layout_optimizer": False, "remapping": False})
    if name != "mirrored" and num_virtual_devices > (1 if name == "one_device" else 0):
        raise UsageError(
            f"--num_virtual_devices={num_virtual_devices} is for --strategy=mirrored; "
            f"--strategy={name} runs on real devices: leave it out"
        )
    if name == "multi_worker":
        return _multi_worker(cluster, timeout_seconds, heartbeat_seconds, meet)
    if os.environ.get("TF_CONFIG") and find_cluster("tf_config").worker.count > 1:
        raise UsageError(
            f"--strategy={name}, but TF_CONFIG names several workers, which would each train by "
            "themselves, into the same model directory; use --strategy=multi_worker"
        )
    if name == "tpu":
        return _tpu(tpu, tpu_zone, tpu_project)
    gpus = tf.config.list_logical_devices("GPU") if not num_virtual_devices else []
    if name == "one_device":
        device = gpus[0].name if gpus else "/device:CPU:0"
        return tf.distribute.OneDeviceStrategy(device), f"one device, {device}"
    if num_virtual_devices:
        return _virtual_cpus(num_virtual_devices)
    if gpus:
        return tf.distribute.MirroredStrategy(), f"{len(gpus)} replicas, one a GPU"
    strategy = tf.distribute.MirroredStrategy(["/device:CPU:0"])
    return strategy, "1 replica on the CPU: this machine has no GPU that TensorFlow can use"


def _check_name(name: str) -> None:
    if name == "parameter_server":
        raise UsageError(
            "--strategy=parameter_server is not supported: Keras 3 does not train under it, and "
            "its updates are asynchronous, while this trainer promises the same update on any "
            "number of workers; use --strategy=multi_worker"
        )
    if name not in STRATEGIES:
        raise UsageError(
            f"--strategy={name} is not known; this version runs "
            f"{', '.join(STRATEGIES[:-1])} and {STRATEGIES[-1]}"
        )


def _virtual_cpus(count: int) -> Made:
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or []) < count:
        split = [tf.config.LogicalDeviceConfiguration()] * count
        try:
            tf.config.set_logical_device_configuration(cpu, split)
        except RuntimeError as error:
            raise UsageError(
                f"the CPU cannot be split any more in this process: {error}"
            ) from error
    devices = [f"/device:CPU:{i}" for i in range(count)]
    return tf.distribute.MirroredStrategy(devices), f"{count} replicas on virtual CPU devices"


def _multi_worker(
    source: str,
    timeout_seconds: float | None,
    heartbeat_seconds: float | None,
    meet: Callable[[Cluster], object] | None,
) -> Made:
    cluster = find_cluster(source)
    worker, addresses = cluster.worker, cluster.addresses
    # TensorFlow would end the process with a stack trace, or wait forever, without its port.
    listen(addresses[worker.index]).close()
    if meet:
        meet(cluster)
    if heartbeat_seconds:
        set_heartbeat(cluster, heartbeat_seconds)
    _bypass_proxies()
    # Visible devices: listing the logical ones would start the runtime too early.
    gpus = len(tf.config.get_visible_devices("GPU"))
    options = tf.distribute.experimental.CommunicationOptions(
        # NCCL between GPUs; rings over gRPC between CPUs.
        implementation=tf.distribute.experimental.CommunicationImplementation.AUTO,
        timeout_seconds=timeout_seconds,
    )
    PROGRESS.connecting = True
    strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster.resolver(gpus), options)
    PROGRESS.connecting = False
    shown = ", ".join(addresses[:4]) + (", ..." if len(addresses) > 4 else "")
    description = (
        f"worker {worker.index} of {worker.count} ({shown}), "
        f"{strategy.num_replicas_in_sync} replicas in all, {'one a GPU' if gpus else 'on CPUs'}"
    )
    return strategy, description


def _tpu(name: str, zone: str | None, project: str | None) -> Made:
    """Connect to the TPU of this machine, or to a slice that this one process drives.

    Connecting makes TensorFlow forget all devices, and initializing clears the TPU's memory.
    """
    _bypass_proxies()
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
            tpu=name, zone=zone, project=project
        )
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except passing_errors() as error:  # it starts, or restarts
        raise RetryError(
            f"TPU {name} is not available: {error_text(error)}; start again"
        ) from error
    # Any: looking a slice up by name raises errors of packages that need not be installed.
    except Exception as error:
        raise UsageError(_tpu_trouble(name, error)) from error
    strategy = tf.distribute.TPUStrategy(resolver)
    hosts = strategy.extended.num_hosts
    return strategy, f"{strategy.num_replicas_in_sync} replicas on TPU {name}, {hosts} host(s)"


def _bypass_proxies() -> None:
    """Let TensorFlow connect the machines of a cluster directly.

    gRPC would send even what is meant for this machine through the proxy for the outside world that
    http_proxy or https_proxy names, and wait forever. Storage and Google's services, which
    TensorFlow does not reach by gRPC, keep their proxy.
    """
    name, direct = "TF_GRPC_DEFAULT_OPTIONS", "grpc.enable_http_proxy=0"
    others = os.environ.get(name)
    os.environ[name] = f"{others},{direct}" if others else direct


def _tpu_trouble(name: str, error: Exception) -> str:
    if "No OpKernel was registered" in str(error):
        return (
            "--strategy=tpu: this TensorFlow is a build without TPU support; on the TPU machine "
            "install the extra tpu into an empty environment: pip install -e '.[tpu]'"
        )
    remedy = (
        "run on a TPU VM, where no other process holds the TPU"
        if name == "local"
        else "check its name, --tpu_zone and --tpu_project; look-up by name needs the package "
        "cloud-tpu-client"
    )
    # TensorFlow says above the reason where in a graph it happened.
    lines = [line for line in str(error).splitlines() if line and not _NO_REASON.match(line)]
    reason = lines[0].strip() if lines else type(error).__name__
    return f"--strategy=tpu finds no TPU ({name}): {reason}; {remedy}"


def check_paths(name: str, strategy: tf.distribute.Strategy, *paths: str) -> None:
    """Check that all hosts of a TPU slice can read and write these paths.

    One process drives the slice, but the other hosts run the input pipelines and write checkpoints.

    Args:
        name: the strategy's name; there is nothing to check unless it is "tpu".
        strategy: the strategy.
        *paths: data and model directories.

    Raises:
        UsageError: if the slice has several hosts and a path is not on gs://.
    """
    if name != "tpu" or strategy.extended.num_hosts == 1:
        return
    for path in paths:
        if not path.startswith("gs://"):
            raise UsageError(
                f"{path} is a path of this machine, and the TPU slice has "
                f"{strategy.extended.num_hosts} hosts that all open it: use a gs:// path"
            )


def all_gpus() -> tf.distribute.Strategy:
    """Return a strategy that copies a model to every GPU of this machine.

    With one GPU, or none, it is TensorFlow's default strategy.
    """
    if len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def use_xla(jit_compile: str, strategy: tf.distribute.Strategy) -> bool:
    """Return whether --jit_compile ("auto", "on" or "off") means XLA under this strategy.

    "auto" means it on GPUs, in any precision. Not on TPUs: TPUStrategy compiles the whole step
    itself. Not on CPUs: it takes longer to compile and is not faster.

    Raises:
        UsageError: for "on" under TPUStrategy.
    """
    if jit_compile == "auto":
        return _device_type(strategy) == "GPU"
    if jit_compile == "on" and compiles_itself(strategy):
        raise UsageError(
            "--jit_compile=on is not for --strategy=tpu: TPUStrategy compiles the step itself, and "
            "TensorFlow's TPU builds cannot compile for the host's CPU; leave the flag out"
        )
    return jit_compile == "on"


def draws_on_device(fast_dropout: str, strategy: tf.distribute.Strategy, jit_compile: bool) -> bool:
    """Return whether `train.fast_dropout` means XLA's default generator under this strategy.

    Args:
        fast_dropout: "auto", "on" or "off".
        strategy: the strategy.
        jit_compile: what `use_xla` returned.

    Raises:
        UsageError: for "on" without XLA.
    """
    if fast_dropout == "on" and not (jit_compile or compiles_itself(strategy)):
        raise UsageError(
            "--config.train.fast_dropout=on is XLA's generator, and this run is not compiled: "
            "add --jit_compile=on, or leave it at auto"
        )
    return fast_dropout == "on" or (fast_dropout == "auto" and compiles_itself(strategy))


def function_options(strategy: tf.distribute.Strategy, jit_compile: bool) -> dict[str, Any]:
    """Return the options of a `tf.function` that each device of this process calls in a step."""
    # AutoGraph would take a second to rewrite the whole model, for nothing.
    options: dict[str, Any] = {"jit_compile": jit_compile or None, "autograph": False}
    several = strategy.num_replicas_in_sync > 1 and len(strategy.extended.worker_devices) > 1
    if several and not compiles_itself(strategy):
        # Inlined, as many copies as there are devices would be optimised as one large graph.
        options["experimental_attributes"] = {"_noinline": True}
    return options


def compiles_itself(strategy: tf.distribute.Strategy) -> bool:
    """Return whether the strategy compiles all that it runs."""
    return _device_type(strategy) == "TPU"


def _device_type(strategy: tf.distribute.Strategy) -> str:
    """Return "CPU", "GPU" or "TPU"."""
    if not tf.distribute.has_strategy() and strategy is tf.distribute.get_strategy():
        return "GPU" if tf.config.list_logical_devices("GPU") else "CPU"  # it lists no devices
    return tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type
