"""Whole runs whose checkpoints are damaged, cannot be written, or come from another run."""

import json

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from trainer import loop
from trainer.checkpoints.saver import find
from trainer.decoding import scoring
from trainer.metrics import flops
from trainer.run import Run, assemble

_TRAIN = {
    "steps": 8,
    "batch_tokens": 64,
    "steps_per_loop": 2,
    "checkpoint_every": 2,
    "evaluate_every": 4,
    "best_metric": "loss",
}


@pytest.fixture(autouse=True)
def _no_translation(monkeypatch):
    """Takes no time; the validation loss is what decides here."""
    scores = {"bleu": 1.0, "chrf": 2.0, "signature": "none"}
    monkeypatch.setattr(scoring, "score_split", lambda *arguments: (scores, [("a", "b", "c")]))


@pytest.fixture
def start(tiny_config, manifest, one_device):
    """Returns a function that makes a `Run` in a directory, with dropout."""

    def make(directory, init_from=None, ema_decay=0.0, **train) -> Run:
        config = tiny_config(
            model={"dropout": 0.1},
            train={**_TRAIN, **train},
            optimizer={"ema_decay": ema_decay},
        )
        hardware = flops.Hardware(1, "float32")
        return assemble(
            config,
            manifest,
            str(directory),
            one_device,
            "float32",
            False,
            hardware,
            init_from=init_from,
        )

    return make


def values(run: Run) -> list[np.ndarray]:
    return [variable.numpy() for variable in [*run.model.variables, *run.optimizer.variables]]


def assert_same(one: Run, other: Run) -> None:
    for ours, theirs in zip(values(one), values(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_from_the_one_before_a_damaged_one(start, tmp_path):
    """The result is that of an undisturbed run, with the best checkpoint and the counters too."""
    whole = start(tmp_path / "whole")
    assert loop.train(whole) == 0
    assert loop.train(start(tmp_path / "damaged", steps=6)) == 0
    (tmp_path / "damaged" / "checkpoints" / "ckpt-6.index").write_bytes(b"")
    run = start(tmp_path / "damaged")
    assert run.checkpoints.step == 4
    assert loop.train(run) == 0
    assert_same(run, whole)
    for one, other in zip(
        run.checkpoints.state.variables, whole.checkpoints.state.variables, strict=True
    ):
        if one is not run.checkpoints.state.seconds:
            assert one.numpy() == other.numpy()
    for which in ("best", "latest"):
        found = [
            find(str(tmp_path / name), which, "loss", higher=False) for name in ("whole", "damaged")
        ]
        assert found[0].step == found[1].step
        assert found[0].metrics["loss"] == found[1].metrics["loss"]


def test_the_best_has_the_metrics_of_its_evaluation(start, tmp_path):
    run = start(tmp_path, keep_checkpoints=1, evaluate_every=2, checkpoint_every=1, ema_decay=0.5)
    assert loop.train(run) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line["split"] == "valid"}
    assert list(losses) == [2, 4, 6, 8]
    best = find(str(tmp_path), "best", "loss", higher=False)
    assert best.averages and best.step == min(losses, key=losses.__getitem__)
    assert best.metrics["loss"] == losses[best.step]
    assert {path.stem for path in (tmp_path / "checkpoints").glob("*.json")} == {
        "ckpt-8",
        f"ckpt-{best.step}",
    }


def fail_at(monkeypatch, *steps: int) -> None:
    """The disk is full when the checkpoints of these steps are written."""
    write = tf.train.Checkpoint.write

    def fail(self, path, *arguments):
        if int(path.rsplit("-", 1)[1]) in steps:
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")
        return write(self, path, *arguments)

    monkeypatch.setattr(tf.train.Checkpoint, "write", fail)


def test_a_checkpoint_that_fails_is_the_only_thing_lost(start, tmp_path, monkeypatch, capsys):
    whole = start(tmp_path / "whole")
    assert loop.train(whole) == 0
    fail_at(monkeypatch, 4, 6)
    capsys.readouterr()
    run = start(tmp_path / "full")
    assert loop.train(run) == 0
    assert_same(run, whole)
    warnings = capsys.readouterr().err.splitlines()
    assert [line.rsplit("/", 1)[1].split(";")[0] for line in warnings] == [
        f"ckpt-{step} could not be written: No space left on device" for step in (4, 6)
    ]
    names = {path.stem for path in (tmp_path / "full" / "checkpoints").glob("*.json")}
    assert names == {"ckpt-2", "ckpt-8"}


def test_the_last_checkpoint_fails(start, tmp_path, monkeypatch):
    """The run ends with one line, and goes on from the one before when it is started again."""
    with monkeypatch.context() as patch:
        fail_at(patch, 8)
        with pytest.raises(UsageError) as error:
            loop.train(start(tmp_path / "full"))
    folder = tmp_path / "full" / "checkpoints"
    assert str(error.value) == (
        f"checkpoint {folder}/ckpt-8 could not be written: No space left on device; the newest is "
        f"{folder}/ckpt-6: fix that and start the same command again"
    )
    run = start(tmp_path / "full")
    assert run.checkpoints.step == 6


@pytest.mark.parametrize("source", ["gone", "best"])
def test_init_from_nothing_leaves_no_directory(start, tmp_path, source):
    with pytest.raises(UsageError, match=f"--init_from={source}: no checkpoint '{source}'"):
        start(tmp_path / "new", init_from=source)
    assert not (tmp_path / "new").exists()


def test_init_from(start, tmp_path, capsys):
    """The weights, and nothing else: step 0, fresh slots, an average that begins with them."""
    before = start(tmp_path / "before", ema_decay=0.5)
    assert loop.train(before) == 0
    averages = [average.numpy() for average in before.optimizer.averages]
    source = str(tmp_path / "before" / "checkpoints" / "ckpt-8")
    run = start(tmp_path / "new", init_from=source, ema_decay=0.9, seed=2)
    assert f"state        new run, weights of {source}" in capsys.readouterr().out
    assert (run.checkpoints.step, int(run.optimizer.updates.numpy())) == (0, 0)
    for variable, average, expected in zip(
        run.model.trainable_variables, run.optimizer.averages, averages, strict=True
    ):
        np.testing.assert_array_equal(variable.numpy(), expected)
        np.testing.assert_array_equal(average.numpy(), expected)
    for slot in run.optimizer.slots["velocity"]:
        assert not np.any(slot.numpy())
    assert loop.train(run) == 0
    # The same command again, as after a crash: the run goes on, and the source may be gone.
    again = start(tmp_path / "new", init_from="gone", ema_decay=0.9, seed=2)
    assert again.checkpoints.step == 8
    assert_same(again, run)
