"""Every task on the same engine: packing, and a run that is killed and resumed. Replicas and
workers are in tests/trainer/test_topologies.py."""

import dataclasses
import json
import random

import numpy as np
import pytest
import tensorflow as tf

from common import lock
from data_pipeline import job
from data_pipeline.dataset import packing
from data_pipeline.dataset.examples import Examples
from data_pipeline.dataset.manifest import SEQUENCES
from tests.trainer.worker_script import VOCAB, closing_id, task_of
from trainer import finish, loop
from trainer.checkpoints import model_dir
from trainer.metrics.flops import Hardware
from trainer.run import Run, assemble
from trainer.split_scores import SplitScorer

TASKS = list(SEQUENCES)
SIZES = {"translation": 30, "language_model": 200, "classification": 60}  # of the training text


@pytest.mark.parametrize("task", TASKS)
def test_packed_equals_unpacked(tiny_config, seeded, task):
    """The sums of rows that hold several examples, and of rows with one each."""
    config = dataclasses.replace(tiny_config(), task=task)
    made = task_of(config)
    model = made.build_model()
    rng = np.random.default_rng(1)
    ids = {
        name: [rng.integers(4, VOCAB, size).tolist() for size in rng.integers(1, 9, 12)]
        for name in SEQUENCES[task]
    }
    labels = rng.integers(0, 3, 12) if task == "classification" else None
    examples = Examples.of_lists(ids, labels)
    packed = packing.pack(examples, 16, closing_id(config))
    (single,) = packing.one_per_row(examples, (16,), closing_id(config))
    assert len(packed) < len(single) == 12
    found = []
    for rows in (packed, single):
        batch = {name: tf.constant(array) for name, array in rows.arrays.items()}
        sums = made.sums(model, batch, None, training=True)
        assert sums.keys() == set(made.SUMS)
        found.append({name: float(value) for name, value in sums.items() if name != "positions"})
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0]["loss"] > 1.0


@pytest.fixture(scope="module", params=TASKS)
def dataset(request, tmp_path_factory):
    """A small dataset of the built-in text."""
    directory = tmp_path_factory.mktemp(request.param)
    settings = job.Settings(
        train=(f"builtin:train?size={SIZES[request.param]}",),
        valid=("builtin:valid?size=30",),
        test=("builtin:test?size=30",),
        source_lang="en",
        target_lang="de",
        output_dir=str(directory),
        task=request.param,
        model_type="char",
        row_length=128,
        num_shards=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "_SETTLE_SECONDS", 0.0)
        return job.prepare(settings)


@pytest.fixture
def start(dataset, tiny_config, one_device):
    """Returns a function that assembles a run of a task, with dropout."""

    def make(directory) -> Run:
        config = tiny_config(
            model={"dropout": 0.1},
            data={"row_length": 128},
            optimizer={"learning_rate": 0.05},
            train={"steps": 6, "batch_tokens": 256, "steps_per_loop": 2, "checkpoint_every": 2}
            | {"evaluate_every": 4, "label_smoothing": 0.0, "average_checkpoints": 0},
            decode={"beam_size": 1, "max_length_ratio": 0.1, "max_length_offset": 2},
        )
        config = dataclasses.replace(config, task=dataset.task)
        hardware = Hardware(1, "float32")
        return assemble(
            config, dataset, str(directory), one_device, "float32", False, hardware, pictures=False
        )

    return make


def _lines(directory, split: str) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def _kill(step: int):
    raise KeyboardInterrupt


def test_killed_and_resumed_equals_undisturbed(start, dataset, tmp_path, capsys):
    """Bit for bit. The run ends with its scores on the test split, which evaluate gives again."""
    whole = start(tmp_path / "whole")
    assert loop.train(whole) == 0
    killed = start(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(killed.validation, "evaluate", _kill)
        loop.train(killed)
    resumed = start(tmp_path / "killed")
    assert resumed.checkpoints.step == 2 and loop.train(resumed) == 0
    for ours, theirs in zip(_weights(resumed), _weights(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for split in ("train", "valid"):
        both = [_lines(tmp_path / name, split)[-1]["loss"] for name in ("whole", "killed")]
        assert both[0] == both[1]
    task, folder = resumed.task, str(tmp_path / "killed")
    capsys.readouterr()
    parts = resumed.writer, resumed.strategy, resumed.stops, resumed.ledger
    assert finish.report(task, folder, dataset, *parts) == 0
    (line,) = _lines(tmp_path / "killed", "test")
    loaded = model_dir.load(folder, "best")
    metrics, scores = SplitScorer(loaded, dataset, "test", quick=False).score()
    assert {name: line[name] for name in metrics} == metrics
    assert {name: line[name] for name in scores.metrics} == dict(scores.metrics)
    output = capsys.readouterr().out
    assert scores.table in output and task.summary(metrics) in output
    assert len(scores.samples) > 1
    assert task.train_flops(dataset.splits["train"], 128) > 1000


def test_initial_weights_follow_from_the_seed_alone(start, tmp_path, monkeypatch):
    """Another thread may draw from Python's generator while the model is built."""
    expected = start(tmp_path / "first")
    kind = type(expected.task)
    build = kind.build_model

    def build_beside_others(task):
        random.random()
        return build(task)

    monkeypatch.setattr(kind, "build_model", build_beside_others)
    for ours, theirs in zip(_weights(start(tmp_path / "second")), _weights(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _weights(run: Run) -> list[np.ndarray]:
    return [variable.numpy() for variable in (*run.model.variables, *run.optimizer.variables)]
