"""Every optimizer against NumPy in float64, on one replica and on two; skipping; averages."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from configs import schema
from configs.schema import OptimizerConfig
from tests.trainer.optim.numpy_optimizers import (
    NumpyAdafactor,
    NumpyAdam,
    NumpyLion,
    NumpyMuon,
)
from trainer.optim.muon import orthogonal
from trainer.optim.optimizer import Optimizer
from trainer.optim.schedule import Schedule

NAMES = ["adam", "adamw", "adafactor", "lion", "muon"]


def constant(name: str = "adam", **fields) -> OptimizerConfig:
    """A rate of 0.1 throughout."""
    # A large epsilon: Adam hardly notices gradients that are twice as large without one.
    config = OptimizerConfig(name, schedule="constant", learning_rate=0.1, warmup_steps=0)
    return dataclasses.replace(config, epsilon=0.3, **fields)


class Made:
    """Variables and their optimizer under a strategy, and a compiled call of `apply`."""

    def __init__(self, strategy, config: OptimizerConfig, values, steps: int = 10):
        self.strategy = strategy
        with strategy.scope():
            self.variables = [
                keras.Variable(
                    value, dtype="float32", name="kernel" if np.ndim(value) == 2 else "b"
                )
                for value in values
            ]
            self.optimizer = Optimizer(config, steps, self.variables)

        def replica_step(gradients, factor):
            self.optimizer.apply(self.variables, gradients, factor)

        @tf.function
        def step(gradients, factor):
            strategy.run(replica_step, args=(gradients, factor))

        self._step = step

    def step(self, gradients, factor: float = 1.0) -> None:
        """Every replica passes the same gradients, as the train step has reduced them."""
        tensors = [tf.constant(gradient, tf.float32) for gradient in gradients]
        self._step(tensors, tf.constant(factor, tf.float32))

    def weights(self) -> list[np.ndarray]:
        return self.copies([variable.value for variable in self.variables])

    def copies(self, variables) -> list[np.ndarray]:
        """The values, which must be the same, bit for bit, on all replicas."""
        result = []
        for variable in variables:
            local = [copy.numpy() for copy in self.strategy.experimental_local_results(variable)]
            assert len(local) == self.strategy.num_replicas_in_sync
            for copy in local[1:]:
                np.testing.assert_array_equal(copy, local[0])
            result.append(local[0])
        return result

    def state(self) -> list[np.ndarray]:
        """Weights, slots and averages."""
        slots = [variable for slot in self.optimizer.slots.values() for variable in slot]
        return self.weights() + self.copies([*slots, *self.optimizer.averages])

    def counts(self) -> tuple[int, int]:
        """Iterations and updates, on all replicas."""
        counters = [self.optimizer.iterations, self.optimizer.updates]
        iterations, updates = self.copies(counters)
        return int(iterations), int(updates)


def random_gradients(values, sizes, seed: int = 1) -> list[list[np.ndarray]]:
    """Gradients of several steps, of the given sizes; no two numbers or rows are alike."""
    rng = np.random.default_rng(seed)
    return [
        [size * rng.normal(0, 1, np.shape(value)) * rng.uniform(0.5, 2) for value in values]
        for size in sizes
    ]


def random_values(shapes, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 1, shape).astype(np.float32) for shape in shapes]


def assert_near(ours, numpys, tolerance: float = 2e-6) -> None:
    for one, other in zip(ours, numpys, strict=True):
        np.testing.assert_allclose(one, other, rtol=10 * tolerance, atol=tolerance)


def assert_same(ours, others) -> None:
    """Bit for bit."""
    for one, other in zip(ours, others, strict=True):
        np.testing.assert_array_equal(one, other)


SMALL = random_values([(3, 4), (5,), (2, 3, 2), (1,)])


@pytest.fixture(params=[1, 2], ids=["1 replica", "2 replicas"])
def strategy(request, one_device, two_replicas):
    return one_device if request.param == 1 else two_replicas


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_equals_numpy(strategy, name):
    """Five steps, two of them of the warm-up; AdamW decays matrices and not vectors."""
    config = OptimizerConfig(name, learning_rate=0.1, warmup_steps=2, epsilon=0.3)
    config.weight_decay = 0.2 if name == "adamw" else 0.0
    made, expected = Made(strategy, config, SMALL), NumpyAdam(config, SMALL)
    schedule = Schedule(config, 10)
    for step, gradients in enumerate(random_gradients(SMALL, [1, 0.1, 3, 0.5, 1])):
        made.step(gradients)
        expected.apply(gradients, float(schedule(step)))
        assert_near(made.weights(), expected.values)
    assert made.counts() == (5, 5)
    assert_near(made.copies(made.optimizer.slots["momentum"]), expected.momentum)
    assert_near(made.copies(made.optimizer.slots["velocity"]), expected.velocity)


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_lion_equals_numpy(strategy, decay):
    """Weights to a millionth: every one moves by the rate, in the direction of a sign."""
    config = OptimizerConfig("lion", learning_rate=0.1, warmup_steps=2, weight_decay=decay)
    made, expected = Made(strategy, config, SMALL), NumpyLion(config, SMALL)
    schedule = Schedule(config, 10)
    for step, gradients in enumerate(random_gradients(SMALL, [1, 0.1, 3, 0.5, 1])):
        before = made.weights()
        made.step(gradients)
        expected.apply(gradients, float(schedule(step)))
        assert_near(made.weights(), expected.values)
        if not decay:
            moves = [abs(a - b) for a, b in zip(made.weights(), before, strict=True)]
            assert_near(moves, [np.full_like(m, float(schedule(step))) for m in moves])
    assert made.counts() == (5, 5)
    assert_near(made.copies(made.optimizer.slots["momentum"]), expected.momentum)
    assert made.optimizer.slots.keys() == {"momentum"}
    assert np.isnan(float(made.optimizer.update_norm()))


HIDDEN = random_values([(6, 4), (4, 6), (5,), (5, 5), (2, 3, 2), (1,)])


def test_muon_equals_numpy(strategy):
    """Tall, wide and square matrices; vectors and a tensor of rank 3 are AdamW's."""
    config = OptimizerConfig("muon", learning_rate=0.1, warmup_steps=2, epsilon=0.3)
    config.weight_decay = 0.2
    made, expected = Made(strategy, config, HIDDEN), NumpyMuon(config, HIDDEN)
    schedule = Schedule(config, 10)
    for step, gradients in enumerate(random_gradients(HIDDEN, [1, 0.1, 3, 0.5])):
        made.step(gradients)
        expected.apply(gradients, float(schedule(step)))
        assert_near(made.weights(), expected.values, 2e-5)
    for index, slot in enumerate(made.copies(made.optimizer.slots["matrix_momentum"])):
        if HIDDEN[index].ndim == 2:
            np.testing.assert_allclose(slot, expected.momentum[index], rtol=1e-5, atol=1e-6)
            assert made.optimizer.slots["velocity"][index].shape == (1,)
        else:
            assert slot.shape == (1,)
    assert np.isnan(float(made.optimizer.update_norm()))


