"""The outer loop: train, report, evaluate, save."""

import json
import math
import time

import keras
import tensorflow as tf

from common import console as messages
from common.errors import UsageError
from configs import schema
from configs.schema import Config
from data_pipeline.dataset import examples as records
from data_pipeline.dataset.manifest import Manifest
from trainer import bad_steps
from trainer.bad_steps import BadStepsError
from trainer.checkpoints import model_dir as model_directory
from trainer.checkpoints.files import Keep
from trainer.checkpoints.saver import Checkpoints
from trainer.distributed import cluster
from trainer.input import memory as trainer_input
from trainer.metrics import flops
from trainer.metrics import reporter as report
from trainer.metrics import writer as metrics
from trainer.optim.loss_scale import LossScale
from trainer.optim.optimizer import Optimizer
from trainer.runtime.signals import STOPPED_ON_REQUEST, StopAskedError, StopRequest
from trainer.runtime.startup import PHASES
from trainer.step import Steps
from trainer.validation import Validation

GRACE_SECONDS = 30.0
"""What a spot machine of Google Cloud, or Kubernetes by default, leaves between the signal and the
end."""
_CALLS_IN_GRACE = 4  # two may be under way when the signal comes, and saving takes time too


class Run:
    """One training run.

    Args:
        config: validated.
        manifest: of the dataset directory.
        model_dir: where everything goes; a run that is there already is continued.
        strategy: a tf.distribute strategy.
        precision: a Keras dtype policy, "float32", "mixed_bfloat16" or "mixed_float16".
        jit_compile: compile forward and backward with XLA.
        hardware: what it runs on.
        skip_corrupt_data: leave rows of damaged blocks of data empty instead of stopping.
        init_from: a model directory or checkpoint whose weights a new run starts with. A run that
            is continued does not look at it, so that the same command may be started again.
        stop: who says when to stop; None for nobody.
        grace_seconds: within which to have stopped. Calls of the train step are made so short that
            they leave time to save.

    Attributes:
        tokenizers: of the source and of the target.

    Raises:
        UsageError: when data, configuration or model directory do not allow the run.
    """

    def __init__(
        self,
        config: Config,
        manifest: Manifest,
        model_dir: str,
        strategy: tf.distribute.Strategy,
        precision: str,
        jit_compile: bool,
        hardware: flops.Hardware,
        *,
        skip_corrupt_data: bool = False,
        init_from: str | None = None,
        stop: StopRequest | None = None,
        grace_seconds: float = GRACE_SECONDS,
    ):
        self.config, self.manifest, self.model_dir = config, manifest, model_dir
        self.strategy, self.precision, self.hardware = strategy, precision, hardware
        self.worker = cluster.worker_of(strategy)
        self._stop = stop or StopRequest()
        self._longest_call = grace_seconds / _CALLS_IN_GRACE
        # Before the data is read: it refuses a configuration that does not fit the vocabularies.
        self._facts = model_directory.facts_of(config, manifest, precision)
        task = self._facts.task()
        self.data = trainer_input.load_training_data(
            manifest, config, strategy.num_replicas_in_sync, skip_corrupt=skip_corrupt_data
        )
        self.flops_per_token = flops.train_flops_of_split(
            config.model,
            manifest.tokenizers["target"].vocab_size,
            manifest.splits["train"],
            config.data.longest_row,
        )
        if config.train.rdrop_alpha:
            self.flops_per_token *= 2  # every token passes twice
        PHASES.end("data")
        self._start_model_dir()
        keras.utils.set_random_seed(config.train.seed)
        keras.config.set_dtype_policy(precision)
        with strategy.scope():
            self.model = task.build_model()
            self.optimizer = Optimizer(
                config.optimizer, config.train.steps, self.model.trainable_variables
            )
            loss_scale = LossScale(precision == "mixed_float16")
            train = config.train
            keep = Keep(
                train.keep_checkpoints, train.keep_best, train.keep_every_hours, train.best_metric
            )
            self.checkpoints = Checkpoints(
                model_dir,
                self.model,
                self.optimizer,
                loss_scale,
                keep,
                self._facts.of_checkpoint(),
            )
            newest = self.checkpoints.newest
            if not cluster.same_everywhere(strategy, str(newest)):
                raise UsageError(
                    f"worker {self.worker.index} finds {newest or 'no checkpoint'} in {model_dir}, "
                    "and another worker finds something else; --model_dir must be storage that "
                    "all workers share"
                )
            restored = self.checkpoints.restore(strategy)
            state = "new run" if restored is None else f"resumed at step {restored:,}"
            if restored is None and init_from:
                state += f", weights of {self._init_weights(init_from)}"
        self.steps = Steps(
            strategy, task, self.model, self.optimizer, loss_scale, config, jit_compile=jit_compile
        )
        self.tokenizers = tuple(records.load_tokenizers(manifest).values())
        self.validation = Validation(self)
        self.writer = metrics.MetricsWriter(model_dir, restored or 0, active=self.worker.is_chief)
        self._resumed_seconds = float(self.checkpoints.state.seconds.numpy())
        self._start = time.monotonic()
        PHASES.end("model")
        facts = report.describe(self, state)
        self.say("\n".join(facts))
        self.writer.text("train", restored or 0, "run", "\n".join(f"    {line}" for line in facts))

    def _init_weights(self, source: str) -> str:
        found = model_directory.init_weights(self.model, source, self._facts)
        self.optimizer.reset_averages(self.model.trainable_variables)
        return found.path

    def _start_model_dir(self) -> None:
        facts = self._facts
        same = json.dumps(
            [schema.to_dict(self.config), facts.data_fingerprint, self.precision, facts.versions]
        )
        if not cluster.same_everywhere(self.strategy, same):
            raise UsageError(
                f"worker {self.worker.index} has another configuration, dataset, precision or "
                "version of TensorFlow than another worker; start all with the same command"
            )
        refused = None
        if self.worker.is_chief:
            try:
                model_directory.start(self.model_dir, facts, self.manifest)
            except UsageError as error:
                refused = error
        (anywhere,) = cluster.from_chief(self.strategy, [float(refused is not None)])
        if anywhere:
            raise refused or UsageError("worker 0 cannot start, and says why")

    def say(self, text: str) -> None:
        """Prints, on the chief."""
        if self.worker.is_chief:
            messages.say(text)

    def elapsed(self) -> float:
        """Seconds of all starts of this run together."""
        return self._resumed_seconds + time.monotonic() - self._start

    @property
    def data_offset(self) -> int:
        """Batches that were left out so far: step s, counted from 0, takes batch s + this."""
        return int(self.checkpoints.state.data_offset.numpy())

    @property
    def stop_reason(self) -> str:
        """Why the run stops, for people."""
        return self._stop.reason or "another worker was asked to stop"

    def poll(self) -> None:
        """Looks whether to stop. All workers must call it alike; or all others `poll_for_chief`.

        Raises:
            StopAskedError: when any worker was asked to stop; on all of them.
        """
        self._from_chief(0.0)

    def poll_for_chief(self) -> None:
        """Returns when all workers have called it; until then it answers the chief's `poll`.

        Raises:
            StopAskedError: as `poll` does.
        """
        while not self._from_chief(1.0) and not self.worker.is_chief:
            pass

    def _from_chief(self, value: float) -> float:
        """The chief's value, on all workers; raises `StopAskedError` on all of them."""
        values = [self._stop.reason is not None, value if self.worker.is_chief else 0.0]
        asked, of_chief = cluster.sum_over_workers(self.strategy, values)
        if asked:
            raise StopAskedError
        return float(of_chief)

    def train(self) -> int:
        """Trains to the last step, or until early stopping or a request to stop.

        Returns:
            the exit code: 0, or 42 when asked to stop and everything is saved.

        Raises:
            UsageError: when there was a bad step and the run may not go on, or data is damaged; the
                checkpoints are from before. Also when the last checkpoint could not be written.
        """
        try:
            return self._train()
        except tf.errors.OpError as error:
            if self._stop.reason and self.worker.count > 1:
                # The others were asked too, and one of them was not so far as to have to save.
                messages.warn(f"another worker has left ({type(error).__name__})")
                self.say(f"{self.stop_reason}: start again to go on from the last checkpoint")
                return STOPPED_ON_REQUEST
            # Whichever thread or replica failed: if it is for damaged data, this tells where.
            step = self.checkpoints.step + self.data_offset
            self.data.check(step, self.config.train.steps_per_loop)
            raise
        finally:
            self.checkpoints.wait()

    def _train(self) -> int:
        train, began = self.config.train, self.checkpoints.step
        # Kept: freeing one here could wait for ever where TensorFlow has a single thread.
        self._iterators = [self.data.distribute(self.strategy, began + self.data_offset)]
        if began < train.steps and not self._stops_early:
            self.say("tracing and compiling the train step ...")
            self.steps.train.get_concrete_function(self._iterators[0], tf.constant(1))
            PHASES.end("tracing")
        self._reporter = report.Reporter(self)
        self._rollbacks: list[int] = []
        if train.bad_steps == "rollback" and began == 0:
            self._save(None)
        stops = self.validation.is_due(began) and self._end_loop(began, False)
        self._compiled, self._most_steps = False, 1
        self._call: dict[str, tf.Tensor] | None = None
        # Counted here: to read it from the device would wait for the call under way.
        step = began
        while not stops and step < train.steps and not self._stops_early:
            try:
                step, stops = self._loop(step)
            except BadStepsError as error:
                step = self._answer(error)
        self._finish_saving()
        if stops:
            self.say(f"{self.stop_reason}: saved at step {step:,}; start again to go on")
            return STOPPED_ON_REQUEST
        if self._stops_early:
            state = self.checkpoints.state
            self.say(
                f"stopped early at step {step:,}: no better {train.best_metric} on the "
                f"validation split than {float(state.best.numpy()):.4g}, at step "
                f"{int(state.best_step.numpy()):,}"
            )
        self.writer.flush()
        return 0

    def _loop(self, step: int) -> tuple[int, bool]:
        """Trains up to the next report, and what is due after it.

        Returns:
            the step it has come to, and whether to stop.
        """
        train, alone = self.config.train, not self._compiled
        every = (train.steps_per_loop, train.evaluate_every, train.checkpoint_every)
        # The first step of a start is alone: its time is compilation, not training.
        end = step + 1 if alone else min(train.steps, *((step // n + 1) * n for n in every))
        first, calls, dispatched, stops = step, [], time.monotonic(), False
        while step < end and not stops:
            steps = min(end - step, self._most_steps)
            calls.append(self.steps.train(self._iterators[-1], tf.constant(steps)))
            step += steps
            self._compiled = True
            self._stop.hold()
            stops = self._ask(calls[-1])
        self._reporter.submit(report.Loop(step, step - first, calls, dispatched, alone))
        saves = stops or self.validation.is_due(step) or step % train.checkpoint_every == 0
        if alone or saves:
            self._reporter.wait()  # to measure the peak alone; to save nothing but good numbers
        return step, self._end_loop(step, stops) if saves else False

    def _ask(self, call: dict[str, tf.Tensor]) -> bool:
        """Whether to stop; if not, all workers agree how many steps the next call may take.

        A call goes on to its end whatever comes, so it must take no longer than there is time. It
        waits for the call before this one: no more than two are under way.
        """
        before, self._call = self._call, call
        slowest = before["step_seconds"].numpy().max() if before else math.inf
        fitting = min(self._longest_call / max(slowest, 1e-9), self.config.train.steps)
        try:
            self._most_steps = max(1, int(self._from_chief(fitting)))
        except StopAskedError:
            return True
        return False

    def _end_loop(self, step: int, stops: bool) -> bool:
        """Evaluates, if that is due and nobody wants to stop, and saves; whether to stop."""
        result = None
        if not stops and self.validation.is_due(step):
            try:
                result = self.validation.evaluate(step)
            except StopAskedError:
                stops = True  # the next start evaluates
        self._save(result)
        return stops

    def _answer(self, error: BadStepsError) -> int:
        """Rolls back to the last checkpoint, or ends the run, as `train.bad_steps` wants it.

        Returns:
            the step of that checkpoint.
        """
        policy, bad = self.config.train.bad_steps, error.steps[-1]
        mend = (
            "lower --config.optimizer.learning_rate or set --config.optimizer.clip_norm, in a new "
            "--model_dir"
        )
        if policy == "skip":
            raise UsageError(
                f"{bad_steps.MOST_IN_A_ROW} steps in a row were bad, up to {bad}: it is not the "
                f"batches; {mend}"
            ) from error
        if policy == "abort":
            raise UsageError(
                f"bad numbers in {error}, and nothing of them was saved; start again with "
                f"--config.train.bad_steps=skip or rollback, or {mend}"
            ) from error
        after_bad = bad.step + self.data_offset
        self.checkpoints.wait()
        with self.strategy.scope():
            step = self.checkpoints.restore(self.strategy)
        if step is None:
            raise UsageError(f"bad numbers in {bad}, and no checkpoint to go back to") from error
        self._rollbacks.append(step)
        if self._rollbacks.count(step) > bad_steps.MOST_ROLLBACKS:
            raise UsageError(
                f"{bad_steps.MOST_ROLLBACKS} rollbacks to step {step:,} did not help, now for "
                f"{bad}; {mend}"
            ) from error
        self.checkpoints.state.data_offset.assign(after_bad - step)
        self.say(f"back to step {step:,}, and on with the batches after that of step {bad.step:,}")
        self.writer.flush()
        self.writer = metrics.MetricsWriter(self.model_dir, step, active=self.worker.is_chief)
        self._iterators.append(self.data.distribute(self.strategy, after_bad))
        return step

    def _save(self, result: dict[str, float] | None) -> None:
        self.checkpoints.state.seconds.assign(self.elapsed())
        self.writer.flush()  # before: who goes on from the checkpoint wants all metrics up to it
        if self.worker.is_chief:
            self.checkpoints.save(result)

    def _finish_saving(self) -> None:
        """Waits for the last checkpoint; all workers learn when it could not be written."""
        self.checkpoints.wait()
        failure = self.checkpoints.failure
        if cluster.from_chief(self.strategy, [failure is not None])[0]:
            newest = self.checkpoints.newest
            raise UsageError(
                f"{failure or 'worker 0 could not write the last checkpoint'}; "
                f"{f'the newest is {newest}' if newest else 'there is none'}: mend that and start "
                "the same command again"
            )

    @property
    def _stops_early(self) -> bool:
        patience = self.config.train.early_stopping_patience
        return 0 < patience <= int(self.checkpoints.state.evaluations_since_best.numpy())
