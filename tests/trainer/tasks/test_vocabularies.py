"""Whole runs with a vocabulary for each language: train, load, evaluate, translate."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from data_pipeline.dataset import tokenizer as tokenizers
from data_pipeline.dataset.tokenizer import load_tokenizer
from trainer import loop
from trainer.checkpoints import model_dir
from trainer.metrics.flops import Hardware
from trainer.run import Run, assemble
from trainer.split_scores import check_dataset
from trainer.tasks import flops

_ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config(
        model={"tied_embeddings": "target"},
        train={"steps": 6, "steps_per_loop": 3, "evaluate_every": 6},
        decode={"beam_size": 2},
    )


def run_of(config, manifest, directory) -> Run:
    strategy = tf.distribute.OneDeviceStrategy("/device:CPU:0")
    hardware = Hardware(1, "float32")
    return assemble(config, manifest, str(directory), strategy, "float32", False, hardware)


@pytest.fixture(scope="module")
def finished(config, manifest_of_two, tmp_path_factory) -> tuple[Run, Path]:
    """A run of 6 steps and its model directory."""
    directory = tmp_path_factory.mktemp("run") / "model"
    run = run_of(config, manifest_of_two, directory)
    assert loop.train(run) == 0
    return run, directory


@pytest.fixture
def trained(finished) -> Path:
    """The model directory."""
    return finished[1]


def command(module: str, *arguments, text: str = "") -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", module, *arguments]
    return subprocess.run(line, cwd=_ROOT, input=text, capture_output=True, text=True, timeout=300)


def test_the_model_directory_has_both_tokenizers(trained, manifest_of_two):
    facts = model_dir.read_facts(str(trained))
    assert not facts.joint_vocabulary
    assert facts.tokenizers["source"] == manifest_of_two.tokenizers["source"]
    assert facts.tokenizers["target"] == manifest_of_two.tokenizers["target"]
    for info, name, size in (
        (facts.tokenizers["source"], tokenizers.SOURCE_FILE, 288),
        (facts.tokenizers["target"], tokenizers.TARGET_FILE, 281),
    ):
        assert (info.file, info.vocab_size) == (name, size)
        assert load_tokenizer(str(trained / name)).sha256 == info.sha256
    assert not (trained / tokenizers.JOINT_FILE).exists()


def test_it_learns_and_tells_both_sizes(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert losses[0] == pytest.approx(math.log(281), rel=0.25) and losses[-1] < losses[0]
    (event,) = (trained / "tensorboard" / "train").glob("events.*.v2")
    assert b"vocabularies 288 source, 281 target" in event.read_bytes()


def test_the_softmax_counts_the_target_vocabulary(finished, config, manifest_of_two):
    train = manifest_of_two.splits["train"]
    wanted = flops.train_flops_of_split(config.model, 281, train, config.data.longest_row)
    assert finished[0].flops_per_unit == wanted


def test_load(finished):
    """Both embeddings come back, and with each the tokenizer of its language."""
    run, directory = finished
    loaded = model_dir.load(str(directory), "latest")
    source, target = loaded.tokenizers.values()
    assert (loaded.step, source.vocab_size, target.vocab_size) == (6, 288, 281)
    assert loaded.task.source_vocab_size == 288 and not loaded.task.joint
    assert len(loaded.model.weights) == len(run.model.weights)
    for one, other in zip(loaded.model.weights, run.model.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)


def test_evaluate_and_translate(trained, manifest_of_two):
    """The loss is that of the validation during training; translation needs only the model."""
    done = command("trainer.evaluate", f"--model_dir={trained}", "--split=valid")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    (valid,) = [line for line in lines if line["split"] == "valid"]
    assert result["loss"] == pytest.approx(valid["loss"], rel=1e-4)
    assert result["sentences"] == 8 and "bleu" in result
    done = command("trainer.translate", f"--model_dir={trained}", text="red dog\n\nold cat\n")
    assert done.returncode == 0, done.stderr
    translations = done.stdout.split("\n")
    assert len(translations) == 4 and translations[1] == translations[3] == ""


def test_a_line_that_was_cut_is_aligned_as_far_as_it_was_read(trained):
    flags = (f"--model_dir={trained}", "--json", "--alignments", "--beam_size=1")
    done = command("trainer.translate", *flags, text="red dog " * 700 + "\n")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["cut"] and value["alignment"]
    assert all(0 <= source < 1023 for source, _ in value["alignment"])


def test_evaluate_refuses_a_dataset_of_other_vocabularies(trained, manifest):
    done = command(
        "trainer.evaluate",
        f"--model_dir={trained}",
        f"--data_dir={manifest.directory}",
        "--split=valid",
    )
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and "another source vocabulary than" in line


def test_scores_need_a_dataset_of_the_models_task_and_labels(config, manifest_of_two):
    facts = model_dir.facts_of(config, manifest_of_two, "float32")
    check_dataset(manifest_of_two, facts)
    other_task = dataclasses.replace(facts, data_task="classification")
    with pytest.raises(UsageError, match="is a dataset for translation, and the model is for cla"):
        check_dataset(manifest_of_two, other_task)
    other_labels = dataclasses.replace(facts, labels=("bad", "good"))
    with pytest.raises(UsageError, match="and the model knows bad, good;"):
        check_dataset(manifest_of_two, other_labels)


def test_each_tokenizer_has_to_be_the_one_of_the_run(config, manifest_of_two, tmp_path):
    facts = model_dir.facts_of(config, manifest_of_two, "float32")
    model_dir.start(str(tmp_path), facts, manifest_of_two)
    source = (tmp_path / tokenizers.SOURCE_FILE).read_bytes()
    (tmp_path / tokenizers.TARGET_FILE).write_bytes(source)
    with pytest.raises(UsageError, match=r"tokenizer\.target\.model is not the one this model was"):
        model_dir.load(str(tmp_path), "best")


def test_sharing_all_embeddings_is_refused_before_anything_is_made(
    tiny_config, manifest_of_two, tmp_path
):
    with pytest.raises(UsageError, match="dataset has two vocabularies") as error:
        run_of(tiny_config(), manifest_of_two, tmp_path / "model")
    assert "\n" not in str(error.value) and not (tmp_path / "model").exists()
