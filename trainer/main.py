"""Trains a Transformer on a dataset directory.

    python -m trainer.main --strategy=mirrored
    python -m trainer.main --strategy=mirrored --config=configs/transformer_base.py \\
        --data_dir=DATA --model_dir=MODEL --config.train.steps=50000

The first prepares the built-in corpus and trains the demonstration. A model directory that holds a
run is continued. Exit codes: 0 done; 1 another worker is lost, or a bug; 2 bad input; 42 stopped by
a signal, saved, start me again.
"""

import contextlib
import functools
import os
import sys

import keras
import tensorflow as tf
from absl import flags, logging

from common import lock
from common.console import error_text
from common.errors import UsageError, no_arguments, run_app
from common.files import passing_errors
from configs import flags as config_flags
from configs import schema
from data_pipeline.dataset.manifest import Manifest, load_manifest
from trainer import finish, loop, run
from trainer.distributed import cluster, meeting
from trainer.distributed.cluster import CLUSTERS
from trainer.distributed.heartbeat import Watch
from trainer.distributed.strategy import STRATEGIES, check_paths, make_strategy, use_xla
from trainer.metrics import flops
from trainer.runtime import google_cloud, maintenance
from trainer.runtime.signals import StopRequest
from trainer.runtime.startup import PHASES

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
DEMO = "demo"

