"""Checkpoints: everything comes back, and the right ones stay."""

import itertools
import math
import os
from dataclasses import dataclass

import keras
import numpy as np
import pytest

from data_pipeline.records import UsageError
from trainer import checkpoint
from trainer.checkpoint import Checkpoints, find, restore_model
from trainer.loss_scale import LossScale
from trainer.optimizer import Optimizer


@dataclass
class Run:
    """What a checkpoint is made of."""

    model: keras.Model
    optimizer: Optimizer
    loss_scale: LossScale
    checkpoints: Checkpoints

    def values(self) -> list[np.ndarray]:
        modules = (self.model, self.optimizer, self.loss_scale)
        return [variable.numpy() for module in modules for variable in module.variables]


@pytest.fixture
def make_run(tmp_path, make_model, tiny_config):
    """Returns a `Run` with `tmp_path` for its directory; all values depend on `seed`."""

    def make(seed: int, step: int = 0, keep: int = 3, **optimizer_fields) -> Run:
        model = make_model(seed=seed)
        config = tiny_config(optimizer=optimizer_fields).optimizer
        optimizer = Optimizer(config, 10, model.trainable_variables)
        rng = np.random.default_rng(seed)
        for variable in [*itertools.chain(*optimizer.slots.values()), *optimizer.averages]:
            variable.assign(rng.random(variable.shape))
        optimizer.iterations.assign(step)
        optimizer.updates.assign(100 + seed)
        loss_scale = LossScale(dynamic=True)
        loss_scale.scale.assign(seed * 12345.678)
        loss_scale.good_steps.assign(1000 + seed)
        checkpoints = Checkpoints(str(tmp_path), model, optimizer, loss_scale, keep)
        return Run(model, optimizer, loss_scale, checkpoints)

    return make


def fill_state(state) -> None:
    state.best.assign(12.5)
    state.best_step.assign(6)
    state.evaluations_since_best.assign(2)
    state.seconds.assign(99.25)


def state_of(state) -> list[float]:
    fields = (state.best, state.best_step, state.evaluations_since_best, state.seconds)
    return [float(field.numpy()) for field in fields]


def saved(directory) -> list[str]:
    return sorted(path.name for path in directory.glob("*.index"))


