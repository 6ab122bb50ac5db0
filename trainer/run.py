"""Assemble a training run: all that it is made of, in one frozen record."""

import json
import math
import os
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import keras
import tensorflow as tf

import trainer
from common import console
from common.errors import UsageError
from configs import schema
from configs.schema import Config
from data_pipeline.dataset import examples
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer import replay
from trainer.agreement import Agreement
from trainer.bad_steps import BatchSaver
from trainer.checkpoints import files as checkpoint_files
from trainer.checkpoints import model_dir as model_directory
from trainer.checkpoints.model_dir import RunFacts
from trainer.checkpoints.saver import Checkpoints, restore_model
from trainer.decoding.devices import decoding_device
from trainer.distributed import cluster
from trainer.distributed.cluster import Worker
from trainer.distributed.strategy import compiles_itself, draws_on_device
from trainer.input.evaluation import evaluation_batches
from trainer.input.protocol import TrainingData
from trainer.input.stages import fingerprint, load_stages, read_stages
from trainer.metrics.flops import Hardware
from trainer.metrics.gallery import Gallery
from trainer.metrics.goodput import Ledger
from trainer.metrics.reporter import Reporter
from trainer.metrics.writer import MetricsWriter
from trainer.model.attention import optimize_for_tpu
from trainer.model.dropout import use_device_generator
from trainer.model.seeds import seeded_weights
from trainer.optim import sharding
from trainer.optim.loss_scale import LossScale
from trainer.optim.optimizer import Optimizer
from trainer.reporting.records import read_metrics
from trainer.runtime.signals import StopRequest
from trainer.runtime.startup import MEETING, PHASES
from trainer.step import Steps
from trainer.tasks.base import Task
from trainer.validation import Validation

GRACE_SECONDS = 30.0
"""Time that a spot machine of Google Cloud, or Kubernetes by default, leaves between the signal
and the end."""
_CALLS_IN_GRACE = 4  # two may be in progress when the signal comes, and saving takes time too
_EXAMPLES = 5  # shown at the start
_EXAMPLE_WIDTH = 200  # characters of a text
_MOST_PICTURED = 100  # among these, the pictures find examples that are short


@dataclass(frozen=True)
class Stopwatch:
    """The training time of a run, over all its starts.

    Attributes:
        earlier: seconds of the starts before this one.
        started: when this start began, by time.monotonic().
    """

    earlier: float
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return self.earlier + time.monotonic() - self.started


@dataclass(frozen=True)
class Run:
    """What a training run is made of.

    Attributes:
        config: validated configuration.
        task: what is learned.
        model_dir: where everything is written.
        strategy: a tf.distribute strategy.
        worker: this process among the workers.
        data: the training split in batches.
        model: the model; its variables live in the strategy's scope, as do those of the next two.
        optimizer: its updates.
        checkpoints: of model, optimizer and loss scale.
        steps: the compiled train and evaluation steps.
        validation: evaluations of the validation split.
        reporter: turns results into metrics.
        writer: of metrics; writes on the chief only.
        stops: how the workers agree to stop.
        stopwatch: the training time.
        ledger: where the wall-clock time goes.
        longest_call: seconds that a call of the train step may take, so that a request to stop is
            answered in time.
        flops_per_unit: FLOPs of training a unit (`Task.UNIT`) of the data.
        hardware: the devices.
        say: prints a line, on the chief only.
        profile_steps: see `assemble`.
    """

    config: Config
    task: Task
    model_dir: str
    strategy: tf.distribute.Strategy
    worker: Worker
    data: TrainingData
    model: keras.Model
    optimizer: Optimizer
    checkpoints: Checkpoints
    steps: Steps
    validation: Validation
    reporter: Reporter
    writer: MetricsWriter
    stops: Agreement
    stopwatch: Stopwatch
    ledger: Ledger
    longest_call: float
    flops_per_unit: float
    hardware: Hardware
    say: Callable[[str], None]
    profile_steps: tuple[int, ...]

    @property
    def data_offset(self) -> int:
        """Batches that rollbacks left out so far: step s, counted from 0, takes batch s + this."""
        return int(self.checkpoints.state.data_offset.numpy())


