"""The schedule by hand, and Adam against NumPy: the gradients must not be summed once more."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from configs.schema import OptimizerConfig
from trainer.optimizer import WarmupSchedule, clip, make_optimizer


def rates(schedule: str, steps: int, warmup: int, at) -> list[float]:
    config = OptimizerConfig(schedule=schedule, learning_rate=0.5, warmup_steps=warmup)
    return [float(WarmupSchedule(config, steps)(tf.constant(step, tf.int64))) for step in at]


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "cosine"])
def test_warm_up_is_linear(schedule):
    """The n-th update of a warm-up of 4 has n quarters of the peak."""
    assert rates(schedule, 100, 4, range(4)) == [0.125, 0.25, 0.375, 0.5]


def test_inverse_sqrt():
    """At 4 and 25 times the warm-up a half and a fifth of the peak, whatever the last step."""
    assert rates("inverse_sqrt", 20, 4, [15, 99]) == pytest.approx([0.25, 0.1], rel=1e-6)


def test_inverse_sqrt_is_the_papers():
    """With the peak of D^-0.5 w^-0.5 it is D^-0.5 min(n^-0.5, n w^-1.5)."""
    config = OptimizerConfig(learning_rate=512**-0.5 * 4000**-0.5, warmup_steps=4000)
    for n in (1, 100, 4000, 4001, 100_000):
        paper = 512**-0.5 * min(n**-0.5, n * 4000**-1.5)
        assert float(WarmupSchedule(config, 1)(n - 1)) == pytest.approx(paper, rel=1e-5)


def test_cosine():
    """From the peak at the end of the warm-up through the half to nothing at the last update."""
    result = rates("cosine", 24, 4, [3, 8, 13, 18, 23, 40])
    quarter = [0.5 * (1 + math.cos(math.pi * part)) / 2 for part in (0, 0.25, 0.5, 0.75)]
    assert result[:4] == pytest.approx(quarter, rel=1e-6)
    assert result[4] == pytest.approx(0, abs=1e-9) and result[5] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "cosine"])
def test_no_warm_up(schedule):
    """The first update has the peak already."""
    assert rates(schedule, 10, 0, [0]) == [0.5]


class NumpyAdam:
    """Algorithm 1 of Kingma and Ba in the order of the end of their section 2."""

    def __init__(self, config: OptimizerConfig, values: np.ndarray):
        self.config, self.values = config, values.astype(np.float64)
        self.momentum, self.velocity = np.zeros_like(self.values), np.zeros_like(self.values)

    def apply(self, gradient: np.ndarray, rate: float, update: int) -> None:
        beta_1, beta_2 = self.config.beta_1, self.config.beta_2
        self.momentum = beta_1 * self.momentum + (1 - beta_1) * gradient
        self.velocity = beta_2 * self.velocity + (1 - beta_2) * gradient**2
        rate = rate * np.sqrt(1 - beta_2**update) / (1 - beta_1**update)
        self.values -= rate * self.momentum / (np.sqrt(self.velocity) + self.config.epsilon)


VALUES = np.array([[1.0, -2.0], [0.5, 3.0]])
GRADIENTS = [np.array([[0.3, -0.1], [2.0, 0.0]]), np.array([[-0.2, 0.4], [1.0, 0.05]])]


@pytest.mark.parametrize("replicas", [1, 2])
def test_adam_equals_numpy(one_device, two_replicas, replicas):
    """Two updates; on two replicas too, which both pass the gradient that they have reduced.

    Adam hardly notices a gradient that is twice as large, but its slots do, and with a large
    epsilon the weights do too: this is what guards the private hook of `ReducedAdam`.
    """
    strategy = one_device if replicas == 1 else two_replicas
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=2, epsilon=0.3)
    with strategy.scope():
        variable = keras.Variable(VALUES, dtype="float32")
        optimizer = make_optimizer(config, 10)
        optimizer.build([variable])

    @tf.function
    def update(gradient):
        strategy.run(lambda: optimizer.apply([gradient], [variable]))

    expected = NumpyAdam(config, VALUES)
    for number, gradient in enumerate(GRADIENTS, 1):
        update(tf.constant(gradient, tf.float32))
        expected.apply(gradient, 0.1 * number / 2, number)
    assert int(optimizer.iterations.numpy()) == 2
    for ours, numpys in (
        (variable, expected.values),
        (optimizer._momentums[0], expected.momentum),
        (optimizer._velocities[0], expected.velocity),
    ):
        copies = strategy.experimental_local_results(ours.value)
        assert len(copies) == replicas
        for copy in copies:
            np.testing.assert_allclose(copy, numpys, rtol=1e-5, atol=1e-7)


def test_clip():
    """The norm of (3, 4, 12) is 13: a larger limit changes nothing, a smaller one scales."""
    gradients = [tf.constant([3.0, 4.0]), tf.constant([[12.0]])]
    clipped, norm = clip(gradients, 6.5)
    assert float(norm) == pytest.approx(13, rel=1e-6)
    np.testing.assert_allclose(clipped[0], [1.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(clipped[1], [[6.0]], rtol=1e-6)
    for limit in (13.5, 0.0):
        same, norm = clip(gradients, limit)
        assert float(norm) == pytest.approx(13, rel=1e-6)
        np.testing.assert_allclose(same[0], gradients[0], rtol=1e-6)
        np.testing.assert_allclose(same[1], gradients[1], rtol=1e-6)
