"""Whole runs, small: learning, resuming, and what lands in the model directory."""

import json
import random

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from configs.schema import (
    Config,
    DataConfig,
    DecodeConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.job import prepare
from data_pipeline.settings import Settings
from trainer import loop
from trainer.checkpoints import model_dir
from trainer.decoding import scoring
from trainer.decoding.options import search_options
from trainer.decoding.search import Decoder
from trainer.metrics import flops
from trainer.run import Run, assemble

_WORDS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "jay", "kite", "mole", "owl"]


def _write_copy_corpus(folder, split: str, count: int) -> str:
    dice = random.Random(split)
    lines = [" ".join(dice.choices(_WORDS, k=dice.randint(2, 7))) for _ in range(count)]
    names = [folder / f"{split}.{side}.txt" for side in ("in", "out")]
    for name in names:
        name.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return "text:" + ",".join(str(name) for name in names)


@pytest.fixture(scope="module")
def copy_data(tmp_path_factory) -> Manifest:
    """A corpus in which the target is the source."""
    folder = tmp_path_factory.mktemp("copy")
    return prepare(
        Settings(
            train=(_write_copy_corpus(folder, "train", 4000),),
            valid=(_write_copy_corpus(folder, "valid", 60),),
            test=(_write_copy_corpus(folder, "test", 100),),
            source_lang="in",
            target_lang="out",
            output_dir=str(folder / "data"),
            vocab_size=290,
            num_shards=2,
            disable_filters=("identical",),
        )
    )


def _config(**train) -> Config:
    return Config(
        model=ModelConfig(
            width=64, feed_forward=128, heads=4, encoder_layers=1, decoder_layers=2, dropout=0.1
        ),
        data=DataConfig(row_length=32),
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=50, clip_norm=1.0),
        train=TrainConfig(
            **{
                "steps": 12,
                "batch_tokens": 512,
                "steps_per_loop": 4,
                "checkpoint_every": 4,
                "evaluate_every": 12,
                **train,
            }
        ),
        decode=DecodeConfig(beam_size=2, validation_sentences=20),
    )


def _run(config: Config, data: Manifest, directory) -> Run:
    strategy = tf.distribute.OneDeviceStrategy("/device:CPU:0")
    hardware = flops.Hardware(1, "float32")
    run = assemble(config, data, str(directory), strategy, "float32", False, hardware)
    assert loop.train(run) == 0
    return run


def _lines(directory, split: str) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def test_learns_to_copy(copy_data, tmp_path):
    config = _config(steps=400, evaluate_every=200, batch_tokens=1024)
    config.model.dropout = 0.0
    _run(config, copy_data, tmp_path)
    losses = [line["loss"] for line in _lines(tmp_path, "train")]
    assert losses[0] > 5 and losses[-1] < 1.2  # label smoothing keeps it from 0

    loaded = model_dir.load(str(tmp_path), "best")
    tokenizers = tuple(loaded.tokenizers.values())
    assert loaded.step in (200, 400)
    for beam_size in (1, 3):
        decoder = Decoder(loaded.model, search_options(loaded.facts.config.decode, beam_size))
        scores, rows = scoring.score_split(copy_data, "test", tokenizers, decoder)
        assert scores["bleu"] > 90
        assert sum(reference == translation for _, reference, translation in rows) > 80
    # Order and count, whatever the lines are; each as if it had been alone.
    lines = [rows[0][0], "", rows[1][0], "  ", " ".join(["ant"] * 500), rows[2][0]]
    found = scoring.translate_lines(lines, tokenizers, decoder)
    translations = [one.text for one in found]
    assert len(translations) == len(lines) and translations[4]
    expected = [rows[0][2], "", rows[1][2], "", rows[2][2]]
    assert translations[:4] + translations[5:] == expected


@pytest.mark.slow
def test_resumed_equals_uninterrupted(copy_data, tmp_path):
    """With dropout: same weights bit for bit, same losses, and nothing in the log twice."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    straight = _run(_config(steps=12), copy_data, whole)
    _run(_config(steps=8), copy_data, halves)
    resumed = _run(_config(steps=12), copy_data, halves)
    for a, b in zip(straight.model.weights, resumed.model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    for a, b in zip(straight.optimizer.variables, resumed.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    steps = [line["step"] for line in _lines(halves, "train")]
    assert steps == sorted(set(steps)) and steps[-1] == 12
    last = [_lines(directory, "valid")[-1] for directory in (whole, halves)]
    assert last[0]["loss"] == last[1]["loss"] and last[0]["step"] == 12


@pytest.mark.slow
def test_bucketed_run_goes_on_where_it_stopped(copy_data, tmp_path):
    def config(steps):
        made = _config(steps=steps)
        made.data = DataConfig(batching="bucketed", buckets=(8, 16, 32))
        return made

    straight = _run(config(8), copy_data, tmp_path / "whole")
    _run(config(4), copy_data, tmp_path / "halves")
    resumed = _run(config(8), copy_data, tmp_path / "halves")
    for a, b in zip(straight.model.weights, resumed.model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_model_directory_holds_what_the_contract_says(copy_data, tmp_path):
    _run(_config(), copy_data, tmp_path)
    for name in ("config.json", "tokenizer.model", "checkpoints/ckpt-12.json", "metrics.jsonl"):
        assert (tmp_path / name).is_file()
    assert list((tmp_path / "tensorboard" / "train").glob("events.*"))
    assert list((tmp_path / "tensorboard" / "valid").glob("events.*"))
    assert len((tmp_path / "translations" / "valid-12.txt").read_text().splitlines()) == 20
    train, valid = _lines(tmp_path, "train")[-1], _lines(tmp_path, "valid")[-1]
    assert {"loss", "nll", "perplexity", "token_accuracy", "learning_rate", "grad_norm"} <= set(
        train
    )
    assert train["target_tokens_per_second"] > 0 and 0.8 < train["fill_rate"] <= 1
    assert {"loss", "token_accuracy", "bleu", "chrf"} <= set(valid)


def test_early_stopping_ends_the_run(copy_data, tmp_path):
    """A learning rate of almost nothing cannot improve: the first evaluation stays the best."""
    config = _config(steps=40, evaluate_every=4, early_stopping_patience=2, best_metric="loss")
    config.optimizer.learning_rate = 1e-12
    run = _run(config, copy_data, tmp_path)
    assert run.checkpoints.step < 40
    # Stopped stays stopped when the same command is started again.
    again = _run(config, copy_data, tmp_path)
    assert again.checkpoints.step == run.checkpoints.step


def test_another_vocabulary_is_refused(copy_data, tmp_path):
    _run(_config(steps=1), copy_data, tmp_path / "model")
    folder = tmp_path / "corpus"
    folder.mkdir()
    other = prepare(
        Settings(
            train=(_write_copy_corpus(folder, "train", 500),),
            valid=(_write_copy_corpus(folder, "valid", 10),),
            test=(),
            source_lang="in",
            target_lang="out",
            output_dir=str(folder / "data"),
            vocab_size=285,
            disable_filters=("identical",),
        )
    )
    with pytest.raises(UsageError, match=r"another source vocabulary.*290.*285"):
        _run(_config(steps=2), other, tmp_path / "model")