def assemble(
    config: Config,
    manifest: Manifest,
    model_dir: str,
    strategy: tf.distribute.Strategy,
    precision: str,
    jit_compile: bool,
    hardware: Hardware,
    *,
    skip_corrupt_data: bool = False,
    init_from: str | None = None,
    stop: StopRequest | None = None,
    grace_seconds: float = GRACE_SECONDS,
    pictures: bool = True,
    profile_steps: tuple[int, ...] = (),
) -> Run:
    """Assemble a new run, or the one that `model_dir` holds, at its last checkpoint.

    Args:
        config: validated.
        manifest: of the dataset directory.
        model_dir: where everything is written; a run that is there already is continued.
        strategy: a tf.distribute strategy.
        precision: a Keras dtype policy: "float32", "mixed_bfloat16" or "mixed_float16".
        jit_compile: compile forward and backward pass with XLA.
        hardware: what it runs on.
        skip_corrupt_data: leave the rows of damaged blocks of data empty instead of stopping.
        init_from: a model directory or checkpoint whose weights a new run starts with. A run that
            is continued ignores it, so that the same command can be started again.
        stop: this process's requests to stop; None for none.
        grace_seconds: time from a request to stop to the end of the process. Calls of the train
            step are kept so short that there is time to save.
        pictures: let TensorBoard show pictures, histograms and embeddings too.
        profile_steps: the step after which the profiler starts, and the one after which it stops;
            () for none.

    Raises:
        UsageError: data, configuration or model directory do not allow the run.
    """
    worker = cluster.worker_of(strategy)
    say = console.say if worker.is_chief else _say_nothing
    stops = Agreement(strategy, stop or StopRequest())
    # Before the data is read: this rejects a configuration that does not fit the vocabularies.
    stages = read_stages(config, manifest)
    facts = model_directory.facts_of(config, manifest, precision, fingerprint(stages))
    config, task = facts.config, facts.task()
    ledger = Ledger(trainer.STARTED)
    facts.started = ledger.began
    if config.train.replay_every:
        replay.check_possible(strategy)
    if config.train.shard_optimizer:
        sharding.check_possible(tpu=compiles_itself(strategy))
    data = load_stages(
        stages, config, strategy.num_replicas_in_sync, skip_corrupt=skip_corrupt_data
    )
    flops_per_unit = task.train_flops(manifest.splits["train"], config.data.longest_row)
    PHASES.end("data")
    initial = None
    if init_from and not checkpoint_files.steps(os.path.join(model_dir, "checkpoints")):
        initial = model_directory.find_weights(init_from, facts)
    _start_model_dir(model_dir, facts, manifest, strategy)
    keras.config.set_dtype_policy(precision)
    with strategy.scope():
        with seeded_weights(config.train.seed):
            model = task.build_model()
        optimizer = Optimizer(
            config.optimizer,
            config.train.steps,
            model.trainable_variables,
            jit_compile=jit_compile,
            shard=config.train.shard_optimizer,
        )
        loss_scale = LossScale(precision == "mixed_float16")
        checkpoints = Checkpoints(
            model_dir, model, optimizer, loss_scale, _keep(config, task), facts.of_checkpoint()
        )
        _check_newest(checkpoints, strategy, model_dir)
        restored = checkpoints.restore(strategy)
        origin = "new run" if restored is None else f"resumed at step {restored:,}"
        if restored is None and initial:
            restore_model(model, initial, facts.of_checkpoint())
            optimizer.reset_averages(model.trainable_variables)
            origin += f", weights of {initial.path}"
    if compiles_itself(strategy):
        optimize_for_tpu(model)
    if draws_on_device(config.train.fast_dropout, strategy, jit_compile):
        use_device_generator(model)
    steps = Steps(strategy, task, model, optimizer, loss_scale, config, jit_compile=jit_compile)
    tokenizers = examples.load_tokenizers(manifest)
    ledger.move(PHASES.seconds.get(MEETING, 0.0), "start", "waiting")
    if worker.is_chief:
        ledger.resume(read_metrics(model_dir), restored or 0, facts.started)
    writer = MetricsWriter(model_dir, restored or 0, active=worker.is_chief, ledger=ledger)
    stopwatch = Stopwatch(float(checkpoints.state.seconds.numpy()))
    gallery = None
    if worker.is_chief and pictures:
        gallery = _gallery(config, task, manifest, tokenizers, model, optimizer, writer, stopwatch)
    validation = Validation(
        config.train,
        steps,
        manifest.splits["valid"],
        evaluation_batches(
            examples.read_examples(manifest, "valid"), config, manifest.closing_id, strategy
        ),
        task.scorer(model, manifest, "valid", tokenizers, quick=True, strategy=strategy),
        checkpoints.state,
        writer,
        stops,
        say,
        gallery.add if gallery else None,
    )
    reporter = Reporter(
        config.train,
        task,
        manifest.splits["train"],
        writer,
        hardware=hardware,
        flops_per_unit=flops_per_unit,
        batches_per_epoch=data.batches_per_epoch,
        schedule=optimizer.schedule,
        seconds=lambda: stopwatch.seconds,
        scaled=steps.scaled,
        say=say,
        saver=BatchSaver(model_dir, data, tokenizers) if worker.is_chief else None,
        ledger=ledger,
        replay=steps.replay,
    )
    PHASES.end("model")
    run = Run(
        config=config,
        task=task,
        model_dir=model_dir,
        strategy=strategy,
        worker=worker,
        data=data,
        model=model,
        optimizer=optimizer,
        checkpoints=checkpoints,
        steps=steps,
        validation=validation,
        reporter=reporter,
        writer=writer,
        stops=stops,
        stopwatch=stopwatch,
        ledger=ledger,
        longest_call=grace_seconds / _CALLS_IN_GRACE,
        flops_per_unit=flops_per_unit,
        hardware=hardware,
        say=say,
        profile_steps=profile_steps,
    )
    _announce(run, manifest, origin, (restored or 0) + 1)
    return run


