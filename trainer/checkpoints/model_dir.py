"""The model directory: what a run is (config.json, tokenizers), and loading its model."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from common.console import warn
from common.errors import UsageError
from common.files import storage_errors, write_bytes
from configs import schema
from data_pipeline.dataset.manifest import Manifest, TokenizerInfo
from data_pipeline.dataset.tokenizer import Tokenizer, load_tokenizer
from trainer.checkpoints import saver as checkpoint
from trainer.checkpoints.files import Checkpoint, Facts, check_path
from trainer.tasks.base import DataFacts, Task
from trainer.tasks.lookup import make_task, resolve

# May change between two starts of one run: they do not change what a good step computes.
_FREE = {
    "model.attention_block",
    "train.replay_every",
    "train.shard_optimizer",
    "train.bad_steps",
    "train.loss_limit",
    "train.steps",
    "train.steps_per_loop",
    "train.step_times",
    "train.micro_batches",
    "train.remat",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.keep_every_hours",
    "train.average_checkpoints",
    "train.evaluate_every",
    "train.early_stopping_patience",
}


# Groups that change nothing in what is trained: how to decode, and how to make the dataset, whose
# fingerprint says what it is.
_OUTSIDE = ("decode.", "prepare.")


_COMMANDS = {"translation": "translate", "language_model": "generate", "classification": "classify"}


@dataclasses.dataclass
class RunFacts:
    """What config.json holds.

    Attributes:
        config: the configuration, with nothing left open.
        precision: a Keras dtype policy.
        data_dir: the dataset directory.
        data_fingerprint: of the dataset.
        data: how the dataset was made, to tell what differs if its fingerprint does.
        data_task: the task that the dataset was made for.
        languages: sequence -> its language.
        tokenizers: sequence -> its tokenizer.
        labels: names of the classes; () without labels.
        bos_id: the token that opens a sequence.
        eos_id: the token that closes one.
        versions: of the libraries.
        label_counts: label -> training examples; empty without labels.
        started: Unix time of the first start.
    """

    config: schema.Config
    precision: str
    data_dir: str
    data_fingerprint: str
    data: dict[str, Any]
    data_task: str
    languages: dict[str, str]
    tokenizers: dict[str, TokenizerInfo]
    labels: tuple[str, ...]
    bos_id: int
    eos_id: int
    versions: dict[str, str]
    label_counts: dict[str, int] = dataclasses.field(default_factory=dict)
    started: float = 0.0

    @property
    def joint_vocabulary(self) -> bool:
        """Whether all sequences share one vocabulary."""
        return len(set(self.tokenizers.values())) == 1

    def of_checkpoint(self) -> Facts:
        """Return the facts that a checkpoint of this run depends on."""
        facts: Facts = {"model": {}, "run": {}}
        for name, value in schema.flat(self.config).items():
            if name in _FREE:
                continue
            if name.startswith("model.") and not name.endswith("dropout"):
                facts["model"][name] = value
            elif not name.startswith(_OUTSIDE):
                facts["run"][name] = value
        for name, info in self.tokenizers.items():
            vocabulary = f"{info.vocab_size} pieces, sha256 {info.sha256[:12]}"
            facts["model"][f"{name} vocabulary"] = vocabulary
        facts["model"]["labels"] = list(self.labels)
        facts["run"] |= {"precision": self.precision, "data fingerprint": self.data_fingerprint}
        return facts

    def task(self) -> Task:
        """Return the task of the run.

        Raises:
            UsageError: the configuration does not fit the dataset.
        """
        return make_task(
            self.config,
            DataFacts(
                task=self.data_task,
                vocab_sizes={name: info.vocab_size for name, info in self.tokenizers.items()},
                joint_vocabulary=self.joint_vocabulary,
                labels=self.labels,
                label_counts=self.label_counts,
            ),
        )


def facts_of(
    config: schema.Config, manifest: Manifest, precision: str, fingerprint: str = ""
) -> RunFacts:
    """Return the facts of a new run.

    Args:
        config: the configuration.
        manifest: of the dataset.
        precision: a Keras dtype policy.
        fingerprint: of all training data, if there is more than the dataset's.

    Raises:
        UsageError: the configuration names a task or a metric that does not exist.
    """
    directory = manifest.directory
    return RunFacts(
        config=resolve(config),
        precision=precision,
        data_dir=directory if "://" in directory else os.path.abspath(directory),
        data_fingerprint=fingerprint or manifest.fingerprint,
        data={
            **{f"{name} pairs": split.kept for name, split in manifest.splits.items()},
            **{f"{name} input": list(prints) for name, prints in manifest.inputs.items()},
            **manifest.settings,
        },
        data_task=manifest.task,
        languages=dict(manifest.languages),
        tokenizers=dict(manifest.tokenizers),
        labels=manifest.labels,
        bos_id=manifest.bos_id,
        eos_id=manifest.eos_id,
        versions={"tensorflow": tf.__version__, "keras": keras.__version__},
        label_counts=dict(manifest.split("train").labels),
    )


def start(model_dir: str, facts: RunFacts, manifest: Manifest) -> None:
    """Make the directory, or check that the run in it is this one.

    Raises:
        UsageError: the directory holds a run of another configuration, data or vocabulary.
    """
    check_path(model_dir)
    if tf.io.gfile.exists(os.path.join(model_dir, "config.json")):
        before = read_facts(model_dir)
        _compare(model_dir, before, facts)
        facts.started = before.started or facts.started
    if tf.io.gfile.exists(os.path.join(model_dir, "dataset.json")):
        raise UsageError(f"--model_dir={model_dir} is a dataset directory; name another one")
    contents = {}
    for info in set(manifest.tokenizers.values()):
        with tf.io.gfile.GFile(manifest.path(info), "rb") as file:
            contents[info.file] = file.read()
    # Last: without it the directory holds no run.
    contents["config.json"] = (json.dumps(dataclasses.asdict(facts), indent=2) + "\n").encode()
    with storage_errors(f"--model_dir={model_dir} cannot be written"):
        tf.io.gfile.makedirs(model_dir)
        for name, content in contents.items():
            write_bytes(os.path.join(model_dir, name), content, alone=True)


def _compare(model_dir: str, old: RunFacts, new: RunFacts) -> None:
    other = "use another --model_dir, or delete this one to start afresh"
    for name, tokenizer in old.tokenizers.items():
        now = new.tokenizers.get(name)
        if now and tokenizer.sha256 != now.sha256:
            raise UsageError(
                f"{model_dir} was trained with another {name} vocabulary ({tokenizer.vocab_size} "
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
    now_fields = schema.flat(new.config)
    differences = [
        f"{name} {value!r} -> {now_fields[name]!r}"
        for name, value in schema.flat(old.config).items()
        if value != now_fields[name] and name not in _FREE and not name.startswith(_OUTSIDE)
    ]
    if old.precision != new.precision:
        differences.append(f"precision {old.precision} -> {new.precision}")
    if old.config.train.steps != new.config.train.steps and (
        new.config.optimizer.schedule in ("cosine", "linear")
    ):
        warn(
            f"the learning rate falls to 0 after step {new.config.train.steps:,} now, and "
            f"after {old.config.train.steps:,} before: it jumps"
        )
    if differences:
        raise UsageError(
            f"{model_dir} holds a run with other settings: {'; '.join(differences)}; {other}"
        )


def read_facts(model_dir: str) -> RunFacts:
    """Read config.json.

    Raises:
        UsageError: `model_dir` is not a model directory of this version.
    """
    check_path(model_dir)
    path = os.path.join(model_dir, "config.json")
    if not tf.io.gfile.exists(path):
        raise UsageError(
            f"{model_dir} is not a model directory: it has no config.json; trainer.main writes one"
        )
    try:
        with tf.io.gfile.GFile(path) as file:
            values: dict[str, Any] = json.loads(file.read())
        values["config"] = schema.from_dict(values["config"])
        values["tokenizers"] = {
            name: TokenizerInfo(**info) for name, info in values["tokenizers"].items()
        }
        values["labels"] = tuple(values["labels"])
        return RunFacts(**values)
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
        strategy: whose devices have copies of the weights.
        metrics: of the validation split, at this checkpoint; empty if it was not evaluated.
    """

    model: keras.Model
    task: Task
    tokenizers: Mapping[str, Tokenizer]
    facts: RunFacts
    step: int
    strategy: tf.distribute.Strategy
    metrics: Mapping[str, float]


