"""Save a run so that it can go on as if nothing had happened."""

import itertools
import os
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras
import tensorflow as tf

from common.console import error_text, warn
from common.errors import UsageError
from common.files import passing_errors
from trainer.checkpoints import files
from trainer.checkpoints.files import Checkpoint, DamageError, Facts, Keep
from trainer.distributed import cluster
from trainer.optim.sharding import Sharded

AVERAGED = "averaged"
"""Folder of a model directory with averages of its checkpoints."""

_NOTHING, _REFUSED = -1, -2  # instead of a step


class RunState(tf.Module):
    """What a run must remember besides weights, optimizer slots and the step.

    Attributes:
        best: float64, the best value so far of `train.best_metric`, NaN before the first.
        best_step: int64, its step.
        best_loss: float64, the loss there; of equal values the one with the lower loss is better.
        evaluations_since_best: int64.
        evaluated_step: int64, of the last evaluation.
        data_offset: int64, the batches left out so far: step s, counted from 0, takes batch
            s + data_offset.
        seconds: float64, training time of all starts together.
    """

    def __init__(self):
        super().__init__()
        self.best = tf.Variable(float("nan"), dtype=tf.float64)
        self.best_step = tf.Variable(0, dtype=tf.int64)
        self.best_loss = tf.Variable(float("nan"), dtype=tf.float64)
        self.evaluations_since_best = tf.Variable(0, dtype=tf.int64)
        self.evaluated_step = tf.Variable(0, dtype=tf.int64)
        self.data_offset = tf.Variable(0, dtype=tf.int64)
        self.seconds = tf.Variable(0.0, dtype=tf.float64)


class _Copy:
    """A second set of variables, on the host, which can be written while training goes on.

    TensorFlow names what it writes by the attributes that lead to it. So the copy is a tree of
    plain modules with the same attributes, and what it writes can be restored into the original.

    Args:
        parts: what is saved, by name, as `tf.train.Checkpoint` takes it.
    """

    def __init__(self, parts: dict[str, Any]):
        self._pairs: list[tuple[Any, tf.Variable]] = []
        self._known: dict[int, Any] = {}
        # Outside the scope of any strategy: one copy, whatever the number of replicas.
        with tf.device("CPU:0"):
            copies = {name: self._copy(part) for name, part in parts.items()}
            self._checkpoint = tf.train.Checkpoint(**copies)
            self._checkpoint.save_counter.assign(1)  # made at first use; `restore` looks for it

    def _copy(self, node):
        if id(node) not in self._known:
            if isinstance(node, tf.Variable | keras.Variable | Sharded):
                copy = tf.Variable(tf.zeros(node.shape, node.dtype), trainable=False)
                self._pairs.append((node, copy))
            else:
                copy = tf.Module()
                for name, child in tf.train.TrackableView.children(node).items():
                    setattr(copy, name, self._copy(child))
            self._known[id(node)] = copy
        return self._known[id(node)]

    def take(self) -> None:
        """Copy the values that the variables have now."""
        with tf.device("CPU:0"):
            for variable, copy in self._pairs:
                copy.assign(variable.numpy())

    def write(self, path: str) -> None:
        """Write the values copied last, and read them back.

        TensorFlow computes a CRC-32C of every tensor before it leaves memory, and checks it when
        the tensor is read.
        """
        self._checkpoint.write(path)
        reader = tf.train.load_checkpoint(path)
        # In the file's order: on an object store every step back fetches 64 MB again.
        for name in sorted(reader.get_variable_to_shape_map()):
            reader.get_tensor(name)


