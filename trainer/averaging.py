"""Average checkpoints of a run and score the result on the validation split."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from common.console import warn
from common.errors import UsageError
from data_pipeline.dataset.manifest import Manifest
from trainer.checkpoints import averages, files, saver
from trainer.checkpoints import model_dir as model_directory
from trainer.checkpoints.files import Checkpoint
from trainer.checkpoints.model_dir import LoadedModel
from trainer.split_scores import SplitScorer


def average(
    loaded: LoadedModel,
    model_dir: str,
    manifest: Manifest,
    checkpoints: Sequence[Checkpoint],
    decay: float = 1.0,
    between: Callable[[], Any] | None = None,
) -> Checkpoint:
    """Average checkpoints, score the result on the validation split as training does, and save it.

    There is one average for each newest checkpoint. Where that is better than this one, it stays,
    with a warning.

    Args:
        loaded: a model of the run; it has the averaged weights afterwards.
        model_dir: of the run.
        manifest: of the dataset.
        checkpoints: intact, by rising step.
        decay: see `averages.load_average`.
        between: called after every batch; what it raises ends the work.

    Returns:
        this average; its path is empty if it was not saved.
    """
    facts = loaded.facts.of_checkpoint()
    averages.load_average(loaded.model, checkpoints, facts, decay)
    metrics, scores = SplitScorer(loaded, manifest, "valid", quick=True).score(between)
    numbers = files.finite({**metrics, **scores.metrics})
    step, metric = checkpoints[-1].step, loaded.facts.config.train.best_metric
    made = Checkpoint("", step, time.time(), {}, numbers, False, facts)
    better = averages.as_good(model_dir, made, metric, loaded.task.BEST[metric])
    if better and better.metrics != numbers:
        found = f"{numbers[metric]:.4g}" if metric in numbers else "no finite number"
        warn(
            f"{better.path} has {metric} {better.metrics[metric]:.4g} and stays, because it is no "
            f"worse: this average has {found} and is not saved"
        )
        return made
    return better or averages.save_average(loaded.model, model_dir, step, numbers, facts)


def average_at_end(
    model_dir: str, manifest: Manifest, between: Callable[[], Any] | None = None
) -> str | None:
    """Average the last checkpoints of a finished run, if its configuration wants that.

    Returns:
        a line that says how good the average is beside the best checkpoint; None where there are
        not enough intact checkpoints, the average is there already, or, with a warning, it cannot
        be written.
    """
    facts = model_directory.read_facts(model_dir)
    train = facts.config.train
    directory = os.path.join(model_dir, "checkpoints")
    newest_first = files.without_extra(files.read_manifests(directory))[::-1]
    metric = train.best_metric
    if train.average_checkpoints < 2 or not newest_first or metric not in newest_first[0].metrics:
        return None
    if newest_first[0].step in files.steps(os.path.join(model_dir, saver.AVERAGED)):
        return None
    found = averages.intact(directory, newest_first, train.average_checkpoints)
    if len(found) < 2:
        return None
    loaded = model_directory.load(model_dir, "latest")
    higher = loaded.task.BEST[metric]
    best = files.ranked(files.read_manifests(directory), metric, higher)[0]
    try:
        averaged = average(loaded, model_dir, manifest, found, between=between)
    except UsageError as error:  # such as a full disk: the checkpoints can be tested all the same
        warn(f"no average of the last checkpoints: {error}")
        return None
    first = files.ranked([best, averaged], metric, higher)[0]
    return (
        f"average of the last {len(found)} checkpoints: {metric} {averaged.metrics[metric]:.4g} on "
        f"valid; best checkpoint, of step {best.step:,}: {best.metrics[metric]:.4g}; the model is "
        f"{'the average' if first is averaged else 'the best checkpoint'}"
    )
