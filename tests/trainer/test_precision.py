"""Half precision learns what float32 learns.

The task has a floor: a target is a random walk that begins at the source's one token and goes up
by 1 or 2 with each token. Of the logarithm of the vocabulary, which the loss starts at, the model
can learn all but the coin flips, so the losses that are compared are not just noise around 0.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from data_pipeline.dataset.examples import Examples
from tests.trainer.worker_script import EOS, VOCAB, make_steps
from trainer.input.distribution import distribute
from trainer.input.memory import training_data

STEPS, LAST = 200, 20
WALK = 14  # tokens of a target
FLOOR = np.log(2) * (WALK - 1) / (WALK + 1)  # nats a token: the first and the last are certain


@pytest.fixture(scope="module")
def walks() -> Examples:
    rng = np.random.default_rng(0)
    first = rng.integers(0, VOCAB - 4, [4000, 1])
    steps = np.concatenate([np.zeros_like(first), rng.integers(1, 3, [4000, WALK - 1])], axis=1)
    targets = 4 + (first + np.cumsum(steps, axis=1)) % (VOCAB - 4)
    numbers = np.arange(4001)
    sources = (4 + first).ravel().astype(np.int32)
    return Examples(
        {"source": sources, "target": targets.ravel().astype(np.int32)},
        {"source": numbers, "target": numbers * WALK},
    )


@pytest.fixture(scope="module")
def train(walks, tiny_config, one_device):
    """Returns the sums of every step of a run under a dtype policy, and its Steps."""

    def run(policy: str, loss_scale: float | None = None):
        keras.config.set_dtype_policy(policy)
        config = tiny_config(
            model={"width": 32, "feed_forward": 64},
            optimizer={"learning_rate": 0.01, "warmup_steps": 20, "clip_norm": 1.0},
            train={"batch_tokens": 512, "label_smoothing": 0.0},
        )
        steps = make_steps(one_device, config)
        if loss_scale:
            steps.loss_scale.scale.assign(loss_scale)
        iterator = distribute(training_data(walks, config, EOS, replicas=1), one_device, 0)
        calls = [steps.train(iterator, tf.constant(1)) for _ in range(STEPS)]
        keys = calls[0].keys() - {"step_seconds", "input_seconds", "bad"}
        return {key: np.array([float(call[key]) for call in calls]) for key in keys}, steps

    return run


@pytest.fixture(scope="module")
def float32_losses(train) -> np.ndarray:
    """Nats per token, of every step."""
    sums, _ = train("float32")
    return sums["loss"] / sums["tokens"]


def assert_as_good(sums, steps, float32_losses: np.ndarray) -> None:
    losses = sums["loss"] / sums["tokens"]
    assert np.abs(losses[:10] / float32_losses[:10] - 1).max() > 1e-6  # it is another precision
    assert losses[-LAST:].mean() == pytest.approx(float32_losses[-LAST:].mean(), rel=0.02)
    assert {variable.dtype for variable in steps.model.trainable_variables} == {"float32"}


def test_float32(float32_losses):
    """The loss falls from log(V), by more than half, almost to the floor."""
    assert float32_losses[0] > 0.9 * np.log(VOCAB) > 4 * FLOOR
    assert FLOOR < float32_losses[-LAST:].mean() < 1.15 * FLOOR


def test_bfloat16(train, float32_losses):
    """It has float32's range: no loss scale, nothing skipped."""
    sums, steps = train("mixed_bfloat16")
    assert_as_good(sums, steps, float32_losses)
    assert (sums["loss_scale"] == 1).all() and (sums["skipped"] == 0).all()


def test_float16(train, float32_losses):
    """From far too large a loss scale it finds one that fits, and has skipped only meanwhile."""
    start = 2.0**28
    sums, steps = train("mixed_float16", start)
    assert_as_good(sums, steps, float32_losses)
    assert steps.loss_scale.dynamic
    skipped = int(sums["skipped"].sum())
    assert 2 <= skipped <= STEPS // 10
    assert (sums["loss_scale"] == start / 2 ** np.cumsum(sums["skipped"])).all()
    assert all(np.isfinite(values).all() for values in sums.values())
    updates = int(steps.optimizer.updates.numpy())
    assert (updates, int(steps.optimizer.iterations.numpy())) == (STEPS - skipped, STEPS)
