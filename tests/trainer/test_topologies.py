"""The same run on one replica, on several, on several workers and in micro-batches.

Every test here trains a tiny Transformer for some steps and compares the numbers of each step and
the final weights. They differ by the rounding of float32 sums that are added up in another order.
Adam divides a gradient by its own size, so where a gradient is nothing but rounding (the bias of
attention's keys has none in theory), the update would be too: an epsilon far above the rounding
and far below the real gradients keeps it out.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from configs import schema
from data_pipeline.dataset.examples import Examples
from tests.trainer.worker_script import EOS, Result, load_results, make_steps, save_runs, train_run
from trainer.input.memory import training_data
from trainer.model.dropout import step_rng
from trainer.optim.sharding import local

STEPS = 20
CLIP_NORM = 0.6
RTOL = 2e-6  # ten times what was measured
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pairs(make_pairs):
    """Most rows of 16 hold one pair: of 2 tokens, or of 16, or of something between."""
    return make_pairs(np.random.default_rng(1).integers(1, 16, [150, 2]))


@pytest.fixture(scope="module")
def config_of(tiny_config):
    """Returns the configuration of all runs here, with what may differ in `train`, and dropout."""

    def make(micro_batches: int = 1, dropout: float = 0.0, block: int = 0, **train):
        return tiny_config(
            model={"dropout": dropout, "attention_block": block},
            optimizer={"clip_norm": CLIP_NORM, "epsilon": 1e-4},
            train={"batch_tokens": 128, "micro_batches": micro_batches, **train},
        )

    return make


@pytest.fixture(scope="module")
def one_replica(pairs, config_of, one_device) -> Result:
    """The run that all others are compared with: one replica, one micro-batch."""
    return train_run(make_steps(one_device, config_of()), pairs, STEPS)


@pytest.fixture(scope="module")
def with_dropout(pairs, config_of, two_replicas) -> Result:
    """Two replicas with two micro-batches each, all with masks of their own."""
    return train_run(make_steps(two_replicas, config_of(2, 0.2)), pairs, STEPS)


@pytest.fixture(scope="module")
def of_tasks(pairs, config_of) -> dict[str, tuple[schema.Config, Examples]]:
    """Configuration and data of every task, with rows of very unequal fill."""
    lengths = np.random.default_rng(2).integers(1, 16, 200)
    tokens = np.random.default_rng(3).integers(4, 30, lengths.sum()).astype(np.int32)
    text = {"text": tokens}, {"text": np.concatenate([[0], np.cumsum(lengths)])}
    labels = (lengths // 6).astype(np.int32)
    found = {
        "translation": (config_of(), pairs),
        "language_model": (config_of(), Examples(*text)),
        "classification": (config_of(), Examples(*text, labels)),
    }
    for name, (config, examples) in found.items():
        found[name] = (dataclasses.replace(config, task=name), examples)
    found["classification"][0].train.class_weights = "balanced"
    return found


@pytest.fixture(scope="module")
def alone(of_tasks, one_device):
    """Returns the run of a task on one replica."""

    @functools.cache
    def run(name: str) -> Result:
        config, examples = of_tasks[name]
        return train_run(make_steps(one_device, config), examples, STEPS)

    return run


@pytest.fixture(scope="module")
def in_half(pairs, config_of, one_device):
    """Returns the run of a half precision on one replica; leaves Keras in that precision."""

    @functools.cache
    def run(policy: str) -> Result:
        keras.config.set_dtype_policy(policy)
        return train_run(make_steps(one_device, config_of()), pairs, STEPS)

    return run


def mirrored(replicas: int) -> tf.distribute.Strategy:
    """So many replicas on virtual devices."""
    return tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(replicas)])


def assert_same_run(ours: Result, others: Result) -> None:
    """Sums and norms of every step, and final weights."""
    assert ours.keys() == others.keys()
    for key, expected in others.items():
        # A weight that is small by chance carries the rounding of a usual one, which is about 0.3.
        atol = RTOL if key.startswith("weight/") else 0.0
        np.testing.assert_allclose(ours[key], expected, rtol=RTOL, atol=atol, err_msg=key)


def assert_same_half_run(ours: Result, others: Result, float32: Result) -> None:
    """Counts and loss scales exactly, and the rest to the rounding of a half precision.

    The tolerances are about four times what was measured with bfloat16. The weights are compared
    as one long vector, since gradients near 0 have no digit in common.
    """
    assert ours.keys() == others.keys()
    for key in ("tokens", "source_tokens", "positions", "empty_rows", "skipped", "loss_scale"):
        np.testing.assert_array_equal(ours[key], others[key], err_msg=key)
    for key, rtol in {
        "loss": 0.0025,
        "nll": 0.0025,
        "gradient_norm": 0.08,
        "update_norm": 0.05,
    }.items():
        np.testing.assert_allclose(ours[key], others[key], rtol=rtol, err_msg=key)
    np.testing.assert_allclose(ours["correct"], others["correct"], atol=4)  # close decisions
    keys = [key for key in ours if key.startswith("weight/")]
    distance, length = (
        np.sqrt(sum(np.square(ours[key] - one.get(key, 0)).sum() for key in keys))
        for one in (others, {})
    )
    assert distance < 0.025 * length
    assert np.abs(ours["loss"] / float32["loss"] - 1).max() > 1e-5  # it is another precision


def assert_identical(ours: Result, others: Result) -> None:
    assert ours.keys() == others.keys()
    for key, expected in others.items():
        np.testing.assert_array_equal(ours[key], expected, err_msg=key)


def test_the_run_is_worth_comparing(pairs, config_of, one_replica):
    """Replicas get unequal token counts; some steps are clipped, some not; the loss falls."""
    parts = training_data(pairs, config_of(), EOS, replicas=8).dataset(0, replicas=8, local=8)
    counts = [np.count_nonzero(part["target"]) for part in parts.take(8 * STEPS)]
    tokens = np.reshape(counts, [STEPS, 8])
    np.testing.assert_array_equal(one_replica["tokens"], tokens.sum(1))
    assert (tokens.max(1) / tokens.min(1)).mean() > 2
    clipped = one_replica["gradient_norm"] > CLIP_NORM
    assert 4 <= clipped.sum() <= STEPS - 4
    assert (one_replica["skipped"] == 0).all()
    mean = one_replica["loss"] / one_replica["tokens"]
    assert mean[-4:].mean() < 0.9 * mean[0]


@pytest.mark.parametrize(
    ("replicas", "micro_batches"),
    [(2, 1), (4, 1), pytest.param(8, 1, marks=pytest.mark.slow), (1, 2), (1, 4), (2, 2)],
)
def test_replicas_and_micro_batches(pairs, config_of, one_replica, replicas, micro_batches):
    """However the global batch is split, the run is the same."""
    steps = make_steps(mirrored(replicas), config_of(micro_batches))
    assert_same_run(train_run(steps, pairs, STEPS), one_replica)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_the_optimizer_in_slices(pairs, config_of, one_replica, replicas):
    """Nor does it matter who keeps what of the optimizer's state; nor to workers, below."""
    steps = make_steps(mirrored(replicas), config_of(shard_optimizer=True))
    (kept, *_), (weight, *_) = steps.optimizer.slots.values(), steps.model.trainable_variables
    assert math.prod(local(kept)[0].shape) == math.ceil(math.prod(weight.shape) / replicas)
    assert_same_run(train_run(steps, pairs, STEPS), one_replica)


