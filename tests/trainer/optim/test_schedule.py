"""The learning rates by hand."""

import math

import pytest
import tensorflow as tf

from configs.schema import OptimizerConfig
from trainer.optim.schedule import Schedule

ALL = ["inverse_sqrt", "cosine", "linear", "constant"]


def rates(schedule: str, steps: int, warmup: int, at) -> list[float]:
    """After `at` steps, with a peak of 0.5."""
    config = OptimizerConfig(schedule=schedule, learning_rate=0.5, warmup_steps=warmup)
    made = Schedule(config, steps)
    values = [made(tf.constant(step, tf.int64)) for step in at]
    assert {value.dtype for value in values} == {tf.float32}
    return [float(value) for value in values]


@pytest.mark.parametrize("schedule", ALL)
def test_warm_up_is_linear(schedule):
    """The n-th step of a warm-up of 4 has n quarters of the peak."""
    assert rates(schedule, 100, 4, range(4)) == [0.125, 0.25, 0.375, 0.5]


def test_inverse_sqrt():
    """At 4 and 25 times the warm-up a half and a fifth of the peak, whatever the last step."""
    assert rates("inverse_sqrt", 20, 4, [15, 99]) == pytest.approx([0.25, 0.1], rel=1e-6)


def test_inverse_sqrt_is_the_papers():
    """With the peak of D^-0.5 w^-0.5 it is D^-0.5 min(n^-0.5, n w^-1.5)."""
    config = OptimizerConfig(learning_rate=512**-0.5 * 4000**-0.5, warmup_steps=4000)
    for n in (1, 100, 4000, 4001, 100_000):
        paper = 512**-0.5 * min(n**-0.5, n * 4000**-1.5)
        assert float(Schedule(config, 1)(n - 1)) == pytest.approx(paper, rel=1e-5)


def test_cosine():
    """From the peak at the end of the warm-up, by quarters of the rest, to 0 after the last step.

    With 23 steps, of which 4 warm up, the 24th would be the first with a rate of 0.
    """
    quarters = [0.5 * (1 + math.cos(math.pi * part)) / 2 for part in (0, 0.25, 0.5, 0.75, 0.95)]
    result = rates("cosine", 23, 4, [3, 8, 13, 18, 22, 23])
    assert result[:5] == pytest.approx(quarters, rel=1e-5)
    assert result[5] == pytest.approx(0, abs=1e-9)


def test_linear():
    result = rates("linear", 23, 4, [3, 8, 13, 18, 22, 23])
    assert result[:5] == pytest.approx([0.5, 0.375, 0.25, 0.125, 0.025], rel=1e-5)
    assert result[5] == 0


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 4, 19, 20])
def test_the_last_step_trains(schedule, warmup):
    """Its rate is above 0; the next one's is 0, and stays there."""
    last, after, later = rates(schedule, 20, warmup, [19, 20, 99])
    assert last > 1e-3
    assert (after, later) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))


def test_constant():
    assert rates("constant", 24, 4, [3, 4, 13, 23]) == [0.5] * 4


@pytest.mark.parametrize(
    ("schedule", "second"),
    [
        ("inverse_sqrt", 0.5 * 2**-0.5),
        ("cosine", 0.25 * (1 + math.cos(math.pi / 10))),
        ("linear", 0.5 * 9 / 10),
        ("constant", 0.5),
    ],
)
def test_no_warm_up(schedule, second):
    """The first of 10 steps has the peak already, and the decay begins with the second."""
    first, after = rates(schedule, 10, 0, [0, 1])
    assert first == 0.5 and after == pytest.approx(second, rel=1e-6)
    assert rates(schedule, 10, 1, [0, 1]) == [first, after]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("inverse_sqrt", 0.1), ("cosine", 0.0), ("linear", 0.0), ("constant", 0.5)],
)
def test_beyond_the_last_step(schedule, expected):
    """A run that is made longer than its schedule: nothing negative, no new rise."""
    assert rates(schedule, 20, 4, [99]) == pytest.approx([expected], rel=1e-6, abs=1e-9)
    assert 0 <= rates(schedule, 20, 4, [20])[0] <= rates(schedule, 20, 4, [19])[0]


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("steps", [3, 8])
def test_a_run_that_ends_in_its_warm_up(schedule, steps):
    """The warm-up goes on to the end, as if the run were longer."""
    assert rates(schedule, steps, 8, range(steps)) == [0.0625 * n for n in range(1, steps + 1)]