def test_muon_makes_matrices_orthogonal():
    """Singular values of about 1, unless they were far below the largest; and 0 stays 0."""
    rng = np.random.default_rng(0)
    for shape in ((16, 16), (8, 32), (32, 8)):
        result = orthogonal(tf.constant(rng.normal(size=shape), tf.float32)).numpy()
        sizes = np.linalg.svd(result, compute_uv=False)
        assert sizes.min() > 0.5 and sizes.max() < 1.25
    assert (orthogonal(tf.zeros([3, 4])).numpy() == 0).all()


def test_muon_leaves_embeddings_and_outputs_to_adamw(make_model):
    """Of a whole model: matrices of attention and feed-forward are Muon's, and only they."""
    variables = make_model(tied_embeddings="none").trainable_variables
    optimizer = Optimizer(constant("muon"), 10, variables)
    for variable, slot in zip(variables, optimizer.slots["matrix_momentum"], strict=True):
        outside = "embedding" in variable.path or "softmax" in variable.path
        assert (slot.shape == variable.shape) == (len(variable.shape) == 2 and not outside)
    assert sum(len(slot.shape) == 2 for slot in optimizer.slots["matrix_momentum"]) == 6 + 10


def test_adamw_decays_matrices_and_not_vectors(one_device):
    """Without gradients, two steps at 0.1 with a decay of 0.5 leave 0.95 squared."""
    config = constant("adamw", weight_decay=0.5)
    made = Made(one_device, config, SMALL)
    for _ in range(2):
        made.step([np.zeros_like(value) for value in SMALL])
    for value, weights in zip(SMALL, made.weights(), strict=True):
        share = 0.95**2 if value.ndim > 1 else 1.0
        np.testing.assert_allclose(weights, share * value, rtol=1e-6)
        assert value.ndim > 1 or (weights == value).all()