def load(model_dir: str, which: str, task_name: str = "") -> LoadedModel:
    """Load a trained model, under the strategy whose scope this is called in.

    Args:
        model_dir: written by trainer.main.
        which: "best", "latest", or the path of a checkpoint.
        task_name: the task that it must have learned; "" for any.

    Raises:
        UsageError: the directory or the checkpoint cannot be used, or it is for another task.
    """
    facts = read_facts(model_dir)
    if task_name and facts.config.task != task_name:
        fitting = _COMMANDS.get(facts.config.task)
        raise UsageError(
            f"{model_dir} holds a model for {facts.config.task}, and this command needs one for "
            f"{task_name}{f'; take trainer.{fitting}' if fitting else ''}"
        )
    loaded = {
        info: _load_tokenizer(model_dir, facts, info) for info in set(facts.tokenizers.values())
    }
    tokenizers = {name: loaded[info] for name, info in facts.tokenizers.items()}
    keras.config.set_dtype_policy(facts.precision)
    task = facts.task()
    model = task.build_model()
    metric = facts.config.train.best_metric
    found = checkpoint.find(model_dir, which, metric, task.BEST[metric])
    checkpoint.restore_model(model, found, facts.of_checkpoint())
    strategy = tf.distribute.get_strategy()
    return LoadedModel(model, task, tokenizers, facts, found.step, strategy, found.metrics)


def find_weights(source: str, facts: RunFacts) -> Checkpoint:
    """Return the checkpoint whose weights a new run starts with.

    Args:
        source: a model directory, whose best checkpoint is taken, or the path of a checkpoint.
        facts: of the new run.

    Raises:
        UsageError: there is no such checkpoint, or its model has another shape or vocabulary.
    """
    try:
        if tf.io.gfile.exists(os.path.join(source, "config.json")):
            other = read_facts(source)
            metric = other.config.train.best_metric
            found = checkpoint.find(source, "best", metric, other.task().BEST[metric])
        else:
            found = checkpoint.find_path(source, "a model directory or a path")
        checkpoint.check_model(found, facts.of_checkpoint())
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
