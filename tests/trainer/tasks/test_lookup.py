"""config.task and what follows from it."""

import dataclasses

import pytest

from common.errors import UsageError
from trainer.checkpoints import model_dir
from trainer.tasks import lookup
from trainer.tasks.translation import Translation


def test_the_task_of_a_run(manifest, tiny_config):
    """Its best metric is the task's own, unless the configuration names another."""
    facts = model_dir.facts_of(tiny_config(), manifest, "float32")
    assert isinstance(facts.task(), Translation)
    assert facts.config.train.best_metric == "bleu"
    config = lookup.resolve(tiny_config(train={"best_metric": "loss"}))
    assert config.train.best_metric == "loss"


def test_a_metric_that_the_task_does_not_have(tiny_config):
    message = (
        "--config.train.best_metric is 'ter', but must be one of bleu, chrf, token_accuracy, "
        "loss, nll, perplexity"
    )
    with pytest.raises(UsageError, match=message):
        lookup.resolve(tiny_config(train={"best_metric": "ter"}))


@pytest.mark.parametrize(
    ("task", "group", "setting", "value"),
    [
        ("language_model", "train", "rdrop_alpha", 5.0),
        ("classification", "train", "simcut_alpha", 3.0),
        ("translation", "train", "class_weights", "balanced"),
        ("classification", "data", "attend_across_documents", True),
        ("classification", "train", "loss_chunk_tokens", 64),
    ],
)
def test_a_setting_of_another_task(tiny_config, task, group, setting, value):
    """It would be ignored without a word."""
    config = dataclasses.replace(tiny_config(**{group: {setting: value}}), task=task)
    message = rf"--config\.{group}\.{setting} is for --config\.task=[\w ]+, and the task is {task};"
    with pytest.raises(UsageError, match=message):
        lookup.resolve(config)
    for owner in lookup._OF_SOME_TASKS[f"{group}.{setting}"]:
        lookup.resolve(dataclasses.replace(config, task=owner))


def test_a_task_that_does_not_exist(tiny_config):
    config = dataclasses.replace(tiny_config(), task="juggling")
    with pytest.raises(UsageError, match=r"--config\.task is 'juggling', but must be one of trans"):
        lookup.resolve(config)


def test_a_dataset_for_another_task(manifest, tiny_config):
    facts = model_dir.facts_of(tiny_config(), manifest, "float32")
    other = dataclasses.replace(facts, data_task="language_model")
    with pytest.raises(UsageError, match="this one is for language_model; use a configuration"):
        other.task()
