"""This repository's trainer, for benchmarks; and as a contender, on packed rows."""

import contextlib
import io
import math
import tempfile
import time

import keras
import tensorflow as tf

from benchmarks.comparison import Meter, Setting
from configs.schema import Config
from data_pipeline.dataset.examples import read_examples
from data_pipeline.dataset.manifest import Manifest
from trainer.distributed.strategy import make_strategy, use_xla
from trainer.input.distribution import distribute
from trainer.input.evaluation import evaluation_batches
from trainer.metrics.flops import Hardware
from trainer.run import Run, assemble
from trainer.validation import total_metrics


def build(
    config: Config,
    manifest: Manifest,
    model_dir: str,
    precision: str = "float32",
    jit_compile: str = "auto",
) -> Run:
    """Return the run that `trainer.main --strategy=one_device --nopictures` would make, silently.

    Args:
        config: validated.
        manifest: of the dataset directory.
        model_dir: where everything is written.
        precision: a Keras dtype policy.
        jit_compile: "auto", "on" or "off".
    """
    strategy, _ = make_strategy("one_device")
    compiles, hardware = use_xla(jit_compile, strategy), Hardware(1, precision)
    with contextlib.redirect_stdout(io.StringIO()):
        return assemble(
            config, manifest, model_dir, strategy, precision, compiles, hardware, pictures=False
        )


def validate(run: Run, manifest: Manifest) -> dict[str, float]:
    """Return the task's metrics of the validation split."""
    examples = read_examples(manifest, "valid")
    batches = evaluation_batches(examples, run.config, manifest.closing_id, run.strategy)
    return total_metrics(run.steps, batches, manifest.splits["valid"])


def train(setting: Setting, meter: Meter) -> None:
    """Train in calls of several steps, as the trainer's loop does, until the meter says stop."""
    with tempfile.TemporaryDirectory() as model_dir:
        run = build(setting.config, setting.manifest, model_dir, setting.precision, setting.variant)
        run.writer.flush()
    iterator = distribute(run.data, run.strategy, 0)

    def call(steps: int) -> tuple[int, float]:
        sums = run.steps.train(iterator, tf.constant(steps))
        tokens = float(sums["tokens"])
        return round(tokens), float(sums["loss"]) / tokens

    _, loss = call(1)
    meter.first_step(loss)
    meter.describe(
        parameters=sum(math.prod(v.shape) for v in run.model.trainable_variables),
        version=f"TensorFlow {tf.__version__}, Keras {keras.__version__}",
        fill_rate=run.data.fill_rate(),
        flops_per_token=run.flops_per_unit,
        peak_flops=run.hardware.peak(),
    )
    steps = 1
    while True:
        began = time.perf_counter()
        tokens, loss = call(steps)
        step_seconds = (time.perf_counter() - began) / steps
        if not meter.after_step(tokens, loss, steps):
            return
        # Calls have the trainer's size, except for a smaller one at the end of a round.
        left = round(meter.seconds_left / step_seconds)
        steps = 1 if meter.warming_up else min(max(1, left), setting.config.train.steps_per_loop)
