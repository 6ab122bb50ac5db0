"""Every variant of the model, trained on the same tokens: loss, speed and size as a table.

    python -m benchmarks.family --task=language_model
    python -m benchmarks.family --task=language_model --train=text:train.txt --valid=text:valid.txt
    python -m benchmarks.family --task=translation --steps=400

Each variant changes some fields of the task's small configuration (demo, char_lm or classifier).
Variants run one after the other; other work on the machine makes the speeds hard to compare, and
leaves the losses as they are.
"""

import contextlib
import os
import statistics
import sys
import tempfile
import time
from typing import Any

from absl import flags

from common.errors import UsageError, no_arguments, run_app
from configs import char_lm, classifier, demo, schema
from configs.schema import Config
from data_pipeline import job
from data_pipeline.dataset.manifest import Manifest

_CONFIGS = {"translation": demo, "language_model": char_lm, "classification": classifier}
VARIANTS: dict[str, dict[str, Any]] = {
    "as configured": {},
    "sinusoidal positions": {"model.positions": "sinusoidal"},
    "learned positions": {"model.positions": "learned"},
    "T5's biases": {"model.positions": "t5"},
    "rotary positions": {"model.positions": "rotary"},
    "ALiBi": {"model.positions": "alibi"},
    "no positions": {"model.positions": "none"},
    "post-norm": {"model.norm": "post"},
    "pre-norm": {"model.norm": "pre"},
    "DeepNorm": {"model.norm": "deepnorm"},
    "RMSNorm": {"model.norm_kind": "rms"},
    "ReLU": {"model.activation": "relu"},
    "GELU": {"model.activation": "gelu"},
    "SwiGLU (2/3 inner)": {"model.activation": "swiglu", "model.feed_forward": 2 / 3},
    "grouped queries (2 to 1)": {"model.kv_heads": 2},
    "one head of keys": {"model.kv_heads": 1},
    "QK-norm": {"model.qk_norm": True},
    "window of 32": {"model.attention_window": 32},
    "free embeddings": {"model.tied_embeddings": "none"},
    "shared layers": {"model.share_layers": True},
    "Lion": {"optimizer.name": "lion", "optimizer.learning_rate": 0.2},
    "Muon": {"optimizer.name": "muon"},
}
_SHARES = ("model.feed_forward", "optimizer.learning_rate")  # of what is configured

_TASK = flags.DEFINE_enum("task", "language_model", list(_CONFIGS), "What is learned.")
_TRAIN = flags.DEFINE_string("train", None, "SPEC of the text; default: the built-in text.")
_VALID = flags.DEFINE_string("valid", None, "SPEC of the validation text, with --train.")
_STEPS = flags.DEFINE_integer("steps", 200, "Steps of each variant.", 2)
_BATCH_TOKENS = flags.DEFINE_integer("batch_tokens", 4096, "Tokens of a step.", 1)
_VARIANTS = flags.DEFINE_list("variants", [], "Names of the variants; default: all.")


def config_of(task: str, variant: str, steps: int, batch_tokens: int) -> Config:
    """Return the small configuration of a task with the fields of a variant."""
    config = _CONFIGS[task].get_config()
    config.train.steps, config.train.batch_tokens = steps, batch_tokens
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, max(1, steps // 4))
    for name, value in VARIANTS[variant].items():
        group, field = name.split(".")
        section = getattr(config, group)
        if name in _SHARES:
            value = type(getattr(section, field))(getattr(section, field) * value)
        setattr(section, field, value)
    if config.optimizer.name == "adam":
        config.optimizer.weight_decay = 0.0
    schema.validate(config)
    return config


def prepare(config: Config, directory: str, train: str | None, valid: str | None) -> Manifest:
    """Make the dataset that all variants learn from."""
    from trainer.tasks.lookup import task_class

    own = config.prepare
    return job.prepare(
        job.Settings(
            train=(train or own.train,),
            valid=(valid or own.valid,),
            test=(),
            source_lang="en",
            target_lang="de",
            output_dir=directory,
            task=task_class(config.task).DATASET,
            documents="file" if train else "blank_lines",
            vocab_size=own.vocab_size,
            model_type=own.model_type,
            row_length=config.data.row_length,
        )
    )


def train(manifest: Manifest, config: Config) -> dict[str, float]:
    """Train all steps; return "nll" of the validation split, "speed", "parameters" and "flops"."""
    import tensorflow as tf

    from benchmarks import ours
    from trainer.input.distribution import distribute

    with tempfile.TemporaryDirectory() as model_dir:
        run = ours.build(config, manifest, model_dir)
        iterator, left = distribute(run.data, run.strategy, 0), config.train.steps
        unit = next(iter(run.task.RATES.values()))
        speeds: list[float] = []
        while left:
            steps = 1 if left == config.train.steps else min(left, config.train.steps_per_loop)
            began = time.perf_counter()
            tokens = float(run.steps.train(iterator, tf.constant(steps))[unit])
            speeds.append(tokens / (time.perf_counter() - began))
            left -= steps
        metrics = ours.validate(run, manifest)
        parameters = sum(variable.numpy().size for variable in run.model.trainable_variables)
    return {
        "nll": metrics["nll"],
        "speed": statistics.median(speeds[1:]),
        "parameters": parameters,
        "flops": run.flops_per_unit,
    }


def main(argv: list[str]) -> None:
    """Train one variant after the other, and print a line of the table for each."""
    no_arguments(argv)
    names = _VARIANTS.value or list(VARIANTS)
    if unknown := set(names) - set(VARIANTS):
        raise UsageError(f"--variants={','.join(unknown)}: the variants are {', '.join(VARIANTS)}")
    if (_TRAIN.value is None) != (_VALID.value is None):
        raise UsageError("--train and --valid go together")
    configs = {
        name: config_of(_TASK.value, name, _STEPS.value, _BATCH_TOKENS.value) for name in names
    }
    with tempfile.TemporaryDirectory() as directory:
        data_dir = os.path.join(directory, "data")
        with contextlib.redirect_stdout(sys.stderr):
            manifest = prepare(configs[names[0]], data_dir, _TRAIN.value, _VALID.value)
        print("| variant | validation nll | tokens/s | weights | MFLOPs a token |", flush=True)
        print("|---|---|---|---|---|", flush=True)
        for name, config in configs.items():
            found = train(manifest, config)
            print(
                f"| {name} | {found['nll']:.4f} | {found['speed']:,.0f} | "
                f"{found['parameters']:,.0f} | {found['flops'] / 1e6:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
