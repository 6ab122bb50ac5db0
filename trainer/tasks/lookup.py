"""The tasks by the names that `config.task` gives them."""

import dataclasses

from common.errors import UsageError
from configs.schema import Config, flat
from data_pipeline.dataset.manifest import SEQUENCES
from trainer.tasks.base import DataFacts, Task
from trainer.tasks.classification import Classification
from trainer.tasks.language_model import LanguageModel
from trainer.tasks.translation import Translation

TASKS: dict[str, type[Task]] = {
    "translation": Translation,
    "language_model": LanguageModel,
    "classification": Classification,
}

_OF_SOME_TASKS = {
    "train.rdrop_alpha": ("translation",),
    "train.simcut_alpha": ("translation",),
    "train.class_weights": ("classification",),
    "train.loss_chunk_tokens": ("translation", "language_model"),
    "data.attend_across_documents": ("language_model",),
}


def task_class(name: str) -> type[Task]:
    """Return the class of a task.

    Raises:
        UsageError: there is no such task.
    """
    if name not in TASKS:
        raise UsageError(f"--config.task is {name!r}, but must be one of {', '.join(TASKS)}")
    return TASKS[name]


def make_task(config: Config, data: DataFacts) -> Task:
    """Return the task of a configuration, for a dataset.

    Raises:
        UsageError: there is no such task, or the dataset is not for it.
    """
    task = task_class(config.task)
    if data.task != task.DATASET:
        raise UsageError(
            f"--config.task={config.task} learns from a dataset of the task {task.DATASET}, and "
            f"this one is for {data.task}; use a configuration for it, or make another dataset "
            f"with data_pipeline.main --task={task.DATASET}"
        )
    return task.from_data(config, data)


def make_task_without_data(config: Config, vocab_size: int) -> Task:
    """Return the task of a configuration, as a dataset with this one vocabulary would give it.

    A classifier has two classes.

    Raises:
        UsageError: there is no such task.
    """
    dataset = task_class(config.task).DATASET
    labels = ("0", "1") if dataset == "classification" else ()
    sizes = dict.fromkeys(SEQUENCES[dataset], vocab_size)
    return make_task(config, DataFacts(dataset, sizes, True, labels))


def resolve(config: Config) -> Config:
    """Return the configuration with the task's own choices for what it leaves open.

    Raises:
        UsageError: there is no such task, or it has no such metric or setting.
    """
    best = task_class(config.task).BEST
    given, defaults = flat(config), flat(Config())
    for name, tasks in _OF_SOME_TASKS.items():
        if given[name] != defaults[name] and config.task not in tasks:
            raise UsageError(
                f"--config.{name} is for --config.task={' or '.join(tasks)}, and the task is "
                f"{config.task}; leave it out"
            )
    metric = config.train.best_metric or next(iter(best))
    if metric not in best:
        raise UsageError(
            f"--config.train.best_metric is {metric!r}, but must be one of {', '.join(best)}"
        )
    return dataclasses.replace(config, train=dataclasses.replace(config.train, best_metric=metric))
