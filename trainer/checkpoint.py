"""Saving a run so that it can go on as if nothing had happened."""

import os

import tensorflow as tf

from data_pipeline.records import UsageError


class RunState(tf.Module):
    """What a run has to remember besides weights, optimizer slots and the step.

    Attributes:
        best: float64, the best value so far of the early-stopping metric, NaN before the first.
        best_step: int64, where it was.
        evaluations_since_best: int64.
        seconds: float64, training time of all starts together.
    """

    def __init__(self):
        super().__init__()
        self.best = tf.Variable(float("nan"), dtype=tf.float64)
        self.best_step = tf.Variable(0, dtype=tf.int64)
        self.evaluations_since_best = tf.Variable(0, dtype=tf.int64)
        self.seconds = tf.Variable(0.0, dtype=tf.float64)


def _directories(model_dir: str) -> tuple[str, str]:
    root = os.path.join(model_dir, "checkpoints")
    return root, os.path.join(root, "best")


class Checkpoints:
    """The newest checkpoints of a run, and the best one.

    A checkpoint counts once the small state file beside it names it, which TensorFlow replaces
    by a rename after all data is written; a run that is killed in between finds the one before.
    Random numbers and the position in the data need no saving: both are functions of the step.

    Args:
        model_dir: its "checkpoints" folder is used.
        model, optimizer, loss_scale: what is saved.
        keep: how many of the newest ones stay.

    Raises:
        UsageError: when the state file is damaged.
    """

    def __init__(self, model_dir: str, model, optimizer, loss_scale, keep: int):
        self.state = RunState()
        self._optimizer = optimizer
        self._checkpoint = tf.train.Checkpoint(
            model=model, optimizer=optimizer, loss_scale=loss_scale, state=self.state
        )
        newest, best = _directories(model_dir)
        try:
            self._newest = tf.train.CheckpointManager(self._checkpoint, newest, keep)
            self._best = tf.train.CheckpointManager(self._checkpoint, best, 1)
        except ValueError as error:
            raise UsageError(
                f"the file checkpoint in {newest} or {best} is damaged ({error}); write the line "
                'model_checkpoint_path: "ckpt-N" into it, for the newest ckpt-N there'
            ) from error

    @property
    def newest(self) -> str | None:
        """Path prefix of the newest checkpoint, None if there is none."""
        return self._newest.latest_checkpoint

    def restore(self) -> int | None:
        """Goes back to the newest checkpoint.

        Returns:
            the step it was written at, None if there is no checkpoint.

        Raises:
            UsageError: when it cannot be read.
        """
        path = self.newest
        if path is None:
            state = os.path.join(self._newest.directory, "checkpoint")
            if tf.io.gfile.exists(state):
                raise UsageError(
                    f"{state} names no checkpoint: it is damaged; write the line "
                    'model_checkpoint_path: "ckpt-N" into it, for the newest ckpt-N there'
                )
            return None
        try:
            self._checkpoint.restore(path).assert_existing_objects_matched()
        except (ValueError, IndexError, AssertionError, tf.errors.OpError) as error:
            raise UsageError(
                f"checkpoint {path} cannot be read: {error}; delete its files and its name in "
                f"{self._newest.directory}/checkpoint to go on from the one before"
            ) from error
        return self.step

    @property
    def step(self) -> int:
        return int(self._optimizer.iterations.numpy())

    def save(self) -> None:
        """Writes a checkpoint, unless this step has one already."""
        name = os.path.join(self._newest.directory, f"ckpt-{self.step}")
        if self.newest != name:
            self._newest.save(checkpoint_number=self.step)

    def save_best(self) -> None:
        """Writes the checkpoint that evaluation and translation use."""
        self._best.save(checkpoint_number=self.step)


def find(model_dir: str, which: str) -> str:
    """The path prefix of a checkpoint: of the "best", the "latest", or `which` itself.

    Raises:
        UsageError: when there is none.
    """
    newest, best = _directories(model_dir)
    if which == "best":
        path = tf.train.latest_checkpoint(best) or tf.train.latest_checkpoint(newest)
    elif which == "latest":
        path = tf.train.latest_checkpoint(newest)
    else:
        path = which if tf.io.gfile.exists(f"{which}.index") else None
    if path is None:
        raise UsageError(
            f"no checkpoint {which!r} in {model_dir}: it may not have reached its first yet; "
            "--checkpoint takes best, latest or a path such as DIR/checkpoints/ckpt-500"
        )
    return path


def restore_model(model, path: str, *, averaged: bool) -> int:
    """Reads the weights of `model` from a checkpoint; returns the step it was written at.

    Args:
        model: built.
        path: prefix of a checkpoint, see `find`.
        averaged: take the moving average of the weights, which the training kept.

    Raises:
        UsageError: when the checkpoint is of another model, or damaged.
    """
    checkpoint, optimizer = tf.train.Checkpoint(model=model), tf.Module()
    # The best checkpoint was written while the averages stood in the place of the weights.
    averaged = averaged and os.path.basename(os.path.dirname(path)) != "best"
    if averaged:
        optimizer.averages = [tf.Variable(v.value) for v in model.trainable_variables]
        checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    try:
        checkpoint.restore(path).assert_existing_objects_matched().expect_partial()
    except (ValueError, IndexError, AssertionError, tf.errors.OpError) as error:
        raise UsageError(f"checkpoint {path} cannot be read into this model: {error}") from error
    if averaged:
        for variable, average in zip(model.trainable_variables, optimizer.averages, strict=True):
            variable.assign(average)
    return int(path.rsplit("-", 1)[-1]) if path.rsplit("-", 1)[-1].isdigit() else 0