_STRATEGY = flags.DEFINE_string("strategy", "mirrored", f"Where to run: {', '.join(STRATEGIES)}.")
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
    "Compile forward and backward with XLA. auto: on GPUs; a CPU is as fast without.",
)
_CLUSTER = flags.DEFINE_enum(
    "cluster",
    "auto",
    CLUSTERS,
    "Where --strategy=multi_worker reads who the workers are; auto: what the environment has.",
)
_TIMEOUT = flags.DEFINE_float(
    "collective_timeout_seconds",
    None,
    "A worker that waits so long for another one gives up; longer than the longest pause between "
    "steps, which is an evaluation. Default: it waits.",
    lower_bound=1.0,
)
_START_TIMEOUT = flags.DEFINE_float(
    "start_timeout_seconds",
    600.0,
    "How long the first workers wait for the last one before TensorFlow starts, and how long "
    "TensorFlow may take to connect them.",
    lower_bound=1.0,
)
_WORKER_TIMEOUT = flags.DEFINE_float(
    "worker_timeout_seconds",
    30.0,
    "A worker that shows no sign of life for so long is taken for dead, and all end with code 1.",
    lower_bound=2.0,
)
_STALL_TIMEOUT = flags.DEFINE_float(
    "stall_timeout_seconds",
    1800.0,
    "When no worker makes progress for so long, all end with code 1; longer than the longest "
    "compilation, preparation or loading of data.",
    lower_bound=2.0,
)
_TPU = flags.DEFINE_string(
    "tpu", "local", "For --strategy=tpu: local, or a slice's name or grpc:// address."
)
_TPU_ZONE = flags.DEFINE_string("tpu_zone", None, "Zone of a TPU slice given by name.")
_TPU_PROJECT = flags.DEFINE_string("tpu_project", None, "Project of a TPU slice given by name.")
_TPU_TYPE = flags.DEFINE_string(
    "tpu_type", None, "Accelerator type of the TPU, such as v5litepod-8; MFU is counted from it."
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
_VIRTUAL = flags.DEFINE_integer(
    "num_virtual_devices", 0, "Split the CPU into so many replicas, to try things out.", 0
)


parse_flags = functools.partial(config_flags.parse, default=config_flags.DEMO_FILE)


def prepare_demo_corpus(directory: str, row_length: int) -> None:
    """Makes the built-in corpus, unless it is there."""
    if not tf.io.gfile.exists(os.path.join(directory, "dataset.json")):
        from data_pipeline import pipeline

        print(f"preparing the built-in corpus in {directory}", flush=True)
        settings = pipeline.Settings(
            train=("builtin:train",),
            valid=("builtin:valid",),
            test=("builtin:test",),
            source_lang="en",
            target_lang="de",
            output_dir=directory,
            vocab_size=4000,
            row_length=row_length,
        )
        pipeline.prepare(settings)


def open_dataset(directory: str) -> Manifest:
    """The dataset to train on, which has to have what training needs."""
    manifest = load_manifest(directory)
    for split in ("train", "valid"):
        if split not in manifest.splits:
            raise UsageError(
                f"{directory} has no {split} split, which training needs; give data_pipeline.main "
                f"--{split}=SPEC"
            )
    return manifest


def main(argv: list[str]) -> int:
    """Flags to configuration to run, with signals and Google Cloud's notices taken care of."""
    with StopRequest() as stop:
        if host := google_cloud.metadata_host():
            maintenance.watch(host, stop.request)
        watch = Watch(_WORKER_TIMEOUT.value, _STALL_TIMEOUT.value, lambda: stop.reason)
        stop.leaving = watch.stop
        try:
            return _main(argv, stop, watch)
        except tf.errors.OpError as error:
            watch.explain()
            if isinstance(error, passing_errors()):  # code 1: start again
                sys.exit(f"error: {error_text(error)}; start again, to go on from the checkpoint")
            raise
        except UsageError as error:
            watch.fail(str(error))
            raise


def _meet(found: cluster.Cluster, config: schema.Config, watch: Watch) -> None:
    """Meets the other workers and watches over them from then on."""
    if found.worker.count == 1:
        return
    groups = schema.to_dict(config).items()
    facts = {
        **meeting.code_facts(),
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "--precision": _PRECISION.value,
        "--jit_compile": _JIT.value,
        "--init_from": _INIT_FROM.value,
        "the dataset": _fingerprint(),
        **{f"--config.{group}.{key}": v for group, values in groups for key, v in values.items()},
    }
    index, seconds = found.worker.index, _START_TIMEOUT.value
    connections = meeting.meet(found.addresses, index, facts, seconds)
    watch.start(found.addresses, index, connections, seconds)


def _fingerprint() -> str | None:
    """Of the dataset, or why there is none to be read; None where this program makes it."""
    if _DATA_DIR.value is None:
        return None
    try:
        return load_manifest(_DATA_DIR.value).fingerprint
    except UsageError as error:
        return str(error)


def _main(argv: list[str], stop: StopRequest, watch: Watch) -> int:
    no_arguments(argv)
    logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every checkpoint it shards
    name, config = config_flags.read()
    if _STRATEGY.value == "multi_worker":
        print("waiting for all workers ...", flush=True)
    strategy, description = make_strategy(
        _STRATEGY.value,
        _VIRTUAL.value,
        cluster=_CLUSTER.value,
        timeout_seconds=_TIMEOUT.value,
        heartbeat_seconds=2 * _WORKER_TIMEOUT.value,
        meet=lambda found: _meet(found, config, watch),
        tpu=_TPU.value,
        tpu_zone=_TPU_ZONE.value,
        tpu_project=_TPU_PROJECT.value,
    )
    if cluster.worker_of(strategy).count > 1:
        cluster.hear_signals(stop.request)
    compiles = use_xla(_JIT.value, strategy, _PRECISION.value)
    PHASES.end("TensorFlow")
    data_dir = _DATA_DIR.value or os.path.join("data", name)
    model_dir = _MODEL_DIR.value or os.path.join("models", name)
    check_paths(_STRATEGY.value, strategy, data_dir, model_dir)
    if name == DEMO and _DATA_DIR.value is None:
        if cluster.worker_of(strategy).is_chief:
            prepare_demo_corpus(data_dir, config.data.row_length)
        cluster.barrier(strategy)
    manifest = open_dataset(data_dir)
    print(
        f"tensorflow   {tf.__version__}\n"
        f"strategy     {_STRATEGY.value}: {description}\n"
        f"precision    {_PRECISION.value}, XLA {'on' if compiles else 'off'}",
        flush=True,
    )
    hardware = flops.Hardware(strategy.num_replicas_in_sync, _PRECISION.value, _TPU_TYPE.value)
    is_chief = cluster.worker_of(strategy).is_chief
    with lock.held(model_dir) if is_chief else contextlib.nullcontext():
        made = run.assemble(
            config,
            manifest,
            model_dir,
            strategy,
            _PRECISION.value,
            compiles,
            hardware,
            skip_corrupt_data=_SKIP_CORRUPT.value,
            init_from=_INIT_FROM.value,
            stop=stop,
            grace_seconds=_GRACE.value,
        )
        watch.saving = made.checkpoints.wait
        code = loop.train(made) or finish.report(
            made.task, model_dir, manifest, made.writer, made.worker, made.stops
        )
    if made.worker.count > 1:
        watch.leave()
        cluster.leave(strategy)
        # All is saved, and TensorFlow's own end, with workers that leave one by one, can hang.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    run_app(main, parse_flags)