@pytest.mark.parametrize("task", ["language_model", "classification"])
@pytest.mark.parametrize(
    ("replicas", "micro_batches"), [pytest.param(2, 1, marks=pytest.mark.slow), (4, 2)]
)
def test_replicas_of_the_other_tasks(of_tasks, alone, task, replicas, micro_batches):
    """As one replica; so are two workers, below."""
    config, examples = of_tasks[task]
    train = dataclasses.replace(config.train, micro_batches=micro_batches)
    steps = make_steps(mirrored(replicas), dataclasses.replace(config, train=train))
    assert_same_run(train_run(steps, examples, STEPS), alone(task))
    mean = alone(task)["loss"] / alone(task)[steps.task.DIVISOR]
    assert mean[-4:].mean() < 0.97 * mean[0]


def test_the_same_run_twice(pairs, config_of, two_replicas, with_dropout, one_replica):
    """With dropout, bit for bit; and dropout was on."""
    steps = make_steps(two_replicas, config_of(2, 0.2))
    assert_identical(train_run(steps, pairs, STEPS), with_dropout)
    assert np.abs(with_dropout["loss"] / one_replica["loss"] - 1).mean() > 5e-3


def test_compiled(pairs, config_of, two_replicas, with_dropout):
    """XLA makes the same of replicas, micro-batches and dropout."""
    steps = make_steps(two_replicas, config_of(2, 0.2), jit_compile=True)
    assert_same_run(train_run(steps, pairs, STEPS), with_dropout)


