"""The model directory: what a run is, and what may not change when it goes on."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from data_pipeline.dataset import tokenizer as tokenizers
from data_pipeline.dataset.tokenizer import load_tokenizer
from trainer.checkpoints import model_dir
from trainer.checkpoints.files import Keep
from trainer.checkpoints.saver import Checkpoints, find, restore_model
from trainer.optim.loss_scale import LossScale
from trainer.optim.optimizer import Optimizer


@pytest.fixture
def facts(manifest, tiny_config):
    return model_dir.facts_of(tiny_config(), manifest, "float32")


def test_facts_round_trip(tmp_path, facts, manifest):
    """config.json says the same when it is read again; the tokenizer is a copy."""
    directory = tmp_path / "new" / "model"
    model_dir.start(str(directory), facts, manifest)
    assert model_dir.read_facts(str(directory)) == facts
    assert facts.tokenizers["target"].vocab_size == 280
    assert facts.languages == {"source": "en", "target": "de"}
    assert facts.data_fingerprint == manifest.fingerprint and facts.bos_id == 2
    tokenizer = load_tokenizer(str(directory / "tokenizer.model"))
    assert (
        tokenizer.sha256 == facts.tokenizers["source"].sha256 == facts.tokenizers["target"].sha256
    )
    assert sorted(p.name for p in directory.iterdir()) == ["config.json", "tokenizer.model"]


def changed(facts, group: str, **fields):
    """The facts with fields of one group of the configuration replaced."""
    section = dataclasses.replace(getattr(facts.config, group), **fields)
    return dataclasses.replace(facts, config=dataclasses.replace(facts.config, **{group: section}))


@pytest.mark.parametrize(
    ("group", "fields"),
    [
        ("train", {"steps": 999}),
        ("train", {"steps_per_loop": 3, "checkpoint_every": 7, "evaluate_every": 9}),
        ("train", {"keep_checkpoints": 2, "early_stopping_patience": 4}),
        ("train", {"keep_best": 2, "keep_every_hours": 0.5}),
        ("decode", {"beam_size": 8, "length_penalty": 1.0}),
        ("model", {"attention_block": 32}),
    ],
)
def test_what_may_change(tmp_path, facts, manifest, group, fields):
    """And config.json then says the new value; the checkpoints are of the same run."""
    model_dir.start(str(tmp_path), facts, manifest)
    new = changed(facts, group, **fields)
    model_dir.start(str(tmp_path), new, manifest)
    assert model_dir.read_facts(str(tmp_path)) == new
    assert new.of_checkpoint() == facts.of_checkpoint()


@pytest.mark.parametrize(
    ("group", "fields", "message"),
    [
        ("model", {"width": 32}, "model.width 16 -> 32"),
        ("model", {"norm": "pre"}, "model.norm 'post' -> 'pre'"),
        ("data", {"buckets": (4, 8)}, r"data.buckets (16, 32, 64, 128, 256) -> (4, 8)"),
        ("optimizer", {"learning_rate": 0.5}, "optimizer.learning_rate 0.01 -> 0.5"),
        ("train", {"steps": 9, "seed": 2}, "train.seed 1 -> 2"),
        ("train", {"batch_tokens": 8, "seed": 2}, "train.batch_tokens 64 -> 8; train.seed 1 -> 2"),
        ("train", {"label_smoothing": 0.2}, "train.label_smoothing 0.1 -> 0.2"),
        ("train", {"rdrop_alpha": 5.0}, "train.rdrop_alpha 0.0 -> 5.0"),
        ("optimizer", {"name": "adamw"}, "optimizer.name 'adam' -> 'adamw'"),
        ("optimizer", {"ema_decay": 0.5}, "optimizer.ema_decay 0.0 -> 0.5"),
    ],
)
def test_what_may_not_change(tmp_path, facts, manifest, group, fields, message):
    """The message spells the difference out, and nothing is overwritten."""
    model_dir.start(str(tmp_path), facts, manifest)
    with pytest.raises(UsageError) as error:
        model_dir.start(str(tmp_path), changed(facts, group, **fields), manifest)
    settings = f"holds a run with other settings: {message}; use another --model_dir"
    assert settings in str(error.value)
    assert model_dir.read_facts(str(tmp_path)) == facts


def test_another_precision(tmp_path, facts, manifest):
    model_dir.start(str(tmp_path), facts, manifest)
    new = dataclasses.replace(facts, precision="mixed_bfloat16")
    with pytest.raises(UsageError, match="precision float32 -> mixed_bfloat16"):
        model_dir.start(str(tmp_path), new, manifest)


@pytest.mark.parametrize("side", ["source", "target"])
def test_another_vocabulary(tmp_path, facts, manifest, side):
    model_dir.start(str(tmp_path), facts, manifest)
    other = dataclasses.replace(facts.tokenizers[side], sha256="ab" * 32, vocab_size=500)
    new = dataclasses.replace(facts, tokenizers={**facts.tokenizers, side: other})
    with pytest.raises(UsageError) as error:
        model_dir.start(str(tmp_path), new, manifest)
    message = str(error.value)
    assert f"was trained with another {side} vocabulary (280 pieces, sha256 " in message
    old, new_data = facts.tokenizers["source"].sha256[:12], facts.data_dir
    assert f"{old}) than {new_data} has (500, abababababab)" in message


def test_other_data(tmp_path, facts, manifest):
    model_dir.start(str(tmp_path), facts, manifest)
    new = dataclasses.replace(facts, data_fingerprint="cd" * 32, data_dir="/elsewhere")
    with pytest.raises(UsageError) as error:
        model_dir.start(str(tmp_path), new, manifest)
    message = str(error.value)
    assert f"was trained on other data (fingerprint {facts.data_fingerprint[:12]}, from " in message
    assert "than /elsewhere (cdcdcdcdcdcd): the same settings, but other text; use" in message


def test_other_data_says_what_differs(tmp_path, facts, manifest):
    """Counts, inputs and settings, also those that only one of them has."""
    assert facts.data["train pairs"] == 40
    model_dir.start(str(tmp_path), facts, manifest)
    data = {**facts.data, "train pairs": 39, "row_length": 16}
    new = dataclasses.replace(facts, data_fingerprint="cd" * 32, data=data)
    with pytest.raises(UsageError, match=r"\): train pairs 40 -> 39, row_length None -> 16; use"):
        model_dir.start(str(tmp_path), new, manifest)


def test_the_same_data_elsewhere(tmp_path, facts, manifest):
    """A dataset may move: its fingerprint counts, not its place."""
    model_dir.start(str(tmp_path), facts, manifest)
    model_dir.start(str(tmp_path), dataclasses.replace(facts, data_dir="/elsewhere"), manifest)


def test_not_a_model_directory(tmp_path):
    with pytest.raises(UsageError, match="is not a model directory: it has no config"):
        model_dir.read_facts(str(tmp_path))


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: "{",
        lambda value: "[]",
        lambda value: json.dumps({**value, "colour": "red"}),
        lambda value: json.dumps({k: v for k, v in value.items() if k != "precision"}),
        lambda value: json.dumps({k: v for k, v in value.items() if k != "config"}),
        lambda value: json.dumps({**value, "config": {"model": {"shape": 3}}}),
        lambda value: json.dumps({**value, "config": {"model": {"width": "wide"}}}),
        lambda value: json.dumps({**value, "config": {"model": 3}}),
    ],
)
def test_a_config_file_that_cannot_be_used(tmp_path, facts, manifest, damage):
    """One line, with the file's name, whatever is wrong with it."""
    model_dir.start(str(tmp_path), facts, manifest)
    path = tmp_path / "config.json"
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(UsageError, match=r"config.json cannot be used: .*; train into a new"):
        model_dir.read_facts(str(tmp_path))


