"""Train a model on a dataset directory.

    python -m trainer.main --strategy=mirrored
    python -m trainer.main --strategy=mirrored --config=configs/transformer_base.py \\
        --data_dir=DATA --model_dir=MODEL --config.train.steps=50000

The first prepares the built-in corpus and trains the demonstration. --config=configs/char_lm.py and
--config=configs/classifier.py do the same for a language model and a classifier. A model directory
that holds a run is continued. Exit codes: 0 done; 1 a failure that may pass, or a bug; 2 bad input;
42 stopped on request with everything saved, start me again.
"""

import contextlib
import functools
import os
import sys

import tensorflow as tf
from absl import flags

import trainer
from common import lock
from common.console import error_text
from common.errors import UsageError, no_arguments, run_app
from common.files import passing_errors
from configs import flags as config_flags
from trainer import dataset, finish, loop, place, run
from trainer.distributed import cluster
from trainer.distributed.heartbeat import Watch
from trainer.distributed.strategy import check_paths, use_xla
from trainer.metrics.flops import Hardware
from trainer.metrics.live import live_table
from trainer.runtime import google_cloud, maintenance
from trainer.runtime.signals import StopRequest
from trainer.runtime.startup import PHASES

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Dataset directory, from data_pipeline.main. Default: data/<config's name>."
)
_MODEL_DIR = flags.DEFINE_string(
    "model_dir", None, "Gets checkpoints, metrics and TensorBoard. Default: models/<config's name>."
)
_PRECISION = flags.DEFINE_enum(
    "precision", "float32", PRECISIONS, "Dtype policy. mixed_float16 scales the loss dynamically."
)
_JIT = flags.DEFINE_enum(
    "jit_compile",
    "auto",
    ["auto", "on", "off"],
    "Compile the train step with XLA. auto: on GPUs; a CPU is faster without.",
)
_INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "Model directory, whose best checkpoint is taken, or path of a checkpoint: a new run starts "
    "with its weights, at step 0. A run that is continued ignores it.",
)
_SKIP_CORRUPT = flags.DEFINE_boolean(
    "skip_corrupt_data",
    False,
    "Train on where a block of the training data is damaged, with its rows left empty.",
)
_GRACE = flags.DEFINE_float(
    "grace_seconds",
    run.GRACE_SECONDS,
    "Time that the platform leaves between a signal and the end; more than saving takes.",
    lower_bound=1.0,
)

place.define_flags()
_PICTURES = flags.DEFINE_boolean(
    "pictures",
    True,
    "Let TensorBoard show attention, histograms and embeddings, in at most 2 % of the time.",
)
_PROFILE = flags.DEFINE_list(
    "profile_steps",
    [],
    "FIRST,LAST: profile the steps between them, for TensorBoard's profile plugin, xprof.",
)

flags.adopt_module_key_flags(place)  # so that --help lists them too
parse_flags = functools.partial(config_flags.parse, default=config_flags.DEMO_FILE)


def main(argv: list[str]) -> int:
    """Train, and end well on signals, on notices of Google Cloud and on lost workers."""
    no_arguments(argv)
    with StopRequest() as stop:
        if host := google_cloud.metadata_host():
            maintenance.watch(host, stop.request)
        watch = place.make_watch(stop)
        try:
            return _train(stop, watch)
        except tf.errors.OpError as error:
            watch.explain()
            if isinstance(error, passing_errors()):  # code 1: start again
                sys.exit(f"error: {error_text(error)}; start again, to go on from the checkpoint")
            raise
        except UsageError as error:
            watch.fail(str(error))
            raise


def _train(stop: StopRequest, watch: Watch) -> int:
    """Connect the workers, open the dataset, train and test; return the exit code."""
    name, config = config_flags.read()
    for holder in (_DATA_DIR, _MODEL_DIR, _INIT_FROM):
        if holder.value == "":
            raise UsageError(f"--{holder.name}= is empty; name a path, or leave the flag out")
    same = {"--precision": _PRECISION, "--jit_compile": _JIT, "--init_from": _INIT_FROM}
    shared = {flag: holder.value for flag, holder in same.items()}
    strategy, description = place.connect(config, _DATA_DIR.value, shared, stop, watch)
    worker = cluster.worker_of(strategy)
    compiles = use_xla(_JIT.value, strategy)
    PHASES.end("TensorFlow")
    data_dir = _DATA_DIR.value or os.path.join("data", name)
    model_dir = _MODEL_DIR.value or os.path.join("models", name)
    check_paths(flags.FLAGS.strategy, strategy, data_dir, model_dir)
    if config.prepare.train and _DATA_DIR.value is None:
        if worker.is_chief:
            dataset.prepare_own_text(config, data_dir)
        cluster.barrier(strategy)
    manifest = dataset.open_for_training(data_dir)
    print(
        f"tensorflow   {tf.__version__}\n"
        f"strategy     {flags.FLAGS.strategy}: {description}\n"
        f"precision    {_PRECISION.value}, XLA {'on' if compiles else 'off'}\n"
        f"allocator    {trainer.ALLOCATOR}",
        flush=True,
    )
    with lock.held(model_dir) if worker.is_chief else contextlib.nullcontext():
        made = run.assemble(
            config,
            manifest,
            model_dir,
            strategy,
            _PRECISION.value,
            compiles,
            Hardware(strategy.num_replicas_in_sync, _PRECISION.value, flags.FLAGS.tpu_type),
            skip_corrupt_data=_SKIP_CORRUPT.value,
            init_from=_INIT_FROM.value,
            stop=stop,
            grace_seconds=_GRACE.value,
            pictures=_PICTURES.value,
            profile_steps=profile_steps(_PROFILE.value, config.train.steps),
        )
        watch.saving = made.checkpoints.wait
        with live_table(config.train.steps, made.writer, made.reporter):
            code = loop.train(made)
        code = code or finish.report(
            made.task, model_dir, manifest, made.writer, strategy, made.stops, made.ledger
        )
    if worker.count > 1:
        place.leave(strategy, watch, code)
    return code


def profile_steps(texts: list[str], most: int) -> tuple[int, ...]:
    """Return the two steps of --profile_steps, or none.

    Raises:
        UsageError: they are not two rising numbers up to the last step.
    """
    if not texts:
        return ()
    steps = tuple(int(text) if text.isdecimal() else 0 for text in texts)
    if len(steps) != 2 or not 1 <= steps[0] < steps[1] <= most:
        raise UsageError(
            f"--profile_steps={','.join(texts)}: two rising steps up to the last, {most:,}, such "
            "as 10,20"
        )
    return steps


if __name__ == "__main__":
    run_app(main, parse_flags)