def test_the_whole_step_compiled(pairs, config_of, one_device, one_replica):
    """With one replica, XLA has reduction and update too."""
    steps = make_steps(one_device, config_of(), jit_compile=True)
    assert_same_run(train_run(steps, pairs, STEPS), one_replica)


@pytest.mark.parametrize("whole", [True, False])
def test_attention_in_blocks(pairs, config_of, one_device, two_replicas, one_replica, whole):
    """Of 5 places, the last of which is not full; on one replica and compiled, or recomputed."""
    strategy, remat = (one_device, "none") if whole else (two_replicas, "layers")
    steps = make_steps(strategy, config_of(block=5, remat=remat), jit_compile=whole)
    assert_same_run(train_run(steps, pairs, STEPS), one_replica)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize(
    ("replicas", "jit_compile"), [(1, True), (2, False), (2, True), (4, False), (4, True)]
)
def test_half_precision(pairs, config_of, one_replica, in_half, policy, replicas, jit_compile):
    """As one replica without XLA, in the same precision; so are two workers, below."""
    expected = in_half(policy)
    keras.config.set_dtype_policy(policy)
    steps = make_steps(mirrored(replicas), config_of(), jit_compile=jit_compile)
    assert_same_half_run(train_run(steps, pairs, STEPS), expected, one_replica)


def test_micro_batches_draw_different_masks(rows_of, tiny_config, one_device):
    """Both micro-batches get the same rows: the same masks would give the same losses."""
    config = tiny_config(model={"dropout": 0.3}, train={"seed": 5, "micro_batches": 2})
    rows = [[([5, 6, 7], [8, 9, 10])], [([11, 12], [13, 14, 15, 16])]]
    half = rows_of(rows, 16)
    batch = {name: np.repeat(array, 2, axis=0) for name, array in half.items()}  # 0, 0, 1, 1
    steps = make_steps(one_device, config)
    rng = step_rng(5, 0, 0)
    losses = []
    for part in range(2):
        micro_rng = tf.random.experimental.stateless_fold_in(rng, part, alg="philox")
        sums = steps.task.sums(steps.model, half, micro_rng, training=True)
        losses.append(float(sums["loss"]))
    assert abs(losses[0] - losses[1]) > 0.01 * losses[0]
    sums = steps.train(iter(tf.data.Dataset.from_tensors(batch)), tf.constant(1))
    assert float(sums["loss"]) == pytest.approx(sum(losses), rel=1e-6)


