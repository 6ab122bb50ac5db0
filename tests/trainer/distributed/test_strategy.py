"""Strategies by name: what each is made of, and what is refused. No TPU and no GPU is needed."""

import json
import os
import socket
from types import SimpleNamespace

import pytest
import tensorflow as tf

import trainer.distributed.strategy
from common.errors import RetryError, UsageError
from trainer.distributed.strategy import (
    check_paths,
    draws_on_device,
    make_strategy,
    use_xla,
)


def strategy_on(device: str, hosts: int = 1):
    """As much of a strategy as says where it runs."""
    return SimpleNamespace(extended=SimpleNamespace(worker_devices=(device,), num_hosts=hosts))


def test_one_device():
    strategy, description = make_strategy("one_device")
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
    assert description == "one device, /device:CPU:0"
    assert make_strategy("one_device", 1)[0].num_replicas_in_sync == 1


def test_mirrored():
    strategy, description = make_strategy("mirrored")
    assert strategy.num_replicas_in_sync == 1
    assert description.startswith("1 replica on the CPU")
    strategy, description = make_strategy("mirrored", 3)
    assert strategy.num_replicas_in_sync == 3
    assert description == "3 replicas on virtual CPU devices"


def test_more_virtual_devices_than_the_process_has():
    tf.config.list_logical_devices()  # from here on TensorFlow keeps those of conftest.py
    with pytest.raises(UsageError, match="the CPU cannot be split any more"):
        make_strategy("mirrored", 100)


@pytest.mark.parametrize(
    ("name", "devices", "message"),
    [
        ("parameter_server", 0, "Keras 3 .*asynchronous.*use --strategy=multi_worker"),
        ("ring", 0, "runs one_device, mirrored, multi_worker and tpu"),
        ("one_device", 2, "--num_virtual_devices=2 is for --strategy=mirrored; .*one_device"),
        ("multi_worker", 1, "--num_virtual_devices=1 is for --strategy=mirrored; .*multi_worker"),
        ("tpu", 2, "--num_virtual_devices=2 is for --strategy=mirrored; --strategy=tpu"),
    ],
)
def test_refusals(name, devices, message):
    with pytest.raises(UsageError, match=message):
        make_strategy(name, devices)


def set_tf_config(monkeypatch, port: int, others: int = 1) -> None:
    workers = [f"localhost:{port}"] + [f"far{i}:2222" for i in range(others)]
    config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def fake_multi_worker(monkeypatch, replicas: int) -> list:
    """Replaces TensorFlow's strategy, which only a new process can make; keeps its arguments."""
    made = []

    def make(resolver, options):
        made.append((resolver, options))
        return SimpleNamespace(num_replicas_in_sync=replicas)

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", make)
    return made


def test_multi_worker_on_gpus(monkeypatch):
    """Two visible GPUs a worker; the time-out goes to the collectives."""
    port = free_port()
    set_tf_config(monkeypatch, port)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [kind] * 2)
    made = fake_multi_worker(monkeypatch, 4)
    _, description = make_strategy("multi_worker", timeout_seconds=90.0)
    ((resolver, options),) = made
    assert resolver.cluster_spec().as_dict() == {"worker": [f"localhost:{port}", "far0:2222"]}
    assert resolver.num_accelerators() == {"GPU": 2}
    assert options.timeout_seconds == 90.0
    assert options.implementation.value == "AUTO"
    assert description == (
        f"worker 0 of 2 (localhost:{port}, far0:2222), 4 replicas in all, one a GPU"
    )


def test_multi_worker_meets_the_others_first(monkeypatch):
    """With the port checked, and before TensorFlow's own."""
    port, events = free_port(), []
    set_tf_config(monkeypatch, port)
    made = fake_multi_worker(monkeypatch, 2)
    monkeypatch.setattr(trainer.distributed.strategy, "set_heartbeat", lambda *a: events.append(a))

    def meet(cluster):
        assert not made
        events.append(cluster)

    make_strategy("multi_worker", heartbeat_seconds=60.0, meet=meet)
    cluster, (same, seconds) = events
    assert cluster is same and seconds == 60.0 and len(made) == 1
    assert cluster.addresses == [f"localhost:{port}", "far0:2222"]


