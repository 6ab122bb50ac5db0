"""Optimizer state in slices against the same optimizer with a whole copy on each replica."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from configs import schema
from configs.schema import OptimizerConfig
from trainer.checkpoints.files import Keep
from trainer.checkpoints.saver import Checkpoints
from trainer.distributed import cluster
from trainer.optim.loss_scale import LossScale
from trainer.optim.optimizer import Optimizer
from trainer.optim.sharding import Sharded, check_possible, held

RATE = 0.1
# Not all of them can be divided by two or by four.
SHAPES = [(3, 4), (5,), (2, 3, 2), (1,), (8, 16)]
GRADIENTS = [
    [np.random.default_rng(step).normal(0, 1, shape).astype(np.float32) for shape in SHAPES]
    for step in range(6)
]
FACTORS = [1.0, 0.5, 0.0, 1.0, 1.0, 2.0]  # the third step is skipped


class Sum(keras.Model):
    """A model that is nothing but weights."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        for number, shape in enumerate(SHAPES):
            weight = self.add_weight(shape=shape, name=f"w{number}")
            weight.assign(rng.normal(0, 1, shape))
            setattr(self, f"w{number}", weight)  # checkpoints find it by its attribute


class Made:
    """Weights, their optimizer and their checkpoints under a strategy."""

    def __init__(self, strategy, directory, name: str = "adamw", *, shard: bool, jit: bool = False):
        decay = 0.0 if name == "adam" else 0.2
        config = OptimizerConfig(name, schedule="constant", learning_rate=RATE, warmup_steps=0)
        config.weight_decay, config.ema_decay, config.epsilon = decay, 0.5, 0.3
        self.strategy = strategy
        with strategy.scope():
            self.model = Sum()
            self.variables = self.model.trainable_variables
            self.optimizer = Optimizer(config, 10, self.variables, shard=shard, jit_compile=jit)
            self.checkpoints = Checkpoints(
                str(directory), self.model, self.optimizer, LossScale(dynamic=False), Keep()
            )

        def replica_step(gradients, factor):
            self.optimizer.apply(self.variables, gradients, factor)
            return self.optimizer.update_norm()

        @tf.function
        def step(gradients, factor):
            norms = strategy.run(replica_step, args=(gradients, factor))
            return strategy.experimental_local_results(norms)[0]

        self._step = step

    def steps(self, first: int, count: int) -> list[float]:
        """Makes steps and returns their update norms."""
        chosen = list(zip(GRADIENTS, FACTORS, strict=True))[first : first + count]
        return [float(self._step(list(gradients), tf.constant(by))) for gradients, by in chosen]

    def state(self) -> list[np.ndarray]:
        """Weights, which must be the same on all replicas, slots and averages, whole."""
        found = []
        for variable in self.variables:
            first, *others = self.strategy.experimental_local_results(variable.value)
            for other in others:
                np.testing.assert_array_equal(first, other)
            found.append(first.numpy())
        kept = [one for slot in self.optimizer.slots.values() for one in slot]
        return found + [one.numpy() for one in (*kept, *self.optimizer.averages)]


def assert_near(ours, others) -> None:
    for one, other in zip(ours, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def four_replicas() -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(4)])


@pytest.mark.parametrize(
    ("name", "replicas", "jit"),
    [("adam", 4, False), ("adamw", 2, False), ("adamw", 4, True), ("lion", 2, False)],
)
def test_equals_the_whole(one_device, two_replicas, four_replicas, tmp_path, name, replicas, jit):
    """Weights, slots, averages and update norms of six steps, one of them skipped."""
    whole = Made(one_device, tmp_path, name, shard=False)
    strategy = two_replicas if replicas == 2 else four_replicas
    ours = Made(strategy, tmp_path, name, shard=True, jit=jit)
    np.testing.assert_allclose(ours.steps(0, 6), whole.steps(0, 6), rtol=1e-6)
    assert_near(ours.state(), whole.state())
    whole.optimizer.swap_averages(whole.variables)
    ours.optimizer.swap_averages(ours.variables)
    assert_near(ours.state(), whole.state())


def test_bytes_of_a_replica(one_device, four_replicas, tmp_path):
    """A quarter of slots and average, rounded up for each weight, and of the weights themselves."""
    weights = sum(int(np.prod(shape)) for shape in SHAPES)
    whole = Made(one_device, tmp_path, shard=True)  # nobody to share with
    assert whole.optimizer.replica_bytes == 3 * 4 * weights
    parts = [3, 2, 3, 1, 32]
    ours = Made(four_replicas, tmp_path, shard=True)
    assert ours.optimizer.replica_bytes == 4 * 4 * sum(parts)
    for slot in (*ours.optimizer.slots.values(), ours.optimizer.averages):
        for one, part in zip(slot, parts, strict=True):
            copies = four_replicas.experimental_local_results(one.local)
            assert [int(tf.size(copy)) for copy in copies] == [part] * 4


def test_resumed_with_other_replicas(one_device, two_replicas, four_replicas, tmp_path):
    """4 replicas, 1 without sharding, 2: each goes on from the last one's checkpoint."""
    whole = Made(one_device, tmp_path / "whole", shard=False)
    whole.steps(0, 6)
    starts = [(four_replicas, True), (one_device, False), (two_replicas, True)]
    step, before = 0, None
    for strategy, shard in starts:
        made = Made(strategy, tmp_path / "run", shard=shard)
        with strategy.scope():
            assert made.checkpoints.restore(strategy) == (step or None)
        if before is not None:
            for one, other in zip(made.state(), before, strict=True):
                np.testing.assert_array_equal(one, other)
        made.steps(step, 2)
        step += 2
        before = made.state()
        with made.optimizer.whole():
            made.checkpoints.save()
        made.checkpoints.wait()
    assert_near(before, whole.state())


def test_what_is_held_while_others_wait(two_replicas, monkeypatch):
    """Workers exchange it in chunks of one size: 2 x 2 and 2 x 3 numbers in three of four."""
    sizes, exchange = [], cluster.sum_over_workers

    def sum_over_workers(strategy, numbers):
        sizes.append(len(numbers))
        return exchange(strategy, numbers)

    monkeypatch.setattr(cluster, "sum_over_workers", sum_over_workers)
    monkeypatch.setattr("trainer.optim.sharding._CHUNK", 4)
    with two_replicas.scope():
        one, other = Sharded((3,)), Sharded((2, 3))
    one.assign([1.0, 2.0, 3.0])
    other.assign(np.arange(6.0).reshape(2, 3))
    with held([one, other]):
        assert sizes == [4, 4, 4]
        one.assign([4.0, 5.0, 6.0])
        np.testing.assert_array_equal(one.numpy(), [1, 2, 3])
        np.testing.assert_array_equal(other.numpy(), [[0, 1, 2], [3, 4, 5]])
    assert sizes == [4, 4, 4]
    np.testing.assert_array_equal(one.numpy(), [4, 5, 6])


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_whole_matrices_are_refused(name):
    config = schema.Config()
    config.optimizer.name, config.train.shard_optimizer = name, True
    with pytest.raises(ValueError, match=f"adam, adamw or lion; {name} needs whole matrices"):
        schema.validate(config)


def test_tpus_are_refused():
    check_possible(tpu=False)
    with pytest.raises(UsageError, match="for --strategy=mirrored and multi_worker, not for TPUs"):
        check_possible(tpu=True)
