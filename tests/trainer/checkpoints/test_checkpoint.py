"""Checkpoints: everything comes back, and the right ones stay."""

import dataclasses
import math
import os
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from trainer.checkpoints.files import Checkpoint, Keep
from trainer.checkpoints.saver import find, restore_model

_FACTS = {"model": {"model.width": 16}, "run": {"train.seed": 1}}


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
    run.save()
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
    run.save()
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


def test_the_copy_is_of_the_moment_of_saving(make_run, two_replicas):
    """What changes while the files are written is not in them; a second save copies again."""
    with two_replicas.scope():
        run = make_run(seed=1, step=2, ema_decay=0.9)
    run.save()  # the first one of a run is waited for
    run.optimizer.iterations.assign(3)
    before = run.values()
    changed = threading.Event()

    def change() -> None:
        for variable in run.model.trainable_variables:
            variable.assign_add(np.ones(variable.shape))
        for slot in run.optimizer.slots["momentum"]:
            slot.assign_add(tf.ones(slot.shape))
        run.optimizer.iterations.assign_add(1)

    run.checkpoints._thread.submit(changed.wait)  # nothing is written before that
    run.checkpoints.save()
    change()
    changed.set()
    run.checkpoints.wait()
    fresh = make_run(seed=2, ema_decay=0.9)
    assert fresh.checkpoints.restore() == 3
    for one, other in zip(before, fresh.values(), strict=True):
        np.testing.assert_array_equal(one, other)
    after = run.values()
    run.save()
    assert fresh.checkpoints.restore() == 4
    for one, other in zip(after, fresh.values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_newest_and_the_best_stay(make_run, tmp_path):
    """After a restart too, the others make room; with all their files."""
    run = make_run(seed=1, keep=Keep(newest=2, best=1))
    for step, bleu in ((1, 5.0), (2, 9.0), (3, 7.0), (4, 8.0)):
        run.optimizer.iterations.assign(step)
        run.save({"bleu": bleu})
    folder = tmp_path / "checkpoints"
    assert saved(folder) == ["ckpt-2.index", "ckpt-3.index", "ckpt-4.index"]
    run = make_run(seed=2, keep=Keep(newest=2, best=1))
    assert run.checkpoints.restore() == 4
    run.optimizer.iterations.assign(5)
    run.save()
    assert saved(folder) == ["ckpt-2.index", "ckpt-4.index", "ckpt-5.index"]
    run.optimizer.iterations.assign(6)
    run.save({"bleu": 9.5})
    assert saved(folder) == ["ckpt-5.index", "ckpt-6.index"]
    ends = ("data-00000-of-00001", "index", "json")
    assert sorted(path.name for path in folder.iterdir()) == [
        f"ckpt-{step}.{end}" for step in (5, 6) for end in ends
    ]


def written(step: int, hours: float = 0.0, **metrics: float) -> Checkpoint:
    return Checkpoint(f"ckpt-{step}", step, 3600.0 * hours, {}, metrics, False, {})


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Keep(newest=1, best=1, metric="bleu"), {3, 6}),
        (Keep(newest=2, best=2, metric="bleu"), {3, 4, 5, 6}),
        (Keep(newest=1, best=2, metric="loss", higher=False), {1, 4, 6}),
        (Keep(newest=1, best=9, metric="chrf"), {6}),
        (Keep(newest=99), {1, 2, 3, 4, 5, 6}),
        (Keep(newest=1, every_hours=2.0, metric="chrf"), {1, 3, 5, 6}),
        (Keep(newest=1, every_hours=100.0, metric="chrf"), {1, 6}),
    ],
)
def test_keep(keep, expected):
    """The higher BLEU or the lower loss is better; of equal BLEU, the one with the lower loss."""
    checkpoints = [
        written(1, 0.0, bleu=1.0, loss=0.5),
        written(2, 1.0, bleu=8.0, loss=4.0),
        written(3, 2.0, bleu=9.0, loss=3.0),
        written(4, 3.5, bleu=8.0, loss=2.0),
        written(5, 4.0, bleu=2.0, loss=9.0),
        written(6, 5.0),
    ]
    assert keep.select(checkpoints) == expected
    # What is kept stays kept when the others are gone.
    left = [one for one in checkpoints if one.step in expected]
    assert keep.select(left[::-1]) == expected


def test_a_checkpoint_of_a_stop_stays_while_it_is_the_newest():
    """So a run that was stopped keeps what an undisturbed one does."""
    regular = [written(step) for step in (2, 4, 6)]
    stop = dataclasses.replace(written(5), extra=True)
    keep = Keep(newest=2, best=0)
    assert keep.select([*regular[:2], stop]) == {4, 5}
    assert keep.select([*regular, stop]) == keep.select(regular) == {4, 6}


def test_a_step_is_saved_once(make_run, tmp_path):
    run = make_run(seed=1, step=4)
    run.save()
    before = (tmp_path / "checkpoints" / "ckpt-4.index").stat().st_mtime_ns
    run.save()
    assert (tmp_path / "checkpoints" / "ckpt-4.index").stat().st_mtime_ns == before


def test_an_unfinished_checkpoint_does_not_count(make_run, tmp_path, capfd):
    """A run killed while it wrote step 9 goes on from step 4, and tidies up when it saves."""
    make_run(seed=1, step=4).save()
    folder = tmp_path / "checkpoints"
    for name in ("ckpt-9.index", "ckpt-9.data-00000-of-00001", "ckpt-9.json.incomplete"):
        (folder / name).write_bytes(b"half")
    (folder / "ckpt-9_temp").mkdir()
    (folder / "ckpt-9_temp" / "part-00000-of-00001.index").write_bytes(b"half")
    run = make_run(seed=2)
    assert run.checkpoints.restore() == 4
    assert "ckpt-9 has no manifest: it was not finished; not used" in capfd.readouterr().err
    assert find(str(tmp_path), "latest").step == 4
    run.optimizer.iterations.assign(6)
    run.save()
    assert not list(folder.glob("ckpt-9*"))


