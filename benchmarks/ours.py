"""This repository's trainer as a contender, on packed rows."""

import contextlib
import io
import math
import tempfile
import time

import keras
import tensorflow as tf

from benchmarks.comparison import Meter, Setting
from trainer.distributed.strategy import make_strategy, use_xla
from trainer.input.distribution import distribute
from trainer.metrics import flops
from trainer.run import Run, assemble


def build(setting: Setting, model_dir: str) -> Run:
    """Return the run that `trainer.main --strategy=one_device` would make, without its output."""
    precision = setting.precision
    strategy, _ = make_strategy("one_device")
    jit_compile = use_xla(setting.variant, strategy)
    hardware = flops.Hardware(strategy.num_replicas_in_sync, precision)
    with contextlib.redirect_stdout(io.StringIO()):
        return assemble(
            setting.config, setting.manifest, model_dir, strategy, precision, jit_compile, hardware
        )


def train(setting: Setting, meter: Meter) -> None:
    """Train in calls of several steps, as the trainer's loop does, until the meter says stop."""
    with tempfile.TemporaryDirectory() as model_dir:
        run = build(setting, model_dir)
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
