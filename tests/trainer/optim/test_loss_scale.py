"""The dynamic loss scale: halved, doubled, bounded, saved."""

import numpy as np
import pytest
import tensorflow as tf

from configs.schema import OptimizerConfig
from trainer.checkpoints.files import Keep
from trainer.checkpoints.saver import Checkpoints
from trainer.optim.loss_scale import LossScale
from trainer.optim.optimizer import Optimizer


@pytest.fixture(params=[1, 2], ids=["1 replica", "2 replicas"])
def strategy(request, one_device, two_replicas):
    return one_device if request.param == 1 else two_replicas


def make(strategy, dynamic: bool = True, scale: float | None = None, good_steps: int = 0):
    """Returns the loss scale, and a compiled call of `update` on every replica."""
    with strategy.scope():
        loss_scale = LossScale(dynamic)
    if scale is not None:
        loss_scale.scale.assign(scale)
    loss_scale.good_steps.assign(good_steps)

    @tf.function
    def update(finite):
        strategy.run(loss_scale.update, args=(finite,))

    return loss_scale, lambda finite: update(tf.constant(finite))


def state(strategy, loss_scale) -> tuple[float, int]:
    """Scale and number of good steps, on which all replicas must agree."""
    values = []
    for variable in (loss_scale.scale, loss_scale.good_steps):
        copies = [copy.numpy() for copy in strategy.experimental_local_results(variable)]
        assert len(copies) == strategy.num_replicas_in_sync and len(set(copies)) == 1
        values.append(copies[0])
    return float(values[0]), int(values[1])


def test_halves_and_starts_to_count_again(strategy):
    loss_scale, update = make(strategy)
    seen = [state(strategy, loss_scale)]
    for finite in (True, True, False, False, True):
        update(finite)
        seen.append(state(strategy, loss_scale))
    assert seen == [(2**15, 0), (2**15, 1), (2**15, 2), (2**14, 0), (2**13, 0), (2**13, 1)]


def test_doubles_after_2000_good_steps(strategy):
    """In a row: the 2,000th doubles, and another 2,000 are needed from there."""
    loss_scale, update = make(strategy, scale=8.0, good_steps=1997)
    seen = []
    for _ in range(4):
        update(True)
        seen.append(state(strategy, loss_scale))
    assert seen == [(8, 1998), (8, 1999), (16, 0), (16, 1)]


def test_a_bad_step_shortly_before(one_device):
    loss_scale, update = make(one_device, scale=8.0, good_steps=1999)
    update(False)
    update(True)
    assert state(one_device, loss_scale) == (4, 1)


def test_2000_good_steps_from_the_start(one_device):
    """Not one step earlier, counted by the updates themselves."""
    with one_device.scope():
        loss_scale = LossScale(True)

    @tf.function
    def steps(count):
        for _ in tf.range(count):
            loss_scale.update(tf.constant(True))

    steps(tf.constant(1999))
    assert state(one_device, loss_scale) == (2**15, 1999)
    steps(tf.constant(2001))
    assert state(one_device, loss_scale) == (2**17, 0)


def test_bounds(one_device):
    loss_scale, update = make(one_device, scale=2.0**30, good_steps=1999)
    update(True)
    assert state(one_device, loss_scale) == (2**30, 0)
    loss_scale, update = make(one_device, scale=2.0**-13)
    for _ in range(3):
        update(False)
    assert state(one_device, loss_scale) == (2**-14, 0)


def test_not_dynamic(strategy):
    loss_scale, update = make(strategy, dynamic=False, good_steps=1999)
    for finite in (True, False, False):
        update(finite)
        assert state(strategy, loss_scale) == (1.0, 1999)


def test_goes_into_checkpoints(strategy, one_device, two_replicas, tmp_path):
    """Scale and good steps come back bit for bit, on another number of replicas too."""

    def checkpoints(where, loss_scale):
        with where.scope():
            optimizer = Optimizer(OptimizerConfig(), 10, [])
            return Checkpoints(str(tmp_path), tf.Module(), optimizer, loss_scale, Keep())

    # No power of two: a scale that was made anew by halving would not do.
    scale = float(np.float32(12345.678))
    loss_scale, _ = make(strategy, scale=scale, good_steps=1998)
    first = checkpoints(strategy, loss_scale)
    first.save()
    first.wait()
    for other in (one_device, two_replicas):
        restored, update = make(other)
        assert state(other, restored) == (2**15, 0)
        assert checkpoints(other, restored).restore() == 0
        assert state(other, restored) == (scale, 1998)
        update(True)
        update(True)
        assert state(other, restored) == (2 * scale, 0)
