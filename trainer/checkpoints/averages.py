"""The average of several checkpoints of a run, as one more checkpoint of the model.

It is written to MODEL_DIR/averaged, with the metrics of the validation split in its manifest.
`saver.find` takes it for the best checkpoint where these are the best.
"""

import contextlib
import os
import time
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from common.errors import UsageError
from common.files import storage_errors
from trainer.checkpoints import files, saver
from trainer.checkpoints.files import Checkpoint, Facts


def choose(
    model_dir: str, *, last: int = 0, best: int = 0, metric: str = "bleu", higher: bool = True
) -> list[Checkpoint]:
    """Return the newest or the best intact checkpoints of a run, in the order of their steps.

    Args:
        model_dir: written by trainer.main.
        last: take so many of the newest; 0 to take the best.
        best: take so many of the best by `metric`, of those that were evaluated.
        metric: of the validation split.
        higher: whether a higher value of it is better.

    Raises:
        UsageError: there are fewer than two.
    """
    directory = os.path.join(model_dir, "checkpoints")
    found = files.read_manifests(directory)
    ranked = files.without_extra(found)[::-1] if last else files.ranked(found, metric, higher)
    chosen = intact(directory, ranked, last or best)
    if len(chosen) < 2:
        raise UsageError(
            f"{model_dir} has {len(chosen)} checkpoint(s) to average and it takes two; keep more "
            "with --config.train.keep_checkpoints or keep_best"
        )
    return chosen


def intact(directory: str, ranked: Sequence[Checkpoint], count: int) -> list[Checkpoint]:
    """Return the first `count` intact ones of some checkpoints, by rising step.

    A warning names each damaged one among those before.
    """
    found: list[Checkpoint] = []
    order = [one.step for one in ranked]
    while order and len(found) < count:
        checkpoint, damaged = files.first_intact(directory, order)
        found += [checkpoint] if checkpoint else []
        order = order[len(damaged) + 1 :]
    return sorted(found, key=lambda one: one.step)


def load_average(
    model: keras.Model, checkpoints: Sequence[Checkpoint], facts: Facts, decay: float = 1.0
) -> None:
    """Set a model's weights to the weighted mean of those of the checkpoints.

    Args:
        model: built.
        checkpoints: intact, by rising step.
        facts: of the run.
        decay: the newest checkpoint has weight 1 and each one before `decay` times that of the
            one after it; 1 for the plain mean (Vaswani et al. 2017, section 6.1).
    """
    weights = np.array([decay**age for age in range(len(checkpoints))][::-1])
    weights /= weights.sum()
    total = [np.zeros(variable.shape, np.float64) for variable in model.weights]
    for checkpoint, weight in zip(checkpoints, weights, strict=True):
        saver.restore_model(model, checkpoint, facts)
        for place, variable in enumerate(model.weights):
            total[place] += weight * variable.numpy().astype(np.float64)
    for variable, value in zip(model.weights, total, strict=True):
        variable.assign(value)


def as_good(model_dir: str, average: Checkpoint, metric: str, higher: bool) -> Checkpoint | None:
    """Return the average of the same step that is there, if it is intact and no worse.

    Args:
        model_dir: of the run.
        average: the other one.
        metric: of the validation split.
        higher: whether a higher value of it is better.
    """
    directory = os.path.join(model_dir, saver.AVERAGED)
    order = [step for step in files.steps(directory) if step == average.step]
    there, _ = files.first_intact(directory, order)
    ranked = files.ranked([one for one in (there, average) if one], metric, higher)
    return there if ranked[:1] == [there] else None


def save_average(
    model: keras.Model, model_dir: str, step: int, metrics: dict[str, float], facts: Facts
) -> Checkpoint:
    """Write a model as the averaged checkpoint of a step, in place of another one of the step.

    Args:
        model: with the averaged weights.
        model_dir: of the run.
        step: of the newest checkpoint in the average.
        metrics: of the validation split.
        facts: of the run.

    Raises:
        UsageError: it cannot be written; nothing of it stays.
    """
    directory = os.path.join(model_dir, saver.AVERAGED)
    path = files.prefix(directory, step)
    try:
        with storage_errors(f"the average {path} cannot be written"):
            return _write(model, directory, step, metrics, facts)
    except UsageError:
        with contextlib.suppress(OSError, tf.errors.OpError):
            files.remove(directory, step)
        raise


def _write(
    model: keras.Model, directory: str, step: int, metrics: dict[str, float], facts: Facts
) -> Checkpoint:
    path = files.prefix(directory, step)
    tf.io.gfile.makedirs(directory)
    files.remove(directory, step)
    writer = tf.train.Checkpoint(model=model)
    writer.save_counter.assign(1)  # made at first use; `restore_model` looks for it
    writer.write(path)
    described = files.describe_files(directory, step)
    checkpoint = Checkpoint(path, step, time.time(), described, metrics, False, facts)
    files.write_manifest(checkpoint)
    return checkpoint