# Variables per weight: Adam's two slots or Adafactor's three, and the moving average.
@pytest.mark.parametrize(
    ("fields", "per_weight"),
    [({}, 2), ({"ema_decay": 0.9}, 3), ({"name": "adafactor", "ema_decay": 0.9}, 4)],
)
def test_everything_comes_back(make_run, fields, per_weight):
    """Weights, slots, averages, counters and early stopping, bit for bit, in fresh objects."""
    run = make_run(seed=1, step=7, **fields)
    fill_state(run.checkpoints.state)
    run.checkpoints.save()
    fresh = make_run(seed=2, **fields)
    assert math.isnan(state_of(fresh.checkpoints.state)[0])
    for one, other in zip(run.values(), fresh.values(), strict=True):
        assert not np.array_equal(one, other)
    assert fresh.checkpoints.restore() == 7 == fresh.checkpoints.step
    # Besides: iterations and updates, loss scale and good steps. The schedule has no variable.
    assert len(run.values()) == (1 + per_weight) * len(run.model.variables) + 4
    for one, other in zip(run.values(), fresh.values(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(fresh.optimizer.updates.numpy()) == 101
    assert float(fresh.loss_scale.scale.numpy()) == np.float32(12345.678)
    assert int(fresh.loss_scale.good_steps.numpy()) == 1001
    assert state_of(fresh.checkpoints.state) == [12.5, 6, 2, 99.25]


def test_two_replicas_go_on_as_one(make_run, two_replicas):
    """What was saved by a mirrored run is restored without the strategy, and back."""
    with two_replicas.scope():
        run = make_run(seed=1, step=3, ema_decay=0.9)
        fill_state(run.checkpoints.state)
    run.checkpoints.save()
    one = make_run(seed=2, ema_decay=0.9)
    assert one.checkpoints.restore() == 3
    assert state_of(one.checkpoints.state) == [12.5, 6, 2, 99.25]
    with two_replicas.scope():
        again = make_run(seed=3, ema_decay=0.9)
        assert again.checkpoints.restore() == 3
    for restored in (one, again):
        for ours, theirs in zip(run.values(), restored.values(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    weights = [variable.value for variable in again.model.variables]
    for variable in [*weights, *again.optimizer.variables, *again.loss_scale.variables]:
        copies = two_replicas.experimental_local_results(variable)
        assert len(copies) == 2
        np.testing.assert_array_equal(copies[0], copies[1])


def test_a_new_run_has_nothing_to_restore(make_run):
    assert make_run(seed=1).checkpoints.restore() is None


def test_the_newest_stay_and_the_best_besides(make_run, tmp_path):
    """After a restart too, the oldest make room."""
    run = make_run(seed=1, keep=2)
    for step in range(1, 5):
        run.optimizer.iterations.assign(step)
        run.checkpoints.save()
        if step in (1, 2):
            run.checkpoints.save_best()
    folder = tmp_path / "checkpoints"
    assert saved(folder) == ["ckpt-3.index", "ckpt-4.index"]
    assert saved(folder / "best") == ["ckpt-2.index"]
    run = make_run(seed=2, keep=2)
    assert run.checkpoints.restore() == 4
    run.optimizer.iterations.assign(5)
    run.checkpoints.save()
    assert saved(folder) == ["ckpt-4.index", "ckpt-5.index"]
    run.checkpoints.save_best()
    assert saved(folder / "best") == ["ckpt-5.index"]


def test_a_step_is_saved_once(make_run, tmp_path):
    run = make_run(seed=1, step=4)
    run.checkpoints.save()
    before = (tmp_path / "checkpoints" / "ckpt-4.index").stat().st_mtime_ns
    run.checkpoints.save()
    assert (tmp_path / "checkpoints" / "ckpt-4.index").stat().st_mtime_ns == before


def test_an_unfinished_checkpoint_does_not_count(make_run, tmp_path):
    """A run killed while it wrote step 9 goes on from step 4."""
    make_run(seed=1, step=4).checkpoints.save()
    for suffix in ("index", "data-00000-of-00001"):
        (tmp_path / "checkpoints" / f"ckpt-9.{suffix}").write_bytes(b"half")
    assert make_run(seed=2).checkpoints.restore() == 4
    assert find(str(tmp_path), "latest").endswith("ckpt-4")


def test_find(make_run, tmp_path):
    """The best is the latest as long as there is no best one."""
    run = make_run(seed=1, step=4)
    run.checkpoints.save()
    folder = os.path.join(str(tmp_path), "checkpoints")
    four = os.path.join(folder, "ckpt-4")
    assert find(str(tmp_path), "latest") == find(str(tmp_path), "best") == four
    run.checkpoints.save_best()
    run.optimizer.iterations.assign(8)
    run.checkpoints.save()
    assert find(str(tmp_path), "latest") == os.path.join(folder, "ckpt-8")
    assert find(str(tmp_path), "best") == os.path.join(folder, "best", "ckpt-4")
    assert find(str(tmp_path), four) == four


@pytest.mark.parametrize("which", ["best", "latest", "/nowhere/ckpt-1"])
def test_find_nothing(tmp_path, which):
    with pytest.raises(UsageError, match=f"no checkpoint '{which}' in .*best, latest or a path"):
        find(str(tmp_path), which)


def assert_weights(model, expected) -> None:
    for variable, value in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_restore_model(make_run, make_model, tmp_path):
    """The weights alone, and the step from the name."""
    run = make_run(seed=1, step=12)
    run.checkpoints.save()
    fresh = make_model(seed=2)
    assert restore_model(fresh, find(str(tmp_path), "latest"), averaged=False) == 12
    assert_weights(fresh, [variable.numpy() for variable in run.model.variables])


def test_restore_the_moving_average(make_run, make_model, tmp_path, two_replicas):
    """Of a newest checkpoint the average; of the best one what was evaluated and saved there."""
    with two_replicas.scope():
        run = make_run(seed=1, step=12, ema_decay=0.9)
    weights = [variable.numpy() for variable in run.model.trainable_variables]
    averages = [average.numpy() for average in run.optimizer.averages]
    for one, other in zip(weights, averages, strict=True):
        assert not np.array_equal(one, other)
    other = make_model(seed=2)

    def check(which: str, averaged: bool, expected) -> None:
        for variable in other.trainable_variables:
            variable.assign(np.full(variable.shape, 9.0))
        assert restore_model(other, find(str(tmp_path), which), averaged=averaged) == 12
        assert_weights(other, expected)

    run.checkpoints.save()
    # Without a best one, "best" is the newest, and that has its averages apart.
    check("best", True, averages)
    run.optimizer.swap_averages(run.model.trainable_variables)
    run.checkpoints.save_best()
    run.optimizer.swap_averages(run.model.trainable_variables)
    check("latest", True, averages)
    check("latest", False, weights)
    check("best", True, averages)
    check("best", False, averages)
    check(str(tmp_path / "checkpoints" / "ckpt-12"), True, averages)
    check(str(tmp_path / "checkpoints" / "best" / "ckpt-12"), True, averages)


def test_a_checkpoint_without_a_moving_average(make_run, make_model, tmp_path):
    make_run(seed=1, step=1).checkpoints.save()
    with pytest.raises(UsageError, match=r"ckpt-1 cannot be read into this model"):
        restore_model(make_model(), find(str(tmp_path), "latest"), averaged=True)


@pytest.mark.parametrize(
    "fields", [{"width": 32}, {"decoder_layers": 2}, {"tied_embeddings": "none"}, {"norm": "pre"}]
)
def test_a_checkpoint_of_another_model(make_run, make_model, tmp_path, fields):
    make_run(seed=1, step=1).checkpoints.save()
    with pytest.raises(UsageError, match=r"ckpt-1 cannot be read into this model"):
        restore_model(make_model(**fields), find(str(tmp_path), "latest"), averaged=False)


def test_a_damaged_checkpoint(make_run, make_model, tmp_path):
    make_run(seed=1, step=1).checkpoints.save()
    path = find(str(tmp_path), "latest")
    data = tmp_path / "checkpoints" / "ckpt-1.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-5000])
    with pytest.raises(UsageError, match="cannot be read into this model"):
        restore_model(make_model(), path, averaged=False)
    assert checkpoint.find(str(tmp_path), "best") == path
