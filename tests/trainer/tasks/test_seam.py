"""A task that the engine has never seen trains through all of it: packing, replicas, micro-batches,
checkpoints and validation. Everything that it takes is in this file."""

import dataclasses
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from configs.schema import Config, PrepareConfig
from data_pipeline import job
from data_pipeline.dataset import packing
from data_pipeline.dataset.examples import describe_file, raw_text_name, shard_name, write_examples
from data_pipeline.dataset.manifest import (
    Manifest,
    SequenceInfo,
    SplitInfo,
    TokenizerInfo,
    length_histogram,
    load_manifest,
)
from data_pipeline.dataset.tokenizer import JOINT_FILE, Tokenizer, train
from trainer import dataset, finish, loop
from trainer.checkpoints import model_dir
from trainer.metrics.flops import Hardware
from trainer.run import Run, assemble
from trainer.tasks import lookup
from trainer.tasks.base import Scores, Task

_LABELS = ("few", "many")  # words in a line


class CountWords(keras.Model):
    """Guesses a class from the mean of the embeddings of the tokens of an example."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.weights_of_tokens = self.add_weight(
            shape=(vocab_size, len(_LABELS)), initializer="glorot_uniform", name="tokens"
        )
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.built = True

    def call(self, tokens, same):
        """Return float32 logits [rows, tokens, classes]: of each token, its example's."""
        found = tf.gather(self.weights_of_tokens.value, tokens)  # [rows, tokens, classes]
        return self.scale * tf.einsum("rts,rsc->rtc", same, found)


class WordCount(Task):
    """Whether a line has few words or many."""

    DATASET = "classification"
    FEATURES = packing.features(("text",), labelled=True)
    SUMS = ("loss", "correct", "examples", "tokens")
    DIVISOR = "examples"
    EXAMPLES = "lines"
    UNIT = "token"
    RATES = {"tokens_per_second": "tokens"}  # noqa: RUF012
    BEST = {"error_rate": False, "certainty": True}  # noqa: RUF012
    SCORES = ("certainty",)
    OUTPUTS = "guesses"

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    @classmethod
    def from_data(cls, config, data):
        assert data.labels == _LABELS
        return cls(data.vocab_sizes["text"])

    def build_model(self):
        return CountWords(self.vocab_size)

    def sums(self, model, batch, rng, *, training):
        del training
        segments, labels = batch["text_segments"], batch["labels"]
        same = (segments[:, :, tf.newaxis] == segments[:, tf.newaxis]) & (
            segments[:, tf.newaxis] > 0
        )
        logits = model(batch["text"], tf.cast(same, tf.float32))
        if rng is not None:  # noise in the place of dropout: a resumed run must draw the same
            logits += 0.01 * tf.random.stateless_normal(tf.shape(logits), rng)
        first = tf.cast(labels > 0, tf.float32)  # [rows, tokens], 1 at an example's first token
        classes = tf.maximum(labels - 1, 0)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits)
        right = tf.cast(tf.argmax(logits, -1, tf.int32) == classes, tf.float32)
        return {
            "loss": tf.reduce_sum(losses * first),
            "correct": tf.reduce_sum(right * first),
            "examples": tf.reduce_sum(first),
            "tokens": tf.reduce_sum(tf.cast(segments > 0, tf.float32)),
        }

    def metrics(self, sums, split):
        del split
        examples = max(sums["examples"], 1.0)
        return {"loss": sums["loss"] / examples, "error_rate": 1 - sums["correct"] / examples}

    def progress(self, metrics):
        return f"loss {metrics['loss']:.3f}"

    def summary(self, metrics):
        return f"errors {metrics['error_rate']:.2f}"

    def scorer(self, model, manifest, split, tokenizers, *, quick, strategy):
        assert set(tokenizers) == {"text"} and quick == (split == "valid")

        def score(between):
            certainty = float(model.scale.numpy())
            return Scores({"certainty": certainty}, "certain", "of it", ["a"], [{"line": "b"}])

        return score

    def train_flops(self, split, longest_row):
        return 2.0 * len(_LABELS)

    def usage(self, python, model_dir):
        return "count the words yourself"


@pytest.fixture(scope="module")
def lines_and_labels(tmp_path_factory) -> Manifest:
    """A dataset for classification: 48 lines to train on and 12 for each other split."""
    directory = tmp_path_factory.mktemp("lines")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["red", "dog", "cat"], n)) for n in rng.integers(1, 7, 72)]
    model = train(texts, vocab_size=270)
    (directory / JOINT_FILE).write_bytes(model)
    tokenizer, splits = Tokenizer(model), {}
    for name, part in (("train", texts[:48]), ("valid", texts[48:60]), ("test", texts[60:])):
        ids, labels = tokenizer.encode(part), [int(text.count(" ") > 2) for text in part]
        shard, raw = directory / shard_name(name, 0, 1), []
        write_examples(str(shard), {"text": [one.encode() for one in part]}, {"text": ids}, labels)
        for kind, lines in (("text", part), ("label", [_LABELS[label] for label in labels])):
            path = directory / raw_text_name(name, kind)
            path.write_text("".join(f"{line}\n" for line in lines))
            raw.append(describe_file(str(path), path.name, len(part)))
        counts = SequenceInfo.of_histogram(length_histogram(map(len, ids)))
        splits[name] = SplitInfo(
            (describe_file(str(shard), shard.name, len(part)),),
            len(part),
            len(part),
            {},
            {"text": counts},
            () if name == "train" else tuple(raw),
        )
    info = TokenizerInfo(JOINT_FILE, tokenizer.sha256, tokenizer.vocab_size, "unigram")
    Manifest(
        str(directory), "classification", {"text": "en"}, {"text": info}, splits, _LABELS
    ).save()
    return load_manifest(str(directory))


