"""The end of a run: the scores of the test split, samples, and where to look next."""

import math
import os
import shlex
import sys
from contextlib import nullcontext

import tensorflow as tf

from common.errors import EXIT_STOPPED
from data_pipeline.dataset.manifest import Manifest
from trainer.agreement import Agreement
from trainer.averaging import average_at_end
from trainer.checkpoints import files, saver
from trainer.checkpoints import model_dir as model_directory
from trainer.checkpoints.files import Checkpoint
from trainer.distributed import cluster
from trainer.metrics.goodput import Ledger, summary
from trainer.metrics.writer import MetricsWriter
from trainer.reporting.page import score_text
from trainer.runtime.signals import StopAskedError
from trainer.split_scores import SplitScorer
from trainer.tasks.base import Task
from trainer.validation import show, show_details

_SAMPLES = 10


def report(
    task: Task,
    model_dir: str,
    manifest: Manifest,
    writer: MetricsWriter,
    strategy: tf.distribute.Strategy,
    stops: Agreement,
    ledger: Ledger,
) -> int:
    """Score the best checkpoint on the test split and print samples.

    The chief does it, on all devices of a run of one process; the other workers wait, since
    TensorFlow considers a worker that leaves dead.

    Returns:
        The exit code: 0, or 42 when a worker was asked to stop meanwhile.
    """
    worker = cluster.worker_of(strategy)
    # Under a strategy of several workers, or of TPUs, a single process has no use for its scope.
    mirrored = isinstance(strategy, tf.distribute.MirroredStrategy)
    try:
        if worker.is_chief:
            with ledger.during("evaluation"), strategy.scope() if mirrored else nullcontext():
                averaged = average_at_end(model_dir, manifest, stops.poll)
                if averaged:
                    print(averaged, flush=True)
                if "test" in manifest.splits:
                    _test(task, model_dir, manifest, writer, stops)
            writer.flush()
            metric = model_directory.read_facts(model_dir).config.train.best_metric
            # By the manifests alone: reading all weights once more would check what was just used.
            folders = (os.path.join(model_dir, name) for name in ("checkpoints", saver.AVERAGED))
            found = [one for folder in folders for one in files.read_manifests(folder)]
            for best in files.ranked(found, metric, task.BEST[metric])[:1]:
                print(f"best  {_scores(task, best, model_dir)}")
            cores = cluster.hosts_of(strategy) * (os.cpu_count() or 1)
            print(f"time  {summary(ledger.spent(), cores)}")
            _say_where_to_look(task, model_dir)
        stops.poll_for_chief()
    except StopAskedError:
        if worker.is_chief:
            print(
                f"{stops.reason}: the model is saved but not tested; start again to test it",
                flush=True,
            )
        return EXIT_STOPPED
    return 0


def _test(
    task: Task, model_dir: str, manifest: Manifest, writer: MetricsWriter, stops: Agreement
) -> None:
    loaded = model_directory.load(model_dir, "best")
    print(f"testing the best model, of step {loaded.step:,} ...", flush=True)
    metrics, scores = SplitScorer(loaded, manifest, "test", quick=False).score(stops.poll)
    writer.write("test", loaded.step, {**metrics, **scores.metrics})
    show_details(writer, "test", loaded.step, scores)
    for sample in scores.samples[:: max(1, len(scores.samples) // _SAMPLES)][:_SAMPLES]:
        print("\n" + "\n".join(show(sample, indent=2)))
    if scores.table:
        print(f"\n{scores.table}")
    parts = (task.summary(metrics), scores.summary, scores.details)
    print(f"\ntest  {'  '.join(filter(None, parts))}")


def _scores(task: Task, best: Checkpoint, model_dir: str) -> str:
    """Return the evaluation of a checkpoint, or of an average of some, in a few words."""
    # A manifest holds only what is finite.
    found = {**dict.fromkeys(task.BEST, math.nan), **best.metrics}
    scores = (
        f"{name} {score_text(name, found[name])}" for name in task.SCORES if name in best.metrics
    )
    is_average = os.path.dirname(best.path) == os.path.join(model_dir, saver.AVERAGED)
    kind = "average up to step" if is_average else "step"
    parts = (task.summary(found), *scores, f"(validation, {kind} {best.step:,})")
    return "  ".join(dict.fromkeys(parts))


def _say_where_to_look(task: Task, model_dir: str) -> None:
    # As this process was started, so that the lines work without an activated environment.
    python = os.path.relpath(sys.executable)
    tensorboard = os.path.join(os.path.dirname(python), "tensorboard")
    quote = shlex.quote  # the lines are there to be copied into a shell
    print(
        f"\nmodel in {model_dir}\n"
        f"to see the curves:  {quote(tensorboard)} --logdir={quote(f'{model_dir}/tensorboard')}\n"
        f"{task.usage(quote(python), quote(model_dir))}",
        flush=True,
    )
