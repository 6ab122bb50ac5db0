"""Checkpoints: everything comes back, and the right ones stay."""

import math
import os

import numpy as np
import pytest

from data_pipeline.records import UsageError
from trainer import checkpoint
from trainer.checkpoint import Checkpoints, find, restore_model
from trainer.optimizer import make_optimizer


@pytest.fixture
def make_run(tmp_path, make_model, tiny_config):
    """Returns (model, optimizer, Checkpoints in `tmp_path`); all values depend on `seed`."""

    def make(seed: int, step: int = 0, keep: int = 3):
        model = make_model(seed=seed)
        optimizer = make_optimizer(tiny_config().optimizer, 10)
        optimizer.build(model.trainable_variables)
        rng = np.random.default_rng(seed)
        for slot in [*optimizer._momentums, *optimizer._velocities]:
            slot.assign(rng.random(slot.shape))
        optimizer.iterations.assign(step)
        return model, optimizer, Checkpoints(str(tmp_path), model, optimizer, keep)

    return make


def values(model, optimizer) -> list[np.ndarray]:
    return [variable.numpy() for variable in (*model.variables, *optimizer.variables)]


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


def test_everything_comes_back(make_run):
    """Weights, slots, step and the state of early stopping, bit for bit, in fresh objects."""
    model, optimizer, checkpoints = make_run(seed=1, step=7)
    fill_state(checkpoints.state)
    checkpoints.save()
    fresh_model, fresh_optimizer, fresh = make_run(seed=2)
    assert math.isnan(state_of(fresh.state)[0])
    assert not np.array_equal(values(model, optimizer)[0], values(fresh_model, fresh_optimizer)[0])
    assert fresh.restore() == 7 == fresh.step
    ours, theirs = values(model, optimizer), values(fresh_model, fresh_optimizer)
    # The schedule has no variable: 2 slots a weight, and the step.
    assert len(ours) == 3 * len(model.variables) + 1
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    assert state_of(fresh.state) == [12.5, 6, 2, 99.25]


def test_two_replicas_go_on_as_one(make_run, two_replicas):
    """What was saved by a mirrored run is restored without the strategy, and back."""
    with two_replicas.scope():
        model, optimizer, checkpoints = make_run(seed=1, step=3)
        fill_state(checkpoints.state)
    checkpoints.save()
    one_model, one_optimizer, one = make_run(seed=2)
    assert one.restore() == 3 and state_of(one.state) == [12.5, 6, 2, 99.25]
    with two_replicas.scope():
        again_model, again_optimizer, again = make_run(seed=3)
        assert again.restore() == 3
    expected = values(model, optimizer)
    for restored in (values(one_model, one_optimizer), values(again_model, again_optimizer)):
        for ours, theirs in zip(expected, restored, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for variable in again_model.variables:
        copies = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(copies[0], copies[1])


def test_a_new_run_has_nothing_to_restore(make_run):
    assert make_run(seed=1)[2].restore() is None


def test_the_newest_stay_and_the_best_besides(make_run, tmp_path):
    """After a restart too, the oldest make room."""
    _, optimizer, checkpoints = make_run(seed=1, keep=2)
    for step in range(1, 5):
        optimizer.iterations.assign(step)
        checkpoints.save()
        if step in (1, 2):
            checkpoints.save_best()
    folder = tmp_path / "checkpoints"
    assert saved(folder) == ["ckpt-3.index", "ckpt-4.index"]
    assert saved(folder / "best") == ["ckpt-2.index"]
    _, optimizer, checkpoints = make_run(seed=2, keep=2)
    assert checkpoints.restore() == 4
    optimizer.iterations.assign(5)
    checkpoints.save()
    assert saved(folder) == ["ckpt-4.index", "ckpt-5.index"]
    checkpoints.save_best()
    assert saved(folder / "best") == ["ckpt-5.index"]


def test_a_step_is_saved_once(make_run, tmp_path):
    _, _, checkpoints = make_run(seed=1, step=4)
    checkpoints.save()
    before = (tmp_path / "checkpoints" / "ckpt-4.index").stat().st_mtime_ns
    checkpoints.save()
    assert (tmp_path / "checkpoints" / "ckpt-4.index").stat().st_mtime_ns == before


def test_an_unfinished_checkpoint_does_not_count(make_run, tmp_path):
    """A run killed while it wrote step 9 goes on from step 4."""
    make_run(seed=1, step=4)[2].save()
    for suffix in ("index", "data-00000-of-00001"):
        (tmp_path / "checkpoints" / f"ckpt-9.{suffix}").write_bytes(b"half")
    assert make_run(seed=2)[2].restore() == 4
    assert find(str(tmp_path), "latest").endswith("ckpt-4")


def test_find(make_run, tmp_path):
    """The best is the latest as long as there is no best one."""
    _, optimizer, checkpoints = make_run(seed=1, step=4)
    checkpoints.save()
    folder = os.path.join(str(tmp_path), "checkpoints")
    four = os.path.join(folder, "ckpt-4")
    assert find(str(tmp_path), "latest") == find(str(tmp_path), "best") == four
    checkpoints.save_best()
    optimizer.iterations.assign(8)
    checkpoints.save()
    assert find(str(tmp_path), "latest") == os.path.join(folder, "ckpt-8")
    assert find(str(tmp_path), "best") == os.path.join(folder, "best", "ckpt-4")
    assert find(str(tmp_path), four) == four


@pytest.mark.parametrize("which", ["best", "latest", "/nowhere/ckpt-1"])
def test_find_nothing(tmp_path, which):
    with pytest.raises(UsageError, match=f"no checkpoint '{which}' in .*best, latest or a path"):
        find(str(tmp_path), which)


def test_restore_model(make_run, make_model, tmp_path):
    """The weights alone, and the step from the name."""
    model, _, checkpoints = make_run(seed=1, step=12)
    checkpoints.save()
    fresh = make_model(seed=2)
    assert restore_model(fresh, find(str(tmp_path), "latest")) == 12
    for one, other in zip(model.variables, fresh.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize(
    "fields", [{"width": 32}, {"decoder_layers": 2}, {"tied_embeddings": "none"}, {"norm": "pre"}]
)
def test_a_checkpoint_of_another_model(make_run, make_model, tmp_path, fields):
    make_run(seed=1, step=1)[2].save()
    with pytest.raises(UsageError, match=r"ckpt-1 cannot be read into this model"):
        restore_model(make_model(**fields), find(str(tmp_path), "latest"))


def test_a_damaged_checkpoint(make_run, make_model, tmp_path):
    make_run(seed=1, step=1)[2].save()
    path = find(str(tmp_path), "latest")
    data = tmp_path / "checkpoints" / "ckpt-1.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-5000])
    with pytest.raises(UsageError, match="cannot be read into this model"):
        restore_model(make_model(), path)
    assert checkpoint.find(str(tmp_path), "best") == path