def test_multi_worker_with_many_workers(monkeypatch):
    port = free_port()
    set_tf_config(monkeypatch, port, others=9)
    made = fake_multi_worker(monkeypatch, 10)
    _, description = make_strategy("multi_worker", cluster="tf_config")
    assert made[0][1].timeout_seconds is None
    assert made[0][0].num_accelerators() == {"GPU": 0}
    assert description == (
        f"worker 0 of 10 (localhost:{port}, far0:2222, far1:2222, far2:2222, ...), "
        "10 replicas in all, on CPUs"
    )


def test_multi_worker_wants_its_port_before_anything_is_made(monkeypatch):
    made = fake_multi_worker(monkeypatch, 2)
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        set_tf_config(monkeypatch, port)
        with pytest.raises(UsageError, match=f"port {port} of this machine is in use"):
            make_strategy("multi_worker")
    assert not made


def test_multi_worker_reads_the_cluster_it_is_told(monkeypatch):
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    with pytest.raises(UsageError, match="JOB_COMPLETION_INDEX"):
        make_strategy("multi_worker", cluster="kubernetes")


def fake_tpu(monkeypatch, hosts: int, replicas: int) -> list:
    """Replaces what TensorFlow does with a TPU; the calls and their arguments, in order."""
    calls = []

    def note(name, result=None):
        def call(*args, **kwargs):
            calls.append((name, *args, *kwargs.items()))
            return result

        return call

    made = SimpleNamespace(num_replicas_in_sync=replicas, extended=SimpleNamespace(num_hosts=hosts))
    resolvers = tf.distribute.cluster_resolver
    monkeypatch.setattr(resolvers, "TPUClusterResolver", note("resolve", "resolver"))
    monkeypatch.setattr(tf.config, "experimental_connect_to_cluster", note("connect"))
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", note("initialize"))
    monkeypatch.setattr(tf.distribute, "TPUStrategy", note("strategy", made))
    return calls


def test_local_tpu(monkeypatch):
    calls = fake_tpu(monkeypatch, hosts=1, replicas=8)
    _, description = make_strategy("tpu")
    assert calls == [
        ("resolve", ("tpu", "local"), ("zone", None), ("project", None)),
        ("connect", "resolver"),
        ("initialize", "resolver"),
        ("strategy", "resolver"),
    ]
    assert description == "8 replicas on TPU local, 1 host(s)"


def test_tpu_slice(monkeypatch):
    calls = fake_tpu(monkeypatch, hosts=4, replicas=32)
    arguments = {"tpu": "mine", "tpu_zone": "europe-west4-b", "tpu_project": "p"}
    _, description = make_strategy("tpu", **arguments)
    assert calls[0] == ("resolve", ("tpu", "mine"), ("zone", "europe-west4-b"), ("project", "p"))
    assert description == "32 replicas on TPU mine, 4 host(s)"


def test_tensorflow_without_tpu_support():
    """The true error of the build that the tests run with; the process goes on after it."""
    with pytest.raises(
        UsageError, match=r"a build without TPU support; .*pip install -e '\.\[tpu"
    ) as e:
        make_strategy("tpu")
    assert "\n" not in str(e.value)
    strategy, _ = make_strategy("mirrored", 2)
    total = strategy.reduce("SUM", strategy.run(lambda: tf.constant(1.5)), axis=None)
    assert total.numpy() == 3.0