@pytest.mark.parametrize("name", ["adam", "adafactor"])
def test_weight_decay_is_adamws(name):
    config = schema.Config(optimizer=OptimizerConfig(name=name, weight_decay=0.1))
    with pytest.raises(ValueError, match=f"for .*=adamw, lion or muon, and the name is {name}"):
        schema.validate(config)
    for other in ("adamw", "lion", "muon"):
        config.optimizer.name = other
        schema.validate(config)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_equals_keras(one_device, name):
    """The same definitions, epsilon's place too, on one replica and a constant rate.

    Keras' AdamW decays vectors as well unless they are excluded by name; its Adam on several
    replicas would sum gradients that are reduced already.
    """
    config = constant(name, weight_decay=0.2 if name == "adamw" else 0.0, beta_2=0.95)
    made = Made(one_device, config, SMALL)
    variables = [
        keras.Variable(value, name="matrix" if value.ndim > 1 else "vector") for value in SMALL
    ]
    fields = {"learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.95, "epsilon": 0.3}
    if name == "adamw":
        other = keras.optimizers.AdamW(weight_decay=0.2, **fields)
        other.exclude_from_weight_decay(var_names=["vector"])
    else:
        other = keras.optimizers.Adam(**fields)
    for gradients in random_gradients(SMALL, [1, 0.1, 3, 0.5]):
        made.step(gradients)
        other.apply([tf.constant(gradient, tf.float32) for gradient in gradients], variables)
        assert_near(made.weights(), [variable.numpy() for variable in variables], 1e-6)


# Factored are those with at least 128 in each of the last two axes.
LARGE = random_values([(128, 130), (2, 128, 129), (127, 200), (7,), (2, 3, 2)])
LARGE[0] *= 5.0  # the update is relative to the weights
LARGE[3] *= 0.0  # and to 0.001 where they are smaller


def test_adafactor_equals_numpy(strategy):
    """Factored and not; steps that are clipped and steps that are not; the relative scale."""
    config = OptimizerConfig(name="adafactor", learning_rate=0.1, warmup_steps=2)
    made, expected = Made(strategy, config, LARGE), NumpyAdafactor(config, LARGE)
    schedule = Schedule(config, 10)
    for step, gradients in enumerate(random_gradients(LARGE, [1, 10, 0.1, 1e-4])):
        before, earlier = made.weights(), list(expected.values)
        made.step(gradients)
        expected.apply(gradients, float(schedule(step)))
        assert_near(made.weights(), expected.values, 1e-5)
        # Some weights change by 1e-4 only: the changes, but for the rounding of the weights.
        for index, new in enumerate(made.weights()):
            change = expected.values[index] - earlier[index]
            tolerance = 3e-5 * np.abs(change).max() + 2e-7 * np.abs(new).max()
            np.testing.assert_allclose(new - before[index], change, rtol=0, atol=tolerance)
    clipped = np.array(expected.clipped)  # [steps, weights]
    assert clipped[1].all() and not clipped[2:].any()
    slots = {name: made.copies(slot) for name, slot in made.optimizer.slots.items()}
    for index, value in enumerate(LARGE):
        if index < 2:  # ours are means, the paper's are sums
            assert slots["square"][index].shape == (1,)
            row = expected.row[index] / value.shape[-1]
            column = expected.column[index] / value.shape[-2]
            np.testing.assert_allclose(slots["row"][index], row, rtol=2e-5)
            np.testing.assert_allclose(slots["column"][index], column, rtol=2e-5)
        else:
            assert slots["row"][index].shape == slots["column"][index].shape == (1,)
            np.testing.assert_allclose(slots["square"][index], expected.square[index], rtol=2e-5)


def test_adafactor_by_hand(one_device):
    """The first update is the sign of the gradient, times the scale of the weights."""
    config = constant("adafactor")
    weights = np.array([6.0, -8.0])  # root mean square 50 ** 0.5
    made = Made(one_device, config, [weights, np.zeros(2)])
    made.step([np.array([0.01, -3.0])] * 2)
    sign = np.array([1.0, -1.0])
    np.testing.assert_allclose(made.weights()[0], weights - 0.1 * 50**0.5 * sign, rtol=1e-6)
    np.testing.assert_allclose(made.weights()[1], -0.1 * 1e-3 * sign, rtol=1e-6)
    assert np.isnan(float(made.optimizer.update_norm()))  # it has no such thing


@pytest.mark.parametrize("name", NAMES)
def test_the_factor_multiplies_the_gradients(one_device, name):
    """A power of two, so the results are the same bit for bit: clipping and division by tokens."""
    config = constant(name)
    divided, given = Made(one_device, config, SMALL), Made(one_device, config, SMALL)
    for gradients in random_gradients(SMALL, [1, 3]):
        divided.step([1024 * gradient for gradient in gradients], 2.0**-10)
        given.step(gradients)
    assert divided.counts() == (2, 2)
    assert_same(divided.state(), given.state())
    assert any((one != start).any() for one, start in zip(divided.weights(), SMALL, strict=True))


def decay_of(name: str) -> float:
    """A weight decay, where the optimizer has one."""
    return 0.2 if name in ("adamw", "lion", "muon") else 0.0


def broken(values, bad: float) -> list[np.ndarray]:
    """Gradients of which one number each, or all of the last, is not finite."""
    gradients = [np.ones_like(value) for value in values]
    for gradient in gradients[:-1]:
        gradient.flat[-1] = bad
    gradients[-1][...] = bad
    return gradients


@pytest.mark.parametrize("name", NAMES)
def test_a_factor_of_0_skips_the_step(strategy, name):
    """Bit for bit: nothing changes in it, in the first step neither, and nothing after it."""
    values = [*SMALL, LARGE[0]] if name == "adafactor" else SMALL
    config = constant(name, ema_decay=0.9, weight_decay=decay_of(name))
    skipping, other = Made(strategy, config, values), Made(strategy, config, values)
    for updates, gradients in enumerate(random_gradients(values, [1, 3, 0.5])):
        before = skipping.state()
        for number, bad in enumerate([np.nan, np.inf, -np.inf], 1):
            skipping.step(broken(values, bad), 0.0)
            assert skipping.counts() == (4 * updates + number, updates)
            assert_same(skipping.state(), before)
        skipping.step(gradients)
        other.step(gradients)
        assert skipping.counts() == (4 * updates + 4, updates + 1)
        assert other.counts() == (updates + 1, updates + 1)
        assert_same(skipping.state(), other.state())
    assert np.isfinite(skipping.weights()[0]).all() and (skipping.weights()[0] != values[0]).all()


def test_the_schedule_counts_skipped_steps(one_device):
    """And the bias correction does not: the first update, in step 3, has three quarters of it."""
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=4, epsilon=0.3)
    made, expected = Made(one_device, config, SMALL), NumpyAdam(config, SMALL)
    for _ in range(2):
        made.step(broken(SMALL, np.nan), 0.0)
    (gradients,) = random_gradients(SMALL, [1])
    made.step(gradients)
    expected.apply(gradients, 0.075)
    assert_near(made.weights(), expected.values)