def train(directory: str, facts, manifest):
    """A model directory with a checkpoint of step 5; returns the model and the optimizer."""
    model_dir.start(directory, facts, manifest)
    model = facts.task().build_model()
    optimizer = Optimizer(facts.config.optimizer, 10, model.trainable_variables)
    optimizer.iterations.assign(5)
    for average in optimizer.averages:
        average.assign_add(np.ones(average.shape))
    facts_of = facts.of_checkpoint()
    checkpoints = Checkpoints(directory, model, optimizer, LossScale(False), Keep(), facts_of)
    checkpoints.save({"bleu": 1.0})
    checkpoints.wait()
    return model, optimizer


@pytest.fixture
def trained(tmp_path, facts, manifest):
    """A model directory with a checkpoint of step 5, and its model."""
    return str(tmp_path), train(str(tmp_path), facts, manifest)[0]


def test_load(trained, facts):
    """The same weights, and the tokenizer they were trained with."""
    directory, model = trained
    loaded = model_dir.load(directory, "best")
    tokenizer, target = loaded.tokenizers.values()
    assert loaded.step == 5 and loaded.facts == facts and target is tokenizer
    assert tokenizer.decode(tokenizer.encode(["red dog"])) == ["red dog"]
    for one, other in zip(model.variables, loaded.model.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_load_takes_the_moving_average(tmp_path, facts, manifest):
    """Where the run kept one; it stands one above the weights here."""
    facts = changed(facts, "optimizer", ema_decay=0.9)
    model, optimizer = train(str(tmp_path), facts, manifest)
    for which in ("best", "latest"):
        loaded = model_dir.load(str(tmp_path), which)
        assert loaded.step == 5
        averages = [average.numpy() for average in optimizer.averages]
        for weight, average, variable in zip(
            model.trainable_variables, averages, loaded.model.trainable_variables, strict=True
        ):
            np.testing.assert_array_equal(variable.numpy(), average)
            np.testing.assert_allclose(variable.numpy(), weight.numpy() + 1.0, rtol=1e-6)


def test_load_sets_the_precision_of_the_run(trained, facts, manifest):
    directory, _ = trained
    facts = dataclasses.replace(facts, precision="mixed_bfloat16")
    with open(f"{directory}/config.json", "w") as file:
        json.dump(dataclasses.asdict(facts), file)
    model_dir.load(directory, "latest")
    assert keras.config.dtype_policy().name == "mixed_bfloat16"


def test_load_with_another_tokenizer(trained):
    directory, _ = trained
    model = tokenizers.train(["a man sees a dog", "the cat"] * 9, vocab_size=273)
    with open(f"{directory}/tokenizer.model", "wb") as file:
        file.write(model)
    with pytest.raises(UsageError, match=r"tokenizer.model is not the one this model was trained"):
        model_dir.load(directory, "best")


def test_a_full_disk_at_the_start(tmp_path, facts, manifest, monkeypatch):
    def fail(path, content, alone):
        raise tf.errors.ResourceExhaustedError(None, None, f"{path}; No space left on device")

    monkeypatch.setattr(model_dir, "write_bytes", fail)
    with pytest.raises(UsageError, match=r"cannot be written: .*tokenizer.model; No space left"):
        model_dir.start(str(tmp_path), facts, manifest)


@pytest.mark.parametrize("name", ["buckets=[16,32]", "a\\b"])
def test_a_path_that_tensorflow_cannot_read(tmp_path, facts, manifest, name):
    """It is refused before anything is written."""
    directory = str(tmp_path / name)
    for call in (
        lambda: model_dir.start(directory, facts, manifest),
        lambda: model_dir.load(directory, "best"),
        lambda: find("", f"{directory}/checkpoints/ckpt-1"),
    ):
        with pytest.raises(UsageError, match="TensorFlow cannot read checkpoints from a path with"):
            call()
    assert not list(tmp_path.iterdir())


def weights(model) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.trainable_variables]


