"""The training loop: train, report, evaluate, save.

until the last step, early stopping or a request to stop:
    call the compiled train step until a report, an evaluation or a checkpoint is due
    report in the background
    evaluate, if due
    save, if due
"""

import math
import os
import time

import tensorflow as tf

from common.console import warn
from common.errors import EXIT_STOPPED, UsageError
from trainer import bad_steps
from trainer.bad_steps import BadStepsError
from trainer.distributed import cluster
from trainer.input.distribution import distribute
from trainer.metrics.call_times import Call, CallTimer
from trainer.metrics.reporter import Stretch
from trainer.run import Run
from trainer.runtime.signals import StopAskedError
from trainer.runtime.startup import PHASES


def train(run: Run) -> int:
    """Train to the last step, or until early stopping or a request to stop.

    Returns:
        The exit code: 0, or 42 when asked to stop and everything is saved.

    Raises:
        UsageError: a bad step occurred and the run may not go on, data is damaged, or the last
            checkpoint could not be written. The checkpoints are from before.
    """
    try:
        return Loop(run).train()
    except tf.errors.OpError as error:
        if run.stops.asked_here and run.worker.count > 1:
            # Another worker was asked too, and had nothing to save yet, so it left at once.
            warn(f"another worker has left ({type(error).__name__})")
            run.say(f"{run.stops.reason}: start again to go on from the last checkpoint")
            return EXIT_STOPPED
        # If damaged data is the cause, on whichever thread or replica, this names the place.
        run.data.check(run.checkpoints.step + run.data_offset, run.config.train.steps_per_loop)
        raise
    finally:
        run.checkpoints.wait()