@pytest.mark.parametrize(
    ("tpu", "error", "message"),
    [
        (
            "local",
            tf.errors.NotFoundError(None, None, "no such device\n(trace)"),
            r"finds no TPU \(local\): no such device; run on a TPU VM",
        ),
        (
            "local",
            tf.errors.InternalError(
                None,
                None,
                "Graph execution error:\n\nDetected at node x defined at (most recent call last):\n"
                "<stack traces unavailable>\nRET_CHECK failure *platform \n\t [[{{node x}}]]",
            ),
            r"finds no TPU \(local\): RET_CHECK failure \*platform; run on a TPU VM",
        ),
        ("mine", OSError(""), r"finds no TPU \(mine\): OSError; .*--tpu_zone.*cloud-tpu-client"),
    ],
)
def test_no_tpu(monkeypatch, tpu, error, message):
    calls = fake_tpu(monkeypatch, 1, 8)

    def fail(resolver):
        raise error

    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", fail)
    with pytest.raises(UsageError, match=message) as refusal:
        make_strategy("tpu", tpu=tpu)
    assert "\n" not in str(refusal.value)
    assert [call[0] for call in calls] == ["resolve", "connect"]


@pytest.mark.parametrize("error", [tf.errors.UnavailableError, tf.errors.DeadlineExceededError])
def test_a_tpu_that_still_starts_is_tried_again(monkeypatch, error):
    """Exit code 1: whoever supervises the trainer starts it again, with code 2 nobody does."""
    fake_tpu(monkeypatch, 1, 8)

    def fail(resolver):
        raise error(None, None, "failed to connect to all addresses\n(trace)")

    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", fail)
    with pytest.raises(RetryError, match="TPU local is not available: failed to connect to all"):
        make_strategy("tpu")


def test_no_proxy_between_the_machines_of_a_cluster(monkeypatch):
    monkeypatch.setenv("TF_GRPC_DEFAULT_OPTIONS", "grpc.lb_policy_name=pick_first")
    fake_tpu(monkeypatch, 1, 8)
    make_strategy("tpu")
    options = os.environ["TF_GRPC_DEFAULT_OPTIONS"]
    assert options == "grpc.lb_policy_name=pick_first,grpc.enable_http_proxy=0"


def test_paths_of_a_slice_are_on_gs():
    many, one = strategy_on("/device:TPU:0", hosts=4), strategy_on("/device:TPU:0")
    check_paths("tpu", many, "gs://b/data", "gs://b/model")
    check_paths("tpu", one, "data", "models/x")
    check_paths("mirrored", make_strategy("mirrored")[0], "data")
    with pytest.raises(UsageError, match=r"models/x is a path of .* 4 hosts .*gs://"):
        check_paths("tpu", many, "gs://b/data", "models/x")


WORKER_GPU = "/job:worker/replica:0/task:1/device:GPU:0"
WORKER_TPU = "/job:worker/replica:0/task:0/device:TPU:0"


@pytest.mark.parametrize(
    ("device", "expected"),
    [(WORKER_GPU, True), ("/device:GPU:0", True), (WORKER_TPU, False), ("/device:CPU:0", False)],
)
def test_xla_is_on_by_itself_on_gpus(device, expected):
    assert use_xla("auto", strategy_on(device)) is expected


def test_xla_is_off_by_itself_on_cpus():
    for name in ("one_device", "mirrored"):
        assert use_xla("auto", make_strategy(name)[0]) is False


@pytest.mark.parametrize(
    ("device", "jit_compile", "expected"),
    [(WORKER_TPU, False, True), (WORKER_GPU, True, False), ("/device:CPU:0", False, False)],
)
def test_where_dropout_draws_on_the_device(device, jit_compile, expected):
    strategy = strategy_on(device)
    assert draws_on_device("auto", strategy, jit_compile) is expected
    assert draws_on_device("off", strategy, jit_compile) is False
    if expected or jit_compile:
        assert draws_on_device("on", strategy, jit_compile) is True
    else:
        with pytest.raises(UsageError, match="fast_dropout=on is XLA's generator"):
            draws_on_device("on", strategy, jit_compile)


def test_jit_on_and_off():
    for device in (WORKER_GPU, "/device:CPU:0"):
        assert use_xla("on", strategy_on(device)) is True
    for device in (WORKER_GPU, WORKER_TPU):
        assert use_xla("off", strategy_on(device)) is False
    with pytest.raises(UsageError, match="--jit_compile=on is not for --strategy=tpu"):
        use_xla("on", strategy_on(WORKER_TPU))