def run_workers(count: int, runs: Path, folder: Path) -> list[list[Result]]:
    """The results of `count` workers on this machine, one replica each."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        addresses = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    workers, results = [], [folder / f"{index}.npz" for index in range(count)]
    try:
        for index, result in enumerate(results):
            task = {"type": "worker", "index": index}
            config = json.dumps({"cluster": {"worker": addresses}, "task": task})
            script = ROOT / "tests/trainer/worker_script.py"
            command = [sys.executable, str(script), str(runs), str(result)]
            environment = {**os.environ, "TF_CONFIG": config, "PYTHONPATH": str(ROOT)}
            with open(folder / f"{index}.log", "w") as log:
                worker = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            workers.append(worker)
        deadline = time.monotonic() + 600
        codes = [worker.wait(max(0.0, deadline - time.monotonic())) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    logs = [(folder / f"{index}.log").read_text()[-2000:] for index in range(count)]
    assert codes == [0] * count, "\n".join(logs)
    return [load_results(result) for result in results]


def test_two_workers(pairs, config_of, one_replica, with_dropout, of_tasks, alone, tmp_path):
    """As one process, without dropout; with it, as two replicas: masks follow the replica. The
    other tasks too."""
    runs = tmp_path / "runs.npz"
    tasks = {name: one for name, one in of_tasks.items() if name != "translation"}
    configs = [(config_of(), pairs), (config_of(2, 0.2), pairs), *tasks.values()]
    save_runs(runs, configs, STEPS)
    (plain, dropout, *results), others = run_workers(2, runs, tmp_path)
    assert_same_run(plain, one_replica)
    assert_same_run(dropout, with_dropout)
    assert_identical(others[0], plain)
    assert_identical(others[1], dropout)
    for name, ours, other in zip(tasks, results, others[2:], strict=True):
        assert_same_run(ours, alone(name))
        assert_identical(other, ours)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_two_workers_in_half_precision(
    pairs, config_of, one_replica, in_half, tmp_path, policy, jit_compile
):
    runs = tmp_path / "runs.npz"
    save_runs(runs, [(config_of(), pairs)], STEPS, policy, jit_compile=jit_compile)
    (first,), (second,) = run_workers(2, runs, tmp_path)
    assert_same_half_run(first, in_half(policy), one_replica)
    assert_identical(second, first)


@pytest.mark.slow
def test_two_workers_compiled(pairs, config_of, one_replica, tmp_path):
    """As they are, and with attention in blocks."""
    runs = tmp_path / "runs.npz"
    save_runs(runs, [(config_of(), pairs), (config_of(block=5), pairs)], STEPS, jit_compile=True)
    results, others = run_workers(2, runs, tmp_path)
    for ours, other in zip(results, others, strict=True):
        assert_same_run(ours, one_replica)
        assert_identical(other, ours)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "shard"), [(4, False), (2, True), (4, True)])
def test_workers(pairs, config_of, one_replica, tmp_path, count, shard):
    """Four of them; and two and four with slices of the optimizer's state."""
    runs = tmp_path / "runs.npz"
    save_runs(runs, [(config_of(shard_optimizer=shard), pairs)], STEPS)
    (first,), *others = run_workers(count, runs, tmp_path)
    assert_same_run(first, one_replica)
    for (other,) in others:
        assert_identical(other, first)


# Compiles forward and backward for several (micro-batches, rows of the batch) and lets XLA write
# down how much memory each program takes.
_MEMORY_SCRIPT = """
import json, sys
import tensorflow as tf
from configs import schema
from trainer.tasks.translation import FEATURES
from worker_script import make_steps

strategy = tf.distribute.OneDeviceStrategy("CPU:0")
for parts, rows in json.loads(sys.argv[2]):
    config = schema.from_dict(json.loads(sys.argv[1]))
    config.train.micro_batches = parts
    steps = make_steps(strategy, config, jit_compile=True)
    batch = {name: tf.ones([rows, 16], tf.int32) for name in FEATURES}
    weights = [variable.value for variable in steps.model.trainable_variables]
    steps._gradients(weights, batch, tf.constant([1, 2]), tf.ones([]))
"""


@pytest.mark.slow
def test_micro_batches_take_constant_memory(tiny_config, tmp_path):
    """Four times as many micro-batches of the same size, by XLA's own account."""
    shapes = [(2, 16), (8, 64), (1, 64)]
    config = schema.to_dict(tiny_config())
    command = [sys.executable, "-c", _MEMORY_SCRIPT, json.dumps(config), json.dumps(shapes)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/trainer")]),
        "XLA_FLAGS": f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text",
    }
    subprocess.run(command, env=environment, check=True, timeout=600)
    temporary = [  # in the order of compilation, which is in the names
        sum(map(int, re.findall(r"^allocation \d+: size (\d+), preallocated-temp", text, re.M)))
        for text in (
            path.read_text()
            for path in sorted(tmp_path.glob("*replica_gradients*buffer-assignment.txt"))
        )
    ]
    two, eight, whole = temporary
    assert two <= eight < 1.1 * two
    assert whole > 4 * eight  # the eight in one go