class Loop:
    """The state of a training loop.

    Args:
        run: what to train.
    """

    def __init__(self, run: Run):
        self._run, self._config = run, run.config.train
        # Counted here: reading the step from the device would wait for the call in progress.
        self._step = run.checkpoints.step
        # Every iterator is kept: freeing one could block forever where TensorFlow has one thread.
        self._iterators = [distribute(run.data, run.strategy, self._step + run.data_offset)]
        self._compiled = False
        self._most_steps = 1  # that the next call may take
        self._timer = CallTimer()
        self._call: Call | None = None  # the last one
        self._rollbacks: list[int] = []  # the steps returned to
        self._profiles = False

    def train(self) -> int:
        """Train; see `train` above."""
        run = self._run
        if self._step < self._config.steps and not self._stops_early:
            run.say("tracing and compiling the train step ...")
            with run.ledger.during("compilation"):
                run.steps.train.get_concrete_function(self._iterators[0], tf.constant(1))
            PHASES.end("tracing")
        if self._run.profile_steps and self._run.profile_steps[0] <= self._step:
            warn(f"no profile: the first of --profile_steps is not after step {self._step:,}")
        if self._config.bad_steps == "rollback" and self._step == 0:
            self._save(None)
        stops = run.validation.is_due(self._step) and self._evaluate_and_save(stops=False)
        while not stops and self._step < self._config.steps and not self._stops_early:
            try:
                with run.ledger.during("steps" if self._compiled else "compilation"):
                    stops = self._train_stretch()
            except BadStepsError as error:
                self._roll_back(error)
        self._finish_saving()
        if self._profiles:
            self._stop_profiler()
        if stops:
            run.say(f"{run.stops.reason}: saved at step {self._step:,}; start again to go on")
            return EXIT_STOPPED
        if self._stops_early:
            self._say_why_early()
        run.writer.flush()
        return 0

    def _train_stretch(self) -> bool:
        """Train up to the next report, and do what is due after it; return whether to stop."""
        config, alone = self._config, not self._compiled
        every = (config.steps_per_loop, config.evaluate_every, config.checkpoint_every)
        # The first step of a start is reported alone: its time is compilation, not training.
        end = self._step + 1 if alone else min(config.steps, *(_next(self._step, n) for n in every))
        end = min([end, *(step for step in self._run.profile_steps if step > self._step)])
        first, calls, stops = self._step, [], False
        while self._step < end and not stops:
            steps = min(end - self._step, self._most_steps)
            start = time.monotonic()
            results = self._run.steps.train(self._iterators[-1], tf.constant(steps))
            calls.append(self._timer.watch(results, steps, start))
            self._step += steps
            self._compiled = True
            self._run.stops.hold()
            stops = self._is_asked_to_stop(calls[-1])
        self._run.reporter.submit(
            Stretch(self._step, self._step - first, calls, alone, self._run.data_offset)
        )
        if self._step in self._run.profile_steps and self._run.worker.is_chief:
            self._switch_profiler(calls[-1])
        evaluates = self._run.validation.is_due(self._step)
        saves = stops or evaluates or self._step % config.checkpoint_every == 0
        if alone or saves:
            # Alone, so that nothing disturbs the peak's measurement; before saving, so that a bad
            # step is never saved.
            self._run.reporter.wait()
        return self._evaluate_and_save(stops) if saves else False

    def _switch_profiler(self, call: Call) -> None:
        """Start the profiler after the first of `profile_steps`, and stop it after the second."""
        first, last = self._run.profile_steps
        call.timing.result()  # waits until the step has run
        if self._step == first and not self._profiles:
            tf.profiler.experimental.start(os.path.join(self._run.model_dir, "tensorboard"))
            self._profiles = True
        elif self._step == last and self._profiles:
            self._stop_profiler()

    def _stop_profiler(self) -> None:
        tf.profiler.experimental.stop()
        self._profiles = False
        first = self._run.profile_steps[0]
        self._run.say(f"profile of steps {first + 1:,} to {self._step:,} written for TensorBoard")

    def _is_asked_to_stop(self, call: Call) -> bool:
        """Return whether to stop; if not, agree on how many steps the next call may take.

        A call always runs to its end, so it must not take longer than the time there is to stop.
        This waits for the call before `call`: no more than two are in progress.
        """
        before, self._call = self._call, call
        step_seconds = before.timing.result().seconds / before.steps if before else math.inf
        fitting = min(self._run.longest_call / max(step_seconds, 1e-9), self._config.steps)
        try:
            self._most_steps = max(1, int(self._run.stops.from_chief(fitting)))
        except StopAskedError:
            return True
        return False

    def _evaluate_and_save(self, stops: bool) -> bool:
        """Evaluate, if that is due and nobody asks to stop, and save; return whether to stop."""
        result = None
        if not stops and self._run.validation.is_due(self._step):
            try:
                with self._run.ledger.during("evaluation"):
                    result = self._run.validation.evaluate(self._step)
            except StopAskedError:
                stops = True  # the next start evaluates
        due = self._step % self._config.checkpoint_every == 0
        due |= self._run.validation.is_due(self._step)
        self._save(result, extra=not due)
        return stops

    def _save(self, result: dict[str, float] | None, *, extra: bool = False) -> None:
        run = self._run
        run.checkpoints.state.seconds.assign(run.stopwatch.seconds)
        run.writer.flush()  # first: whoever resumes from the checkpoint needs all metrics up to it
        with run.ledger.during("checkpoint"), run.optimizer.whole():
            if run.worker.is_chief:
                run.checkpoints.save(result, extra=extra)

    def _roll_back(self, error: BadStepsError) -> None:
        """Go back to the last regular checkpoint, if `train.bad_steps` says so.

        Which batches are left out depends neither on stops nor on the length of stretches.

        Raises:
            UsageError: the run ends, because of its policy or because rolling back did not help.
        """
        run, bad = self._run, error.steps[0]
        bad_steps.check_policy(self._config.bad_steps, error)
        run.checkpoints.wait()
        with run.strategy.scope():
            step = run.checkpoints.restore(run.strategy, regular=True)
        if step is None:
            raise UsageError(f"bad numbers in {bad}, and no checkpoint to go back to") from error
        self._rollbacks.append(step)
        bad_steps.check_rollbacks(self._rollbacks, bad)
        run.checkpoints.state.data_offset.assign(bad.batch + 1 - step)
        run.say(f"back to step {step:,}, and on with the batches after that of step {bad.step:,}")
        run.writer.rewind(step)
        self._iterators.append(distribute(run.data, run.strategy, bad.batch + 1))
        self._step = step

    def _finish_saving(self) -> None:
        """Wait for the last checkpoint; every worker learns when it could not be written."""
        checkpoints = self._run.checkpoints
        with self._run.ledger.during("checkpoint"):
            checkpoints.wait()
        failure = checkpoints.failure
        if cluster.from_chief(self._run.strategy, [failure is not None])[0]:
            newest = checkpoints.newest
            raise UsageError(
                f"{failure or 'worker 0 could not write the last checkpoint'}; "
                f"{f'the newest is {newest}' if newest else 'there is none'}: fix that and start "
                "the same command again"
            )

    @property
    def _stops_early(self) -> bool:
        patience = self._config.early_stopping_patience
        evaluations = int(self._run.checkpoints.state.evaluations_since_best.numpy())
        return 0 < patience <= evaluations

    def _say_why_early(self) -> None:
        state = self._run.checkpoints.state
        self._run.say(
            f"stopped early at step {self._step:,}: no better {self._config.best_metric} on the "
            f"validation split than {float(state.best.numpy()):.4g}, at step "
            f"{int(state.best_step.numpy()):,}"
        )


def _next(step: int, every: int) -> int:
    """Return the first multiple of `every` after `step`."""
    return (step // every + 1) * every
