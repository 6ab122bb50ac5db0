"""The model directory: what a run is (config.json, tokenizers), and loading its model."""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from common.errors import UsageError
from common.files import passing_errors, write_bytes
from configs import schema
from data_pipeline.dataset.manifest import Manifest, TokenizerInfo
from data_pipeline.dataset.tokenizer import Tokenizer, load_tokenizer
from trainer.checkpoints import saver as checkpoint
from trainer.checkpoints.files import Checkpoint, Facts
from trainer.tasks.base import Task
from trainer.tasks.translation import Translation

# May change between two starts of one run: they do not change what a good step computes.
_FREE = {
    "train.bad_steps",
    "train.loss_limit",
    "train.steps",
    "train.steps_per_loop",
    "train.micro_batches",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.keep_every_hours",
    "train.evaluate_every",
    "train.early_stopping_patience",
}


@dataclasses.dataclass
class RunFacts:
    """What config.json holds."""

    config: schema.Config
    precision: str
    data_dir: str
    data_fingerprint: str
    data: dict[str, Any]  # how it was made, to tell what differs where the fingerprint does
    source_lang: str
    target_lang: str
    source_tokenizer: TokenizerInfo
    target_tokenizer: TokenizerInfo
    joint_vocabulary: bool
    bos_id: int
    versions: dict[str, str]

    def tokenizers(self) -> dict[str, TokenizerInfo]:
        """Side -> its tokenizer."""
        return {"source": self.source_tokenizer, "target": self.target_tokenizer}

    def of_checkpoint(self) -> Facts:
        """The facts that a checkpoint of this run depends on."""
        facts: Facts = {"model": {}, "run": {}}
        for group, fields in schema.to_dict(self.config).items():
            for key, value in fields.items():
                name = f"{group}.{key}"
                if group == "model" and not key.endswith("dropout"):
                    facts["model"][name] = value
                elif group != "decode" and name not in _FREE:
                    facts["run"][name] = value
        for side, info in self.tokenizers().items():
            vocabulary = f"{info.vocab_size} pieces, sha256 {info.sha256[:12]}"
            facts["model"][f"{side} vocabulary"] = vocabulary
        facts["run"] |= {"precision": self.precision, "data fingerprint": self.data_fingerprint}
        return facts

    def task(self) -> Translation:
        """The task of the run; `UsageError` if the configuration does not fit the vocabularies."""
        return Translation(
            self.config,
            self.source_tokenizer.vocab_size,
            self.target_tokenizer.vocab_size,
            joint=self.joint_vocabulary,
            bos_id=self.bos_id,
        )


def facts_of(config: schema.Config, manifest: Manifest, precision: str) -> RunFacts:
    """The facts of a new run."""
    return RunFacts(
        config=config,
        precision=precision,
        data_dir=os.path.abspath(manifest.directory)
        if "://" not in manifest.directory
        else manifest.directory,
        data_fingerprint=manifest.fingerprint,
        data={
            **{f"{name} pairs": split.kept for name, split in manifest.splits.items()},
            **{f"{name} input": list(prints) for name, prints in manifest.inputs.items()},
            **manifest.settings,
        },
        source_lang=manifest.languages["source"],
        target_lang=manifest.languages["target"],
        source_tokenizer=manifest.tokenizers["source"],
        target_tokenizer=manifest.tokenizers["target"],
        joint_vocabulary=manifest.joint_vocabulary,
        bos_id=manifest.bos_id,
        versions={"tensorflow": tf.__version__, "keras": keras.__version__},
    )


def start(model_dir: str, facts: RunFacts, manifest: Manifest) -> None:
    """Makes the directory, or checks that the run in it is this one.

    Raises:
        UsageError: when the directory holds a run of another configuration, data or vocabulary.
    """
    if tf.io.gfile.exists(os.path.join(model_dir, "config.json")):
        _compare(model_dir, read_facts(model_dir), facts)
    if tf.io.gfile.exists(os.path.join(model_dir, "dataset.json")):
        raise UsageError(f"--model_dir={model_dir} is a dataset directory; name another one")
    contents = {}
    for info in set(manifest.tokenizers.values()):
        with tf.io.gfile.GFile(manifest.path(info), "rb") as file:
            contents[info.file] = file.read()
    # Last: without it the directory holds no run.
    contents["config.json"] = (json.dumps(dataclasses.asdict(facts), indent=2) + "\n").encode()
    try:
        tf.io.gfile.makedirs(model_dir)
        for name, content in contents.items():
            write_bytes(os.path.join(model_dir, name), content, alone=True)
    except passing_errors():
        raise
    except tf.errors.OpError as error:
        raise UsageError(f"--model_dir={model_dir} cannot be written: {error.message}") from error