def _gallery(
    config: Config,
    task: Task,
    manifest: Manifest,
    tokenizers: dict[str, Tokenizer],
    model: keras.Model,
    optimizer: Optimizer,
    writer: MetricsWriter,
    stopwatch: Stopwatch,
) -> Gallery | None:
    """Return what draws the figures for TensorBoard; None where no device can run the model."""
    device = decoding_device(model)
    if not device:
        return None
    return Gallery(
        writer,
        task,
        model,
        tokenizers,
        examples.read_first_examples(manifest, "valid", _MOST_PICTURED),
        closing_id=manifest.closing_id,
        device=device,
        schedule=optimizer.schedule,
        steps=config.train.steps,
        seconds=lambda: stopwatch.seconds,
    )


def _announce(run: Run, manifest: Manifest, origin: str, first_step: int) -> None:
    """Say what the run is, on the console and in TensorBoard."""
    lines = _describe(run, manifest, origin)
    run.say("\n".join(lines))
    run.writer.start_boards(first_step, schema.flat(run.config), run.task.BEST, run.task.RATES)
    run.writer.text("train", first_step, "run", "\n".join(f"    {line}" for line in lines))


def _say_nothing(text: str) -> None:
    """Keep quiet, on a worker that is not the chief."""


def _keep(config: Config, task: Task) -> checkpoint_files.Keep:
    train = config.train
    return checkpoint_files.Keep(
        newest=train.keep_checkpoints,
        best=train.keep_best,
        every_hours=train.keep_every_hours,
        metric=train.best_metric,
        higher=task.BEST[train.best_metric],
    )