def test_killed_during_the_first_checkpoint(make_run, tmp_path, capfd):
    """The run starts anew, and says why."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "ckpt-9.index").write_bytes(b"half")
    assert make_run(seed=2).checkpoints.restore() is None
    assert "ckpt-9 has no manifest: it was not finished" in capfd.readouterr().err


def test_find(make_run, tmp_path):
    """The best is the latest as long as none was evaluated."""
    run = make_run(seed=1, step=4)
    run.save()
    folder = os.path.join(str(tmp_path), "checkpoints")
    four = os.path.join(folder, "ckpt-4")
    assert find(str(tmp_path), "latest").path == find(str(tmp_path), "best").path == four
    for step, bleu, loss in ((6, 2.0, 1.0), (8, 1.0, 2.0)):
        run.optimizer.iterations.assign(step)
        run.save({"bleu": bleu, "loss": loss, "chrf": math.nan, "signature": "a|b"})
    assert find(str(tmp_path), "latest").path == os.path.join(folder, "ckpt-8")
    assert find(str(tmp_path), "best").path == os.path.join(folder, "ckpt-6")
    assert find(str(tmp_path), "best", "loss", higher=False).path == os.path.join(folder, "ckpt-6")
    assert find(str(tmp_path), "best", "chrf").path == os.path.join(folder, "ckpt-8")
    for name in (four, f"{four}.index", f"{four}.json"):
        found = find(str(tmp_path), name)
        assert (found.path, found.step, found.averages) == (four, 4, False)
    assert find(str(tmp_path), "latest").metrics == {"bleu": 1.0, "loss": 2.0}


@pytest.mark.parametrize("which", ["best", "latest", "/nowhere/ckpt-1", "/nowhere"])
def test_find_nothing(tmp_path, which):
    with pytest.raises(UsageError, match=f"no checkpoint '{which}'.* best, latest or a path"):
        find(str(tmp_path), which)


def assert_weights(model, expected) -> None:
    for variable, value in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_restore_model(make_run, make_model, tmp_path):
    """The weights alone."""
    run = make_run(seed=1, step=12)
    run.save()
    fresh = make_model(seed=2)
    restore_model(fresh, find(str(tmp_path), "latest"), {})
    assert_weights(fresh, [variable.numpy() for variable in run.model.variables])


@pytest.mark.parametrize("replicas", [1, 2])
def test_restore_the_moving_average(make_run, make_model, tmp_path, two_replicas, replicas):
    """Where there is one, whichever way the checkpoint is named; weights and averages differ."""
    with two_replicas.scope():
        run = make_run(seed=1, step=12, ema_decay=0.9)
    averages = [average.numpy() for average in run.optimizer.averages]
    for one, other in zip(run.model.trainable_variables, averages, strict=True):
        assert not np.array_equal(one.numpy(), other)
    run.save({"bleu": 3.0})
    strategy = two_replicas if replicas == 2 else tf.distribute.get_strategy()
    for which in ("best", "latest", str(tmp_path / "checkpoints" / "ckpt-12")):
        with strategy.scope():
            other = make_model(seed=2)
            restore_model(other, find(str(tmp_path), which), {})
        assert_weights(other, averages)


@pytest.mark.parametrize(
    "fields", [{"width": 32}, {"decoder_layers": 2}, {"tied_embeddings": "none"}, {"norm": "pre"}]
)
def test_a_checkpoint_of_another_model(make_run, make_model, tmp_path, fields):
    """Even if nothing is said of what it is."""
    make_run(seed=1, step=1).save()
    with pytest.raises(UsageError, match=r"ckpt-1 cannot be read into this model"):
        restore_model(make_model(**fields), find(str(tmp_path), "latest"), {})


def test_facts_of_another_run(make_run, make_model, tmp_path):
    """Spelled out; a model is not concerned with what is the run's, such as the seed."""
    make_run(seed=1, step=1, facts=_FACTS).save()
    other = {"model": {"model.width": 32}, "run": {"train.seed": 2, "train.new": 0}}
    for facts, message in (
        (other, r"ckpt-1 is of another model: model.width 16 -> 32; train.seed 1 -> 2$"),
        ({**other, "model": {}}, r"ckpt-1 is of another run: train.seed 1 -> 2$"),
    ):
        with pytest.raises(UsageError, match=message):
            make_run(seed=1, facts=facts).checkpoints.restore()
    found = find(str(tmp_path), "latest")
    with pytest.raises(UsageError, match=r"another model: model.width 16 -> 32$"):
        restore_model(make_model(), found, other)
    restore_model(make_model(), found, {**other, "model": _FACTS["model"]})
    assert make_run(seed=1, facts=_FACTS).checkpoints.restore() == 1


def test_every_weight_is_in_a_checkpoint(make_run, tmp_path):
    """TensorFlow follows attributes and passes over Keras' lists without a word."""
    run = make_run(seed=1, step=1)
    run.save()
    found = find(str(tmp_path), "latest")
    names = [name for name, _ in tf.train.list_variables(found.path)]
    assert sum(name.startswith("model/") for name in names) == len(run.model.weights)
    # And TensorFlow's own means read it.
    model = make_run(seed=2).model
    tf.train.Checkpoint(model=model).restore(found.path).expect_partial()
    assert isinstance(model, keras.Model)
    assert_weights(model, [variable.numpy() for variable in run.model.trainable_variables])
