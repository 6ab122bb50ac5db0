"""Trains a Transformer on a dataset directory.

    python -m trainer.main --strategy=mirrored
    python -m trainer.main --strategy=mirrored --config=configs/transformer_base.py \
        --data_dir=DATA --model_dir=MODEL --config.train.steps=50000

The first prepares the built-in corpus and trains the demonstration. A model directory that holds a
run is continued. Exit codes: 0 done; 2 bad input; 42 stopped by a signal, saved, start me again.
"""

import os

import tensorflow as tf
from absl import flags, logging
from ml_collections import config_flags

from configs import schema
from data_pipeline.errors import UsageError, no_arguments, run_app
from data_pipeline.records import Manifest, load_manifest
from trainer import finish, loop
from trainer.strategy import STRATEGIES, make_strategy

PRECISIONS = ("float32", "mixed_bfloat16")
DEMO = "demo"
_DEMO_CONFIG = os.path.join(os.path.dirname(os.path.dirname(__file__)), "configs", "demo.py")

FLAGS = flags.FLAGS
_STRATEGY = flags.DEFINE_string("strategy", "mirrored", f"Where to run: {', '.join(STRATEGIES)}.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Dataset directory, from data_pipeline.main. Default: data/<config's name>."
)
_MODEL_DIR = flags.DEFINE_string(
    "model_dir", None, "Gets checkpoints, metrics and TensorBoard. Default: models/<config's name>."
)
_PRECISION = flags.DEFINE_enum("precision", "float32", PRECISIONS, "Dtype policy.")
_JIT = flags.DEFINE_enum(
    "jit_compile", "auto", ["auto", "on", "off"], "Compile the train step with XLA; auto is on."
)
_VIRTUAL = flags.DEFINE_integer(
    "num_virtual_devices", 0, "Split the CPU into so many replicas, to try things out.", 0
)


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parsing, with a one-line error for a configuration field that does not exist."""
    try:
        # Not at import: ml_collections reads the overrides here already.
        config_flags.DEFINE_config_file(
            "config", _DEMO_CONFIG, "File with get_config(); configs/schema.py lists the fields."
        )
        return FLAGS(argv)
    except KeyError as error:  # what ml_collections raises
        message = f"--config: {error.args[0]}; configs/schema.py lists the fields"
        raise UsageError(message) from error
    except SyntaxError as error:
        raise UsageError(f"--config: {error.filename} is not Python: {error}") from error


def prepare_demo_corpus(directory: str) -> None:
    """Makes the built-in corpus, unless it is there."""
    if not tf.io.gfile.exists(os.path.join(directory, "dataset.json")):
        from data_pipeline import pipeline  # here, because Beam takes seconds to import

        print(f"preparing the built-in corpus in {directory}", flush=True)
        settings = pipeline.Settings(
            train=("builtin:train",),
            valid=("builtin:valid",),
            test=("builtin:test",),
            source_lang="en",
            target_lang="de",
            output_dir=directory,
            vocab_size=4000,
        )
        pipeline.prepare(settings)


def open_dataset(data_dir: str | None, name: str) -> Manifest:
    """The dataset to train on; makes it if it is the built-in one."""
    directory = data_dir or os.path.join("data", name)
    if name == DEMO and data_dir is None:
        prepare_demo_corpus(directory)
    manifest = load_manifest(directory)
    for split in ("train", "valid"):
        if split not in manifest.splits:
            raise UsageError(
                f"{directory} has no {split} split, which training needs; give data_pipeline.main "
                f"--{split}=SPEC"
            )
    return manifest


def main(argv: list[str]) -> int:
    """Flags to configuration to run."""
    no_arguments(argv)
    logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every checkpoint it shards
    config = FLAGS.config
    config_file = config_flags.get_config_filename(FLAGS["config"])
    if not isinstance(config, schema.Config):
        raise UsageError(
            f"--config={config_file}: no such file, or its get_config() does "
            "not return a configs.schema.Config"
        )
    try:
        schema.validate(config)
    except ValueError as error:
        raise UsageError(str(error)) from error
    name = os.path.splitext(os.path.basename(config_file))[0]
    strategy, description = make_strategy(_STRATEGY.value, _VIRTUAL.value)
    manifest = open_dataset(_DATA_DIR.value, name)
    model_dir = _MODEL_DIR.value or os.path.join("models", name)
    print(
        f"tensorflow   {tf.__version__}\n"
        f"strategy     {_STRATEGY.value}: {description}\n"
        f"precision    {_PRECISION.value}, XLA {'off' if _JIT.value == 'off' else 'on'}",
        flush=True,
    )
    run = loop.Run(config, manifest, model_dir, strategy, _PRECISION.value, _JIT.value != "off")
    code = run.train()
    if code == 0:
        finish.report(run)
    return code


if __name__ == "__main__":
    run_app(main, parse_flags)