def _start_model_dir(
    model_dir: str, facts: RunFacts, manifest: Manifest, strategy: tf.distribute.Strategy
) -> None:
    """Make the model directory, on the chief; every worker learns when that fails."""
    worker = cluster.worker_of(strategy)
    same = json.dumps(
        [schema.to_dict(facts.config), facts.data_fingerprint, facts.precision, facts.versions]
    )
    if not cluster.same_everywhere(strategy, same):
        raise UsageError(
            f"worker {worker.index} has another configuration, dataset, precision or version of "
            "TensorFlow than another worker; start all with the same command"
        )
    refused = None
    if worker.is_chief:
        try:
            model_directory.start(model_dir, facts, manifest)
        except UsageError as error:
            refused = error
    (anywhere,) = cluster.from_chief(strategy, [float(refused is not None)])
    if anywhere:
        raise refused or UsageError("worker 0 cannot start; its own message says why")


def _check_newest(
    checkpoints: Checkpoints, strategy: tf.distribute.Strategy, model_dir: str
) -> None:
    """Check that all workers see the same checkpoints."""
    newest = checkpoints.newest
    if not cluster.same_everywhere(strategy, str(newest)):
        raise UsageError(
            f"worker {cluster.worker_of(strategy).index} finds {newest or 'no checkpoint'} in "
            f"{model_dir}, and another worker finds something else; --model_dir must be storage "
            "that all workers share"
        )


def _describe(run: Run, manifest: Manifest, origin: str) -> list[str]:
    """Describe a run in lines of text; `origin` says what it starts from."""
    data, train = run.data, run.config.train
    parameters = sum(math.prod(v.shape) for v in run.model.trainable_variables)
    shapes = ", ".join(f"{rows} x {length}" for rows, length in data.shapes)
    micro_batches = f" in {train.micro_batches} micro-batches" if train.micro_batches > 1 else ""
    texts = examples.read_raw_text(manifest, "valid").values()
    shown = list(zip(*texts, strict=True))[:_EXAMPLES]
    return [
        f"data         {manifest.directory}, fingerprint {manifest.fingerprint[:12]}",
        f"             {manifest.splits['train'].kept:,} {run.task.EXAMPLES} "
        f"{'-'.join(manifest.languages.values())}, {_vocabulary(manifest)}, {data.left_out():,} "
        "too long and left out",
        f"             {data.origin}",
        f"model        {parameters:,} parameters, {run.flops_per_unit / 1e6:,.1f} million "
        f"floating-point operations a {run.task.UNIT} in training",
        f"             optimizer state {run.optimizer.replica_bytes / 1e6:,.1f} MB a replica",
        f"batch        at most {train.batch_tokens:,} positions on "
        f"{run.strategy.num_replicas_in_sync} replica(s){micro_batches}, rows x tokens: {shapes}; "
        f"fill rate {data.fill_rate():.3f}",
        f"length       {train.steps:,} steps, {data.batches_per_epoch:,} an epoch",
        f"model_dir    {run.model_dir}",
        f"state        {origin}",
        *(f"example      {'  |  '.join(map(_shorten, example))}" for example in shown),
    ]


def _shorten(text: str) -> str:
    """Return the beginning of a text, which may be a whole document, on one line."""
    return textwrap.shorten(text, _EXAMPLE_WIDTH, placeholder=" ...")


def _vocabulary(manifest: Manifest) -> str:
    sizes = {name: f"{info.vocab_size:,}" for name, info in manifest.tokenizers.items()}
    if manifest.joint_vocabulary:
        return f"{'joint ' if len(sizes) > 1 else ''}vocabulary {next(iter(sizes.values()))}"
    return "vocabularies " + ", ".join(f"{size} {name}" for name, size in sizes.items())