class Checkpoints:
    """The checkpoints of a run.

    A separate thread writes them, one at a time, from a copy of the values.
    `trainer.checkpoints.files` says what a checkpoint is as files and when it counts. Random
    numbers and the position in the data need no saving: both are functions of the step.

    Args:
        model_dir: its "checkpoints" folder is used.
        model, optimizer, loss_scale: what is saved.
        keep: which checkpoints stay.
        facts: what the run depends on; it goes on only from a checkpoint with the same facts.

    Attributes:
        state: `RunState`, saved too.
        failure: why the last write failed, or None; up to date after `wait`.
    """

    def __init__(
        self, model_dir: str, model, optimizer, loss_scale, keep: Keep, facts: Facts | None = None
    ):
        self.state = RunState()
        self.failure: str | None = None
        self._directory = os.path.join(model_dir, "checkpoints")
        self._keep, self._facts = keep, facts or {}
        self._optimizer = optimizer
        self._parts = {
            "model": model,
            "optimizer": optimizer,
            "loss_scale": loss_scale,
            "state": self.state,
        }
        self._copy: _Copy | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future | None = None
        self._saved: tuple[int, bool] | None = None  # the step, and whether with metrics

    @property
    def newest(self) -> str | None:
        """Path prefix of the newest checkpoint, damaged or not; None if there is none."""
        found = files.steps(self._directory)
        return files.prefix(self._directory, found[-1]) if found else None

    @property
    def step(self) -> int:
        return int(self._optimizer.iterations.numpy())

    def restore(
        self, strategy: tf.distribute.Strategy | None = None, *, regular: bool = False
    ) -> int | None:
        """Go back to the newest intact checkpoint.

        Newer ones that are damaged cause a warning and are renamed to *.damaged. The chief decides,
        and all workers read the same checkpoint.

        Args:
            strategy: of this process; None if it is the only one.
            regular: pass over those that only a stop made, so that a rollback ends where that of
                a run without stops does.

        Returns:
            The step of the checkpoint, or None if there is no checkpoint.

        Raises:
            UsageError: there are checkpoints, but none of them is intact and of this run.
        """
        strategy = strategy or tf.distribute.get_strategy()
        step, refused = _NOTHING, None
        if cluster.worker_of(strategy).is_chief:
            try:
                step = self._choose(regular)
            except UsageError as error:
                step, refused = _REFUSED, error
        step = int(cluster.from_chief(strategy, [step])[0])
        if step == _REFUSED:
            raise refused or UsageError("worker 0 cannot go on from a checkpoint, and says why")
        if step == _NOTHING:
            return None
        path = files.prefix(self._directory, step)
        _read(tf.train.Checkpoint(**self._parts), path)
        if self.step != step:
            raise UsageError(f"checkpoint {path} holds step {self.step}; delete its files")
        self._saved = step, bool(files.read_manifest(self._directory, step).metrics)
        return step

    def _choose(self, regular: bool) -> int:
        found = files.steps(self._directory)
        if not found:
            files.check_remains(self._directory)
        for step in files.unfinished(self._directory):
            path = files.prefix(self._directory, step)
            warn(f"checkpoint {path} has no manifest: it was not finished; not used")
        if not found:
            return _NOTHING
        extra = {one.step for one in files.read_manifests(self._directory) if one.extra}
        order = [step for step in found if not (regular and step in extra)] or found
        checkpoint, damaged = files.first_intact(self._directory, order[::-1])
        if checkpoint is None:
            raise UsageError(
                f"all checkpoints in {self._directory} are damaged ({damaged[order[-1]]}); bring "
                "back a copy of an intact one, or delete the directory to start anew"
            )
        _check_facts(checkpoint, self._facts, ("model", "run"))
        for step in damaged:
            try:
                files.set_aside(self._directory, step)
            except tf.errors.OpError as error:
                warn(f"{files.prefix(self._directory, step)} stays: {error_text(error)}")
        return checkpoint.step

    def save(self, metrics: dict[str, Any] | None = None, *, extra: bool = False) -> None:
        """Begin to write a checkpoint, unless this step has one that holds as much.

        Return when the values are copied; the one before is finished by then. A write that fails
        costs a warning, and `failure` tells of it. But a run's first checkpoint is waited for: a
        run that cannot save must not train on.

        Args:
            metrics: of the evaluation at this step, if there was one.
            extra: whether only a stop asks for it; see `files.Checkpoint`.

        Raises:
            UsageError: when the first checkpoint cannot be written.
        """
        self.wait()
        step = self.step
        if self._saved in ((step, True), (step, bool(metrics))):
            return
        if self._copy is None:
            self._copy = _Copy(self._parts)
        self._copy.take()
        self._pending = self._thread.submit(
            self._write, self._copy, step, files.finite(metrics or {}), extra
        )
        if self._saved is None:
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written any more."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, copy: _Copy, step: int, metrics: dict[str, float], extra: bool) -> None:
        path = files.prefix(self._directory, step)
        try:
            tf.io.gfile.makedirs(self._directory)
            # An earlier start may have left one, if it was stopped before it evaluated this step.
            files.remove(self._directory, step)
            copy.write(path)
            described = files.describe_files(self._directory, step)
            averages = bool(self._optimizer.averages)
            contents = described, metrics, averages, self._facts, extra
            files.write_manifest(Checkpoint(path, step, time.time(), *contents))
        except (OSError, tf.errors.OpError, UsageError) as error:
            self.failure = f"checkpoint {path} could not be written: {error_text(error)}"
            self._tidy(files.remove, step)
            if self._saved is None and not isinstance(error, passing_errors()):
                raise UsageError(f"{self.failure}; fix that and start again") from error
            warn(f"{self.failure}; training goes on, and the next one is tried when it is due")
        else:
            self.failure, self._saved = None, (step, bool(metrics))
            self._tidy(files.clean, self._keep)

    def _tidy(self, work, argument) -> None:
        try:
            work(self._directory, argument)
        except (tf.errors.OpError, UsageError) as error:
            warn(f"old files in {self._directory} stay: {error_text(error)}")


