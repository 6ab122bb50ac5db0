"""Steps that go wrong: aborted, skipped, rolled back; and evaluations that a stop cuts short."""

import json
import threading

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from trainer import bad_steps, loop
from trainer.checkpoints.files import read_manifests
from trainer.checkpoints.saver import find
from trainer.decoding import scoring
from trainer.input import load
from trainer.input.distribution import endless
from trainer.metrics import flops
from trainer.run import Run, assemble
from trainer.runtime.signals import StopRequest
from trainer.tasks.translation import Translation

_TRAIN = {
    "steps": 8,
    "batch_tokens": 64,
    "steps_per_loop": 4,
    "checkpoint_every": 2,
    "evaluate_every": 4,
    "best_metric": "loss",
}
_MARK = 5  # a token: a batch with no other target has a loss of NaN


class _Changed:
    """Training data of which some batches are marked, and some left out."""

    def __init__(self, data, marked=(), left_out=()):
        self._data, self._marked, self._left_out = data, marked, left_out

    def __getattr__(self, name):
        return getattr(self._data, name)

    def dataset(self, first_step, replicas=1, first=0, local=1):
        skipped = sum(position <= first_step for position in self._left_out)
        assert not skipped or skipped == len(self._left_out)
        numbered = self._data.dataset(first_step + skipped, replicas, first, local).enumerate()
        marked = tf.constant([*self._marked, -1], tf.int64)
        left_out = tf.constant([*self._left_out, -1], tf.int64)

        def mark(number, batch):
            position = number // local + first_step + skipped
            hit = tf.reduce_any(position == marked)
            return {**batch, "target": tf.where(hit, _MARK, batch["target"])}

        kept = numbered.filter(
            lambda number, batch: ~tf.reduce_any(number // local + first_step + skipped == left_out)
        )
        return endless(kept.map(mark))


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    """A marked batch has a loss of NaN, and everything that it gives gradients to with it."""
    sums_of = Translation.sums

    def sums(self, model, batch, *arguments, **options):
        poisoned = tf.reduce_all(batch["target"] == _MARK)
        sums = sums_of(self, model, batch, *arguments, **options)
        return {**sums, "loss": sums["loss"] * tf.where(poisoned, float("nan"), 1.0)}

    monkeypatch.setattr(Translation, "sums", sums)
    scores = {"bleu": 1.0, "chrf": 2.0, "signature": "none"}
    monkeypatch.setattr(scoring, "score_split", lambda *arguments: (scores, [("a", "b", "c")]))


@pytest.fixture
def start(tiny_config, manifest, one_device):
    """Returns a function that makes a `Run` in a directory, with dropout and a moving average."""

    def make(
        directory, marked=(), left_out=(), strategy=one_device, stop=None, grace=30.0, **train
    ) -> Run:
        config = tiny_config(
            model={"dropout": 0.1},
            train={**_TRAIN, **train},
            optimizer={"ema_decay": 0.9},
        )
        replicas = strategy.num_replicas_in_sync
        hardware = flops.Hardware(replicas, "float32")
        arguments = (config, manifest, str(directory), strategy, "float32", False, hardware)
        read = load.load_training_data

        def change(*arguments, **options):
            return _Changed(read(*arguments, **options), marked, left_out)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(load, "load_training_data", change)
            return assemble(*arguments, stop=stop, grace_seconds=grace)

    return make


def _values(run: Run) -> list[np.ndarray]:
    variables = [*run.model.variables, *run.optimizer.variables]
    return [variable.numpy() for variable in variables if variable is not run.optimizer.iterations]


def _assert_same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _lines(directory, split="train") -> list[dict]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def test_skip(start, tmp_path, capfd):
    """The bad step changes nothing but the number of steps, and its batch is saved."""
    run = start(tmp_path, [5], bad_steps="skip", steps=5)
    assert loop.train(run) == 0
    before = _values(run)
    run = start(tmp_path, [5], bad_steps="skip", steps=6)
    assert loop.train(run) == 0
    _assert_same(_values(run), before)
    assert run.checkpoints.step == 6 and int(run.optimizer.updates.numpy()) == 5
    run = start(tmp_path, [5], bad_steps="skip")
    assert loop.train(run) == 0
    assert int(run.optimizer.updates.numpy()) == 7
    assert not np.array_equal(_values(run)[0], before[0])
    assert all(np.isfinite(line["loss"]) for line in _lines(tmp_path))
    assert "step 6 (loss nan, gradient norm nan) is bad" in capfd.readouterr().err
    saved = np.load(tmp_path / "bad_steps" / "step-6-batch-5.npz")
    batch = next(iter(run.data.dataset(5)))
    for name, value in batch.items():
        np.testing.assert_array_equal(saved[name], value)
    assert (saved["target"] == _MARK).all()


def test_the_sentences_of_a_bad_step(start, tmp_path, manifest):
    """Saved as text too, each of them a pair of the training data."""
    run = start(tmp_path, bad_steps="skip", loss_limit=1e-3, steps=1)
    assert loop.train(run) == 0
    assert int(run.optimizer.updates.numpy()) == 0
    segments = np.load(tmp_path / "bad_steps" / "step-1-batch-0.npz")["source_segments"]
    pairs = (tmp_path / "bad_steps" / "step-1-batch-0.tsv").read_text().splitlines()
    assert len(pairs) == sum(row.max() for row in segments) == 4
    words = {"red", "old", "dog", "cat", "man", "sees", "alte", "Hund", "Katze", "Mann", "mag"}
    for pair in pairs:
        source, target = pair.split("\t")
        assert source and target and words.issuperset(source.split() + target.split())


def test_abort(start, tmp_path):
    """The checkpoints are from before, and another policy goes on from there."""
    run = start(tmp_path, [4, 5])
    with pytest.raises(UsageError, match=r"step 5 \(loss nan.*step 6 \(loss nan.*bad_steps=skip"):
        loop.train(run)
    assert find(str(tmp_path), "latest").step == 4
    assert loop.train(start(tmp_path, [4, 5], bad_steps="skip")) == 0
    assert find(str(tmp_path), "latest").step == 8


def test_a_limit_for_the_loss(start, tmp_path):
    with pytest.raises(UsageError, match=r"step 1 \(loss 6\.\d+, gradient norm \d"):
        loop.train(start(tmp_path, loss_limit=4.5))
    assert loop.train(start(tmp_path, loss_limit=9.0)) == 0


@pytest.mark.slow
def test_rollback(start, tmp_path, two_replicas):
    """Goes on as if the batches from the checkpoint to the bad one did not exist."""
    strategy = two_replicas
    # After step 4: batch 5 is bad, so 4 and 5 are left out; then 7, so 6 and 7 are too.
    whole = start(tmp_path / "whole", left_out=[4, 5, 6, 7], strategy=strategy)
    assert loop.train(whole) == 0
    run = start(tmp_path / "run", [5, 7], strategy=strategy, bad_steps="rollback")
    assert loop.train(run) == 0
    assert run.checkpoints.step == 8 and run.data_offset == 4
    _assert_same(_values(run), _values(whole))
    assert [line["step"] for line in _lines(tmp_path / "run")] == [
        line["step"] for line in _lines(tmp_path / "whole")
    ]
    # What was left out is remembered.
    again = start(tmp_path / "run", [5, 7], strategy=strategy, bad_steps="rollback", steps=10)
    assert again.data_offset == 4
    assert loop.train(again) == 0 and again.data_offset == 4


def test_rollbacks_do_not_depend_on_stops_or_stretches(start, tmp_path, monkeypatch):
    """Nor does the checkpoint of a stop count, between the regular one and two bad steps."""
    options = {"bad_steps": "rollback", "checkpoint_every": 4, "steps": 12}
    whole = start(tmp_path / "whole", [6, 7], **options)
    assert loop.train(whole) == 0
    stop = StopRequest()
    run = start(tmp_path / "run", [6, 7], stop=stop, steps_per_loop=1, **options)
    train = run.steps.train

    def stop_at_5(iterator, steps):
        if int(run.optimizer.iterations.numpy()) == 4:
            stop.request("the test")
        return train(iterator, steps)

    stop_at_5.get_concrete_function = train.get_concrete_function
    monkeypatch.setattr(run.steps, "train", stop_at_5)
    assert loop.train(run) == 42
    made = read_manifests(str(tmp_path / "run" / "checkpoints"))
    assert [(one.step, one.extra) for one in made] == [(0, False), (4, False), (5, True)]
    run = start(tmp_path / "run", [6, 7], steps_per_loop=1, **options)
    assert loop.train(run) == 0
    # After step 4 batches 4, 5 and 6 are left out, and then 7.
    assert run.data_offset == whole.data_offset == 4
    _assert_same(_values(run), _values(whole))


def test_rollback_at_the_start(start, tmp_path):
    run = start(tmp_path, [0, 1], bad_steps="rollback")
    assert loop.train(run) == 0
    assert run.data_offset == 2 and run.checkpoints.step == 8


@pytest.mark.parametrize(
    ("policy", "words"), [("skip", "12 steps in a row were bad"), ("rollback", "3 rollbacks to")]
)
def test_when_it_is_not_the_batches(start, tmp_path, monkeypatch, policy, words):
    monkeypatch.setattr(bad_steps, "MOST_IN_A_ROW", 12)
    monkeypatch.setattr(bad_steps, "MOST_ROLLBACKS", 3)
    run = start(tmp_path, range(2, 10_000), bad_steps=policy, steps=1000, evaluate_every=1000)
    with pytest.raises(UsageError, match=words):
        loop.train(run)
    assert len(list((tmp_path / "bad_steps").glob("*.npz"))) == (12 if policy == "skip" else 8)
    assert int(run.optimizer.updates.numpy()) == 2


@pytest.mark.slow
def test_an_evaluation_that_is_cut_short(start, tmp_path, monkeypatch):
    """The next start makes up for it, and nothing shows."""
    whole = start(tmp_path / "whole")
    assert loop.train(whole) == 0
    stop = StopRequest()
    run = start(tmp_path / "run", stop=stop)
    evaluate, weights = run.steps.evaluate, []

    def ask_to_stop(batch):
        stop.request("the test")
        weights.append(run.model.variables[0].numpy())
        return evaluate(batch)

    monkeypatch.setattr(run.steps, "evaluate", ask_to_stop)
    assert loop.train(run) == 42
    assert len(weights) == 1 and run.checkpoints.step == 4
    # The weights again, not their average, which was evaluated.
    assert not np.array_equal(run.model.variables[0].numpy(), weights[0])
    directory = tmp_path / "run" / "checkpoints"
    assert [bool(one.metrics) for one in read_manifests(str(directory))] == [False, False]
    run = start(tmp_path / "run")
    assert loop.train(run) == 0
    _assert_same(_values(run), _values(whole))
    for one, other in zip(
        run.checkpoints.state.variables, whole.checkpoints.state.variables, strict=True
    ):
        if one is not run.checkpoints.state.seconds:
            assert one.numpy() == other.numpy()
    metrics = [
        {one.step: one.metrics.get("loss") for one in read_manifests(str(tmp_path / name / folder))}
        for name, folder in (("run", "checkpoints"), ("whole", "checkpoints"))
    ]
    assert metrics[0] == metrics[1] and metrics[0][4] and metrics[0][8]
    losses = [
        [line["loss"] for line in _lines(tmp_path / name, "valid")] for name in ("run", "whole")
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_calls_are_cut_to_the_time_there_is(start, tmp_path, monkeypatch):
    """With no time at all every call is of one step; result and reports are the same."""
    calls = {}
    for name, grace in (("whole", 1e9), ("run", 1e-9)):
        run, calls[name] = start(tmp_path / name, grace=grace, checkpoint_every=8), []
        train = run.steps.train

        def count(iterator, steps, train=train, counts=calls[name]):
            counts.append(int(steps))
            return train(iterator, steps)

        monkeypatch.setattr(run.steps, "train", count)
        count.get_concrete_function = train.get_concrete_function
        assert loop.train(run) == 0
        calls[name].append(_values(run))
    _assert_same(calls["run"].pop(), calls["whole"].pop())
    assert calls["run"] == [1] * 8
    assert calls["whole"] == [1, 1, 2, 4]  # none is measured yet; then only compilation is
    lines = [_lines(tmp_path / name) for name in ("run", "whole")]
    assert [[line["step"] for line in ours] for ours in lines] == [[1, 4, 8]] * 2
    for ours, theirs in zip(*lines, strict=True):
        for name in ("loss", "grad_norm", "token_accuracy", "fill_rate", "learning_rate"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6)


def test_training_goes_on_while_a_slow_reporter_writes(start, tmp_path, monkeypatch):
    """A report is written only after the next call of the train step has begun."""
    run = start(tmp_path / "run", steps=5, steps_per_loop=2, checkpoint_every=5, evaluate_every=5)
    train, write, begun, waited = run.steps.train, run.writer.write, threading.Event(), []

    def note(iterator, steps):
        if int(run.optimizer.iterations.numpy()) >= 2:
            begun.set()
        return train(iterator, steps)

    def write_slowly(split, step, metrics):
        if (split, step) == ("train", 2):
            waited.append(begun.wait(300))
        write(split, step, metrics)

    note.get_concrete_function = train.get_concrete_function
    monkeypatch.setattr(run.steps, "train", note)
    monkeypatch.setattr(run.writer, "write", write_slowly)
    assert loop.train(run) == 0
    assert waited == [True]
    assert [line["step"] for line in _lines(tmp_path / "run")] == [1, 2, 4, 5]