def _compare(model_dir: str, old: RunFacts, new: RunFacts) -> None:
    other = "use another --model_dir, or delete this one to start afresh"
    for side, tokenizer in old.tokenizers().items():
        now = new.tokenizers()[side]
        if tokenizer.sha256 != now.sha256:
            raise UsageError(
                f"{model_dir} was trained with another {side} vocabulary ({tokenizer.vocab_size} "
                f"pieces, sha256 {tokenizer.sha256[:12]}) than {new.data_dir} has "
                f"({now.vocab_size}, {now.sha256[:12]}); {other}"
            )
    if old.data_fingerprint != new.data_fingerprint:
        changed = [
            f"{name} {old.data.get(name)!r} -> {new.data.get(name)!r}"
            for name in {**old.data, **new.data}
            if old.data.get(name) != new.data.get(name)
        ]
        raise UsageError(
            f"{model_dir} was trained on other data (fingerprint {old.data_fingerprint[:12]}, from "
            f"{old.data_dir}) than {new.data_dir} ({new.data_fingerprint[:12]}): "
            f"{', '.join(changed) or 'the same settings, but other text'}; {other}"
        )
    differences = [
        f"{group}.{key} {old_value!r} -> {getattr(getattr(new.config, group), key)!r}"
        for group, fields in schema.to_dict(old.config).items()
        for key, old_value in fields.items()
        if group != "decode"
        and f"{group}.{key}" not in _FREE
        and old_value != getattr(getattr(new.config, group), key)
    ]
    if old.precision != new.precision:
        differences.append(f"precision {old.precision} -> {new.precision}")
    if old.config.train.steps != new.config.train.steps and (
        new.config.optimizer.schedule in ("cosine", "linear")
    ):
        print(
            f"warning: the learning rate falls to 0 after step {new.config.train.steps:,} now, and "
            f"after {old.config.train.steps:,} before: it jumps",
            file=sys.stderr,
        )
    if differences:
        raise UsageError(
            f"{model_dir} holds a run with other settings: {'; '.join(differences)}; {other}"
        )


def read_facts(model_dir: str) -> RunFacts:
    """Reads config.json.

    Raises:
        UsageError: when `model_dir` is not a model directory of this version.
    """
    path = os.path.join(model_dir, "config.json")
    if not tf.io.gfile.exists(path):
        raise UsageError(
            f"{model_dir} is not a model directory: it has no config.json; trainer.main writes one"
        )
    try:
        with tf.io.gfile.GFile(path) as file:
            values: dict[str, Any] = json.loads(file.read())
        tokenizers = {
            name: TokenizerInfo(**values[name]) for name in ("source_tokenizer", "target_tokenizer")
        }
        config = schema.from_dict(values["config"])
        return RunFacts(**{**values, **tokenizers, "config": config})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} cannot be used: {error}; train into a new --model_dir") from error


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A trained model and what belongs to it.

    Attributes:
        model: with the weights of the checkpoint.
        task: what it has learned.
        tokenizers: sequence -> its tokenizer; one object for a joint vocabulary.
        facts: of the run.
        step: of the checkpoint.
    """

    model: keras.Model
    task: Task
    tokenizers: Mapping[str, Tokenizer]
    facts: RunFacts
    step: int


def load(model_dir: str, which: str) -> LoadedModel:
    """Load a trained model.

    Args:
        model_dir: written by trainer.main.
        which: "best", "latest", or the path of a checkpoint.

    Raises:
        UsageError: the directory or the checkpoint cannot be used.
    """
    facts = read_facts(model_dir)
    source = _load_tokenizer(model_dir, facts, facts.source_tokenizer)
    target = source
    if not facts.joint_vocabulary:
        target = _load_tokenizer(model_dir, facts, facts.target_tokenizer)
    keras.config.set_dtype_policy(facts.precision)
    task = facts.task()
    model = task.build_model()
    metric = facts.config.train.best_metric
    found = checkpoint.find(model_dir, which, metric, task.BEST[metric])
    checkpoint.restore_model(model, found, facts.of_checkpoint())
    return LoadedModel(model, task, {"source": source, "target": target}, facts, found.step)


def init_weights(model, source: str, facts: RunFacts) -> Checkpoint:
    """Sets the weights of a new run's model to those of another run.

    Args:
        model: built; call it in the scope of the strategy.
        source: a model directory, whose best checkpoint is taken, or the path of a checkpoint.
        facts: of the new run.

    Returns:
        the checkpoint.

    Raises:
        UsageError: when there is no such checkpoint, or its model has another shape or vocabulary.
    """
    try:
        if tf.io.gfile.exists(os.path.join(source, "config.json")):
            other = read_facts(source)
            metric = other.config.train.best_metric
            found = checkpoint.find(source, "best", metric, other.task().BEST[metric])
        else:
            found = checkpoint.find("", source)
        checkpoint.restore_model(model, found, facts.of_checkpoint())
    except UsageError as error:
        raise UsageError(f"--init_from={source}: {error}") from error
    return found


def _load_tokenizer(model_dir: str, facts: RunFacts, info: TokenizerInfo) -> Tokenizer:
    tokenizer = load_tokenizer(os.path.join(model_dir, info.file))
    if tokenizer.sha256 != info.sha256:
        raise UsageError(
            f"{model_dir}/{info.file} is not the one this model was trained with; copy it "
            f"again from {facts.data_dir}"
        )
    return tokenizer