def _read(checkpoint: tf.train.Checkpoint, path: str):
    """Restore everything that a checkpoint holds; `UsageError` if that fails."""
    try:
        return checkpoint.restore(path).assert_existing_objects_matched()
    except passing_errors():
        raise
    except (ValueError, IndexError, AssertionError, tf.errors.OpError) as error:
        raise UsageError(f"checkpoint {path} cannot be read into this model: {error}") from error


def _check_facts(checkpoint: Checkpoint, facts: Facts, parts: tuple[str, ...]) -> None:
    """Raise `UsageError` that names what differs in these parts of the facts."""
    changed = [
        files.differences(checkpoint.facts.get(part, {}), facts.get(part, {})) for part in parts
    ]
    if any(changed):
        raise UsageError(
            f"checkpoint {checkpoint.path} is of another {'model' if changed[0] else 'run'}: "
            f"{'; '.join(filter(None, changed))}"
        )


def find(model_dir: str, which: str, metric: str = "bleu", higher: bool = True) -> Checkpoint:
    """Return an intact checkpoint.

    Where the best or the latest is damaged, a warning says so, and the next best or the one before
    is taken instead.

    Args:
        model_dir: written by trainer.main.
        which: "best", "latest", or the path of a checkpoint.
        metric: what makes a checkpoint the best.
        higher: whether a higher value of it is better.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    if which not in ("best", "latest"):
        return find_path(which)
    directory = os.path.join(model_dir, "checkpoints")
    order = files.steps(directory)[::-1]
    if which == "best":
        best = files.ranked(files.read_manifests(directory), metric, higher)
        averaged = _better_average(os.path.join(model_dir, AVERAGED), best[:1], metric, higher)
        if averaged:
            return averaged
        order = list(dict.fromkeys([one.step for one in best] + order))
    if not order:
        raise UsageError(
            f"no checkpoint {which!r} in {model_dir}: it may not have reached its first yet; "
            "--checkpoint takes best, latest or a path such as DIR/checkpoints/ckpt-500"
        )
    checkpoint, damaged = files.first_intact(directory, order)
    if checkpoint is None:
        raise UsageError(f"all checkpoints in {directory} are damaged ({damaged[order[0]]})")
    return checkpoint


def _better_average(
    directory: str, best: list[Checkpoint], metric: str, higher: bool
) -> Checkpoint | None:
    """Return the best intact average, if it is better than the best checkpoint."""
    ranked = files.ranked([*best, *files.read_manifests(directory)], metric, higher)
    order = [one.step for one in itertools.takewhile(lambda one: one not in best, ranked)]
    return files.first_intact(directory, order)[0]


def find_path(path: str, expected: str = "best, latest or a path") -> Checkpoint:
    """Return an intact checkpoint by its path.

    Args:
        path: with or without a suffix of one of its files.
        expected: what the user may give, for the message.

    Raises:
        UsageError: there is none, it is damaged, or it cannot be read.
    """
    files.check_path(path)
    directory, name = os.path.split(re.sub(r"\.(json|index)$", "", path))
    match = re.fullmatch(r"ckpt-(\d+)", name)
    if not match or not tf.io.gfile.exists(os.path.join(directory, f"{name}.json")):
        lacks = f", which needs the manifest {name}.json" if match else ""
        raise UsageError(
            f"no checkpoint {path!r}{lacks}; give {expected} such as DIR/checkpoints/ckpt-500"
        )
    try:
        return files.verified(directory, int(match[1]))
    except DamageError as error:
        raise UsageError(f"checkpoint {path} is damaged: {error}; take another one") from error


def check_model(checkpoint: Checkpoint, facts: Facts) -> None:
    """Raise `UsageError` if a checkpoint is of a model of another shape or other vocabularies."""
    _check_facts(checkpoint, facts, ("model",))


def restore_model(model, checkpoint: Checkpoint, facts: Facts) -> None:
    """Read the weights of `model`: their moving average, if the run kept one.

    Args:
        model: built; under a strategy, call this in its scope.
        checkpoint: see `find`.
        facts: of the run that the model is for.

    Raises:
        UsageError: the checkpoint is of a model of another shape or with other vocabularies.
    """
    check_model(checkpoint, facts)
    reader, optimizer = tf.train.Checkpoint(model=model), tf.Module()
    if checkpoint.averages:
        optimizer.averages = [tf.Variable(v.value) for v in model.trainable_variables]
        reader = tf.train.Checkpoint(model=model, optimizer=optimizer)
    _read(reader, checkpoint.path).expect_partial()
    if checkpoint.averages:
        for variable, average in zip(model.trainable_variables, optimizer.averages, strict=True):
            variable.assign(average.numpy())