@pytest.fixture
def start(lines_and_labels, tiny_config, monkeypatch):
    """Return a function that assembles a run of the new task."""
    monkeypatch.setitem(lookup.TASKS, "word_count", WordCount)

    def make(directory, strategy, **train) -> Run:
        config = tiny_config(
            data={"row_length": 32},
            optimizer={"learning_rate": 0.05},
            train={
                **{"steps": 6, "batch_tokens": 128, "steps_per_loop": 2, "checkpoint_every": 2},
                **{"evaluate_every": 4, "label_smoothing": 0.0, **train},
            },
        )
        config = dataclasses.replace(config, task="word_count")
        hardware = Hardware(strategy.num_replicas_in_sync, "float32")
        return assemble(
            config, lines_and_labels, str(directory), strategy, "float32", False, hardware
        )

    return make


def _weights(run: Run) -> list[np.ndarray]:
    return [variable.numpy() for variable in (*run.model.variables, *run.optimizer.variables)]


def _lines(directory, split: str) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def test_a_new_task_trains(start, two_replicas, lines_and_labels, tmp_path, capsys, monkeypatch):
    """On packed rows, two replicas, two micro-batches; it names its metrics and what is best.

    Its model has neither stacks of attention nor a table of embeddings: there are no such pictures.
    """
    monkeypatch.setattr("trainer.metrics.gallery.LARGEST_SHARE", 1e9)
    train = {"steps": 40, "micro_batches": 2, "evaluate_every": 20, "average_checkpoints": 0}
    run = start(tmp_path, two_replicas, **train)
    assert loop.train(run) == 0
    lines = _lines(tmp_path, "train")
    assert lines[0]["loss"] == pytest.approx(np.log(2), abs=0.5)
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"] and lines[-1]["tokens_per_second"] > 0
    valid = _lines(tmp_path, "valid")
    assert [line["step"] for line in valid] == [20, 40]
    assert {"loss", "error_rate", "certainty"} <= set(valid[-1])
    best = model_dir.load(str(tmp_path), "best")
    assert best.step == min(valid, key=lambda line: (line["error_rate"], line["loss"]))["step"]
    assert isinstance(best.task, WordCount) and best.facts.config.train.best_metric == "error_rate"
    assert (tmp_path / "guesses" / "valid-40.txt").read_text() == "a\n"
    capsys.readouterr()
    code = finish.report(
        run.task, str(tmp_path), lines_and_labels, run.writer, run.strategy, run.stops, run.ledger
    )
    assert code == 0 and _lines(tmp_path, "test")[0]["certainty"] == float(best.model.scale.numpy())
    output = capsys.readouterr().out
    assert re.search(r"test  errors 0\.\d\d  certain  of it\n", output)
    assert "count the words yourself" in output


def test_any_number_of_replicas_and_micro_batches(start, one_device, two_replicas, tmp_path):
    """The same loss per example and the same weights, though the examples are spread unevenly."""
    runs = {}
    for name, strategy, parts in (("one", one_device, 1), ("four parts", two_replicas, 2)):
        runs[name] = start(tmp_path / name, strategy, micro_batches=parts, evaluate_every=9)
        # Without noise: every replica and every part draws its own.
        runs[name].steps.task.sums = _quiet(runs[name].task)
        assert loop.train(runs[name]) == 0
    losses = [[line["loss"] for line in _lines(tmp_path / name, "train")] for name in runs]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    for ours, theirs in zip(*map(_weights, runs.values()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def _quiet(task):
    def sums(model, batch, rng, *, training):
        return WordCount.sums(task, model, batch, None, training=training)

    return sums


def test_its_own_text_becomes_a_dataset_of_its_kind(tmp_path, monkeypatch):
    """Which has another name than the task."""
    monkeypatch.setitem(lookup.TASKS, "word_count", WordCount)
    asked: list[job.Settings] = []
    monkeypatch.setattr(job, "prepare", asked.append)
    own = PrepareConfig(train="builtin:train")
    dataset.prepare_own_text(Config(task="word_count", prepare=own), str(tmp_path))
    assert [(one.task, one.output_dir) for one in asked] == [("classification", str(tmp_path))]


def test_killed_and_resumed_equals_undisturbed(start, two_replicas, tmp_path):
    """Bit for bit: weights, optimizer, metrics and what is the best so far."""
    whole = start(tmp_path / "whole", two_replicas, micro_batches=2)
    assert loop.train(whole) == 0
    killed = start(tmp_path / "killed", two_replicas, micro_batches=2)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(killed.validation, "evaluate", _kill)
        loop.train(killed)
    resumed = start(tmp_path / "killed", two_replicas, micro_batches=2)
    assert resumed.checkpoints.step == 2
    assert loop.train(resumed) == 0
    for ours, theirs in zip(_weights(resumed), _weights(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for split in ("train", "valid"):
        both = [_lines(tmp_path / name, split) for name in ("whole", "killed")]
        last = [[line["loss"] for line in lines][-1] for lines in both]
        assert last[0] == last[1]
    assert float(resumed.checkpoints.state.best.numpy()) == float(
        whole.checkpoints.state.best.numpy()
    )


def _kill(step: int):
    raise KeyboardInterrupt
