"""The average of checkpoints: its weights, and when it is the model."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from trainer.checkpoints import files
from trainer.checkpoints.averages import as_good, choose, load_average, save_average
from trainer.checkpoints.saver import find, restore_model


@pytest.fixture
def three(make_run):
    """A run's model, and its weights at the steps 1, 2 and 3; step 2 has the best BLEU."""
    run = make_run(seed=0)
    weights = {}
    rng = np.random.default_rng(0)
    for step, bleu in ((1, 10.0), (2, 30.0), (3, 20.0)):
        for variable in run.model.trainable_variables:
            variable.assign(rng.normal(size=variable.shape))
        run.optimizer.iterations.assign(step)
        run.save({"bleu": bleu, "loss": 1.0 / step})
        weights[step] = [variable.numpy() for variable in run.model.weights]
    return run.model, weights


@pytest.mark.parametrize(
    ("choice", "steps"), [({"last": 2}, [2, 3]), ({"best": 2}, [2, 3]), ({"last": 9}, [1, 2, 3])]
)
def test_choose(three, tmp_path, choice, steps):
    assert [one.step for one in choose(str(tmp_path), **choice)] == steps


@pytest.mark.parametrize(("decay", "weights"), [(1.0, [1 / 3] * 3), (0.5, [1 / 7, 2 / 7, 4 / 7])])
def test_the_weights_are_the_mean(three, tmp_path, decay, weights):
    model, by_step = three
    load_average(model, choose(str(tmp_path), last=3), {"model": {}}, decay)
    for place, variable in enumerate(model.weights):
        mean = sum(
            share * by_step[step][place] for share, step in zip(weights, (1, 2, 3), strict=True)
        )
        np.testing.assert_allclose(variable.numpy(), mean, atol=1e-6)


@pytest.mark.parametrize(("bleu", "is_best"), [(30.1, True), (29.9, False)])
def test_the_better_one_is_the_model(three, tmp_path, bleu, is_best):
    """Best means best on the validation split, whether it is a checkpoint or an average."""
    model, by_step = three
    load_average(model, choose(str(tmp_path), last=2), {"model": {}})
    expected = [variable.numpy() for variable in model.weights]
    saved = save_average(model, str(tmp_path), 3, {"bleu": bleu, "loss": 0.5}, {"model": {}})
    found = find(str(tmp_path), "best")
    assert (found.path == saved.path) == is_best
    assert find(str(tmp_path), "latest").path.endswith("checkpoints/ckpt-3")
    for variable in model.weights:
        variable.assign(np.zeros(variable.shape))
    restore_model(model, found, {"model": {}})
    for variable, value in zip(model.weights, expected if is_best else by_step[2], strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize(
    ("bleu", "loss", "stays"),
    [(29.9, 0.5, True), (30.0, 0.5, True), (30.0, 0.6, True), (30.0, 0.4, False), (31, 9, False)],
)
def test_a_better_average_of_the_same_step_stays(three, tmp_path, bleu, loss, stays):
    model, _ = three
    there = save_average(model, str(tmp_path), 3, {"bleu": 30.0, "loss": 0.5}, {"model": {}})
    other = dataclasses.replace(there, path="", metrics={"bleu": bleu, "loss": loss})
    assert as_good(str(tmp_path), other, "bleu", True) == (there if stays else None)
    assert as_good(str(tmp_path), dataclasses.replace(other, step=2), "bleu", True) is None
    with open(f"{there.path}.index", "ab") as file:
        file.write(b"x")
    assert as_good(str(tmp_path), other, "bleu", True) is None


def test_an_average_that_cannot_be_written(three, tmp_path, monkeypatch):
    """Nothing of it stays, and the best checkpoint is the model."""

    def fail(checkpoint):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(files, "write_manifest", fail)
    message = r"the average .*averaged/ckpt-3 cannot be written: No space left on device"
    with pytest.raises(UsageError, match=message):
        save_average(three[0], str(tmp_path), 3, {"bleu": 99.0}, {"model": {}})
    assert list((tmp_path / "averaged").iterdir()) == []
    assert find(str(tmp_path), "best").step == 2


def test_a_damaged_average_is_not_the_model(three, tmp_path, capsys):
    model, _ = three
    saved = save_average(model, str(tmp_path), 3, {"bleu": 99.0}, {"model": {}})
    with open(f"{saved.path}.index", "ab") as file:
        file.write(b"x")
    assert find(str(tmp_path), "best").step == 2
    assert "damaged" in capsys.readouterr().err


def test_one_checkpoint_is_no_average(make_run, tmp_path):
    make_run(seed=0, step=5).save()
    with pytest.raises(UsageError, match="1 checkpoint\\(s\\) to average and it takes two"):
        choose(str(tmp_path), last=5)


def test_a_damaged_checkpoint_is_left_out(three, tmp_path, capsys):
    with open(tmp_path / "checkpoints" / "ckpt-2.index", "ab") as file:
        file.write(b"x")
    assert [one.step for one in choose(str(tmp_path), last=2)] == [1, 3]
    assert "ckpt-2 is damaged" in capsys.readouterr().err
    assert [one.step for one in choose(str(tmp_path), best=2)] == [1, 3]
    with open(tmp_path / "checkpoints" / "ckpt-3.index", "ab") as file:
        file.write(b"x")
    with pytest.raises(UsageError, match="1 checkpoint\\(s\\) to average"):
        choose(str(tmp_path), last=2)