def test_moving_average_equals_numpy(strategy):
    """With a decay of 0.27: 2/11 and 3/12 in the first two updates, and 0.27 from then on."""
    made = Made(strategy, constant(ema_decay=0.27), SMALL)
    averages = [value.astype(np.float64) for value in SMALL]  # starts as the initial weights
    gradients = random_gradients(SMALL, [1, 1, 1, 1])
    for step, decay in enumerate([2 / 11, 3 / 12, 0.27, 0.27]):
        if step == 1:
            made.step(broken(SMALL, np.inf), 0.0)  # counts for nothing
        made.step(gradients[step])
        averages = [
            decay * average + (1 - decay) * weights
            for average, weights in zip(averages, made.weights(), strict=True)
        ]
        assert_near(made.copies(made.optimizer.averages), averages, 1e-6)


def test_a_slow_moving_average(one_device):
    """A decay of 0.999 is reached after thousands of updates: (1 + n) / (10 + n) before."""
    made = Made(one_device, constant(ema_decay=0.999), [np.zeros(1)])
    for updates, decay in ((4, 6 / 15), (989, 991 / 1000), (20_000, 0.999)):
        made.optimizer.updates.assign(updates)
        made.optimizer.averages[0].assign([1000.0])
        made.step([np.zeros(1)])  # the weight stays 0
        np.testing.assert_allclose(made.optimizer.averages[0], [1000 * decay], rtol=1e-6)


