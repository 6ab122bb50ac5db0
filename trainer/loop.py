"""The outer loop: train, report, evaluate, save."""

import json
import time

import keras
import numpy as np
import tensorflow as tf

from configs import schema
from configs.schema import Config
from data_pipeline.records import Manifest, UsageError
from trainer import cluster, flops, messages, metrics, report
from trainer import input as trainer_input
from trainer import model_dir as model_directory
from trainer.checkpoint import Checkpoints
from trainer.checkpoint_files import Keep
from trainer.loss_scale import LossScale
from trainer.optimizer import Optimizer
from trainer.startup import PHASES
from trainer.step import Steps
from trainer.stop import STOPPED_ON_REQUEST, StopRequest
from trainer.validation import Validation


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
    ):
        self.config, self.manifest, self.model_dir = config, manifest, model_dir
        self.strategy, self.precision, self.hardware = strategy, precision, hardware
        self.worker = cluster.worker_of(strategy)
        # Before the data is read: it refuses a configuration that does not fit the vocabularies.
        self._facts = model_directory.facts_of(config, manifest, precision)
        task = self._facts.task()
        self.data = trainer_input.load_training_data(
            manifest, config, strategy.num_replicas_in_sync, skip_corrupt=skip_corrupt_data
        )
        self.flops_per_token = flops.train_flops_of_split(
            config.model,
            manifest.target_tokenizer.vocab_size,
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

    def train(self) -> int:
        """Trains to the last step, or until early stopping or a signal.

        Returns:
            the exit code: 0, or 42 when a signal asked to stop and everything is saved.

        Raises:
            UsageError: when the loss is not finite, or data is damaged; the checkpoints are from
                before. Also when the last checkpoint could not be written.
        """
        try:
            return self._train()
        except tf.errors.OpError:
            # Whichever thread or replica failed: if it is for damaged data, this tells where.
            self.data.check(self.checkpoints.step, self.config.train.steps_per_loop)
            raise
        finally:
            self.checkpoints.wait()

    def _train(self) -> int:
        train = self.config.train
        step = first_step = self.checkpoints.step
        # Kept: freeing it here could wait for ever where TensorFlow has a single thread.
        self._iterator = iterator = self.data.distribute(self.strategy, step)
        if step < train.steps and not self._stops_early:
            self.say("tracing and compiling the train step ...")
            self.steps.train.get_concrete_function(iterator, tf.constant(1))
            PHASES.end("tracing")
        reporter = report.Reporter(self)
        with StopRequest() as stop:
            while step < train.steps and not self._stops_early:
                # Up to the next evaluation or checkpoint, and no further.
                ends = [train.steps, step + train.steps_per_loop]
                ends += [
                    (step // n + 1) * n for n in (train.evaluate_every, train.checkpoint_every)
                ]
                # The first step of a start is alone: its time is compilation, not training.
                steps = 1 if step == first_step else min(ends) - step
                dispatched = time.monotonic()
                results = self.steps.train(iterator, tf.constant(steps))
                compiles = step == first_step
                step += steps
                reporter.submit(report.Loop(step, steps, results, dispatched, compiles))
                stops = self._any_worker_stops(stop)
                evaluates = step == train.steps or step % train.evaluate_every == 0
                saves = evaluates or stops or step % train.checkpoint_every == 0
                if compiles or saves:
                    reporter.wait()  # to measure the peak alone; to save nothing but good numbers
                result = self.validation.evaluate(step) if evaluates else None
                if saves:
                    self._save(result)
                if stops:
                    self._finish_saving()
                    name = stop.signal or "another worker's signal"
                    self.say(f"{name}: saved at step {step:,}; start again to go on")
                    return STOPPED_ON_REQUEST
        self._finish_saving()
        if self._stops_early:
            state = self.checkpoints.state
            self.say(
                f"stopped early at step {step:,}: no better {train.best_metric} on the "
                f"validation split than {float(state.best.numpy()):.4g}, at step "
                f"{int(state.best_step.numpy()):,}"
            )
        self.writer.flush()
        return 0

    def _any_worker_stops(self, stop: StopRequest) -> bool:
        # All workers stop after the same step, whichever of them got the signal.
        asked = np.array([stop.signal is not None], np.float64)
        return bool(cluster.sum_over_workers(self.strategy, asked)[0])

    def _save(self, result: dict[str, float] | None) -> None:
        self.checkpoints.state.seconds.assign(self.elapsed())
        if self.worker.is_chief:
            self.checkpoints.save(result)
        self.writer.flush()

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
