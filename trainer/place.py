"""Where a run executes: the flags that say so, its strategy, and meeting the other workers."""

import os
import sys
from collections.abc import Mapping
from typing import NoReturn

import keras
import tensorflow as tf
from absl import flags

from common.errors import UsageError
from configs import schema
from data_pipeline.dataset.manifest import load_manifest
from trainer.distributed import cluster, meeting
from trainer.distributed.cluster import CLUSTERS, Cluster
from trainer.distributed.heartbeat import Watch
from trainer.distributed.strategy import STRATEGIES, make_strategy
from trainer.runtime.signals import StopRequest
from trainer.runtime.startup import MEETING, PHASES

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define the flags of this file, for the command that calls this."""
    flags.DEFINE_string("strategy", "mirrored", f"Where to run: {', '.join(STRATEGIES)}.")
    flags.DEFINE_enum(
        "cluster",
        "auto",
        CLUSTERS,
        "Where --strategy=multi_worker reads who the workers are; auto: what the environment has.",
    )
    flags.DEFINE_float(
        "collective_timeout_seconds",
        None,
        "How long a worker waits for another one before it gives up; longer than the longest pause "
        "between steps, which is an evaluation. Default: forever.",
        lower_bound=1.0,
    )
    flags.DEFINE_float(
        "start_timeout_seconds",
        600.0,
        "How long the first workers wait for the last one before TensorFlow starts, and how long "
        "TensorFlow may take to connect them.",
        lower_bound=1.0,
    )
    flags.DEFINE_float(
        "worker_timeout_seconds",
        30.0,
        "A worker that shows no sign of life for this long is considered dead, and all end with "
        "code 1.",
        lower_bound=2.0,
    )
    flags.DEFINE_float(
        "stall_timeout_seconds",
        1800.0,
        "When no worker makes progress for this long, all end with code 1; longer than the longest "
        "compilation, preparation or loading of data.",
        lower_bound=2.0,
    )
    flags.DEFINE_string(
        "tpu", "local", "For --strategy=tpu: local, or a slice's name or grpc:// address."
    )
    flags.DEFINE_string("tpu_zone", None, "Zone of a TPU slice given by name.")
    flags.DEFINE_string("tpu_project", None, "Project of a TPU slice given by name.")
    flags.DEFINE_string(
        "tpu_type",
        None,
        "Accelerator type of the TPU, such as v5litepod-8; MFU is counted from it.",
    )
    flags.DEFINE_integer(
        "num_virtual_devices", 0, "Split the CPU into this many replicas, to try things out.", 0
    )


def make_watch(stop: StopRequest) -> Watch:
    """Return the watch over the other workers, which starts when they have met."""
    watch = Watch(FLAGS.worker_timeout_seconds, FLAGS.stall_timeout_seconds, lambda: stop.reason)
    stop.leaving = watch.stop
    return watch


def connect(
    config: schema.Config,
    data_dir: str | None,
    facts: Mapping[str, object],
    stop: StopRequest,
    watch: Watch,
) -> tuple[tf.distribute.Strategy, str]:
    """Meet the other workers, if there are any, and make the strategy.

    Args:
        config: the configuration, which all workers must share.
        data_dir: the dataset directory; None if this program makes it.
        facts: what else all workers must share, by the names of the flags.
        stop: learns of the signals that TensorFlow takes.
        watch: starts to watch over the other workers.

    Returns:
        The strategy, and a line that says what it runs on.

    Raises:
        UsageError: this machine cannot run the strategy, or the workers do not fit together.
        meeting.MissingWorkersError: not all workers came.
    """

    def meet(found: Cluster) -> None:
        if found.worker.count == 1:
            return
        shared = {
            **meeting.code_facts(),
            "TensorFlow": tf.__version__,
            "Keras": keras.__version__,
            **facts,
            "the dataset": _fingerprint(data_dir),
            **{f"--config.{name}": value for name, value in schema.flat(config).items()},
        }
        index, seconds = found.worker.index, FLAGS.start_timeout_seconds
        PHASES.end("TensorFlow")
        connections = meeting.meet(found.addresses, index, shared, seconds)
        PHASES.end(MEETING)
        watch.start(found.addresses, index, connections, seconds)

    if FLAGS.strategy == "multi_worker":
        print("waiting for all workers ...", flush=True)
    strategy, description = make_strategy(
        FLAGS.strategy,
        FLAGS.num_virtual_devices,
        cluster=FLAGS.cluster,
        timeout_seconds=FLAGS.collective_timeout_seconds,
        heartbeat_seconds=2 * FLAGS.worker_timeout_seconds,
        meet=meet,
        tpu=FLAGS.tpu,
        tpu_zone=FLAGS.tpu_zone,
        tpu_project=FLAGS.tpu_project,
    )
    if cluster.worker_of(strategy).count > 1:
        cluster.hear_signals(stop.request)
    return strategy, description


def leave(strategy: tf.distribute.Strategy, watch: Watch, code: int) -> NoReturn:
    """End this worker with an exit code, when the others are as far.

    Not by returning: all is saved, and TensorFlow's own end, with workers that leave one by one,
    can hang.
    """
    watch.leave()
    cluster.leave(strategy)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fingerprint(data_dir: str | None) -> str | None:
    """Return the dataset's, or why it cannot be read; None if this program makes the dataset."""
    if data_dir is None:
        return None
    try:
        return load_manifest(data_dir).fingerprint
    except UsageError as error:
        return str(error)