def test_swap_averages(two_replicas):
    """Exchanges and exchanges back, on both replicas, bit for bit."""
    made = Made(two_replicas, constant(ema_decay=0.9), SMALL)
    for gradients in random_gradients(SMALL, [1, 1]):
        made.step(gradients)
    weights, averages = made.weights(), made.copies(made.optimizer.averages)
    assert all((one != other).all() for one, other in zip(weights, averages, strict=True))
    made.optimizer.swap_averages(made.variables)
    assert_same(made.weights(), averages)
    assert_same(made.copies(made.optimizer.averages), weights)
    made.optimizer.swap_averages(made.variables)
    assert_same(made.weights(), weights)
    assert_same(made.copies(made.optimizer.averages), averages)
    without = Made(two_replicas, constant(), SMALL)
    without.optimizer.swap_averages(without.variables)
    assert without.optimizer.averages == []
    assert_same(without.weights(), SMALL)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_update_norm(one_device, name):
    """||after - before||; AdamW's without its decay, which is known by hand."""
    config = OptimizerConfig(name=name, learning_rate=0.1, warmup_steps=2, epsilon=0.3)
    decay = 0.2 if name == "adamw" else 0.0
    made = Made(one_device, dataclasses.replace(config, weight_decay=decay), SMALL)
    assert float(made.optimizer.update_norm()) == 0.0
    schedule = Schedule(config, 10)
    for step, gradients in enumerate(random_gradients(SMALL, [1, 0.1, 3])):
        before = made.weights()
        made.step(gradients)
        share = decay * float(schedule(step))
        changes = [
            np.ravel(after - old * (1 - share * (old.ndim > 1)))
            for after, old in zip(made.weights(), before, strict=True)
        ]
        norm = np.linalg.norm(np.concatenate(changes))
        assert norm > 0.01
        assert float(made.optimizer.update_norm()) == pytest.approx(norm, rel=2e-5)