@pytest.mark.parametrize("which", ["directory", "checkpoint"])
def test_weights_of_another_run(tmp_path, facts, manifest, which):
    """The moving average, where there is one; what is not the model's shape may differ.

    Any character may stand in the path, but for those that TensorFlow takes for a pattern.
    """
    directory = tmp_path / "a]{1,2}*?%20 'ü'#"
    _, optimizer = train(str(directory), changed(facts, "optimizer", ema_decay=0.9), manifest)
    facts = changed(facts, "model", dropout=0.3, attention_dropout=0.1)
    facts = changed(facts, "train", seed=9)
    facts = dataclasses.replace(facts, data_fingerprint="cd" * 32)
    model = facts.task().build_model()
    source = directory if which == "directory" else directory / "checkpoints" / "ckpt-5"
    found = model_dir.find_weights(str(source), facts)
    restore_model(model, found, facts.of_checkpoint())
    assert found.path == str(directory / "checkpoints" / "ckpt-5") and found.averages
    for one, other in zip(weights(model), optimizer.averages, strict=True):
        np.testing.assert_array_equal(one, other.numpy())


def test_weights_of_another_model(trained, facts):
    """One line with the difference."""
    directory, _ = trained
    tokenizer = dataclasses.replace(facts.tokenizers["source"], sha256="ab" * 32)
    vocabulary = f"'280 pieces, sha256 {facts.tokenizers['source'].sha256[:12]}'"
    for new, message in (
        (changed(facts, "model", width=32, norm="pre"), "16 -> 32; model.norm 'post' -> 'pre'"),
        (
            dataclasses.replace(facts, tokenizers=dict.fromkeys(facts.tokenizers, tokenizer)),
            f"source vocabulary {vocabulary} -> '280 pieces, sha256 abababababab'; "
            f"target vocabulary {vocabulary} -> '280 pieces, sha256 abababababab'",
        ),
    ):
        with pytest.raises(UsageError, match="another model: ") as error:
            model_dir.find_weights(directory, new)
        assert str(error.value).startswith(f"--init_from={directory}: ")
        assert str(error.value).endswith(message)


@pytest.mark.parametrize("source", ["nowhere", "nowhere/ckpt-3"])
def test_weights_of_nothing(tmp_path, facts, source):
    message = f"--init_from={source}: no checkpoint '{source}'.* give a model directory or a path"
    with pytest.raises(UsageError, match=message):
        model_dir.find_weights(source, facts)
