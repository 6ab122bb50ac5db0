"""Tiny configurations, models and data, and the strategies that the tests run them under."""

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from configs import schema
from data_pipeline.dataset import tokenizer as tokenizers
from data_pipeline.dataset.examples import (
    Examples,
    describe_file,
    raw_text_name,
    shard_name,
    write_examples,
)
from data_pipeline.dataset.manifest import (
    Manifest,
    SequenceInfo,
    SplitInfo,
    TokenizerInfo,
    length_histogram,
    load_manifest,
)
from data_pipeline.dataset.tokenizer import load_tokenizer
from trainer.checkpoints.files import Keep
from trainer.checkpoints.saver import Checkpoints
from trainer.model.seeds import seeded_weights
from trainer.model.transformer import Transformer
from trainer.optim.loss_scale import LossScale
from trainer.optim.optimizer import Optimizer
from trainer.tasks.translation import Translation

VOCAB = 30
BOS, EOS = 2, 3

_TINY = {
    "model": {
        "width": 16,
        "feed_forward": 24,
        "heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "dropout": 0.0,
    },
    "data": {"row_length": 16},
    "optimizer": {"learning_rate": 0.01, "warmup_steps": 4},
    "train": {"steps": 20, "batch_tokens": 64, "seed": 1},
}


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., schema.Config]:
    """Returns a tiny configuration, without dropout, with groups of fields replaced."""

    def make(**groups) -> schema.Config:
        values = copy.deepcopy(_TINY)
        for group, fields in groups.items():
            values.setdefault(group, {}).update(fields)
        return schema.from_dict(values)

    return make


@pytest.fixture(scope="session")
def make_model(tiny_config) -> Callable[..., Transformer]:
    """Returns a tiny Transformer; every weight is random, biases and norms too.

    `source_vocab` makes a vocabulary of its own for the source.
    """

    def make(
        vocab: int = VOCAB,
        source_vocab: int | None = None,
        seed: int = 0,
        scale: float = 1.0,
        **model_fields,
    ) -> Transformer:
        config, joint = tiny_config(model=model_fields), source_vocab is None
        task = Translation(config, source_vocab or vocab, vocab, joint=joint)
        model = task.build_model()
        rng = np.random.default_rng(seed)
        for variable in model.trainable_variables:
            spread = scale * (0.1 if len(variable.shape) == 1 else variable.shape[-1] ** -0.5)
            noise = rng.normal(0.0, spread, variable.shape)
            variable.assign(noise + (1.0 if variable.name == "gamma" else 0.0))
        return model

    return make


@pytest.fixture(scope="session")
def make_pairs() -> Callable[..., Examples]:
    """Returns Examples of random tokens, of the given (source, target) lengths."""

    def make(lengths, seed: int = 0, vocab: int = VOCAB) -> Examples:
        rng = np.random.default_rng(seed)
        lengths = np.asarray(lengths, np.int64).reshape(-1, 2)
        tokens, offsets = {}, {}
        for side, name in enumerate(("source", "target")):
            offsets[name] = np.concatenate([[0], np.cumsum(lengths[:, side])])
            tokens[name] = rng.integers(4, vocab, offsets[name][-1]).astype(np.int32)
        return Examples(tokens, offsets)

    return make


@pytest.fixture(scope="session")
def one_device() -> tf.distribute.Strategy:
    """One replica."""
    return tf.distribute.OneDeviceStrategy("/device:CPU:0")


@pytest.fixture(scope="session")
def two_replicas() -> tf.distribute.Strategy:
    """Two replicas, on two of the virtual devices."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def _write_tokenizer(directory: Path, name: str, texts: list[str], size: int) -> TokenizerInfo:
    model = tokenizers.train(texts, vocab_size=size)
    (directory / name).write_bytes(model)
    return TokenizerInfo(name, tokenizers.Tokenizer(model).sha256, size, "unigram")


def _write_split(directory: Path, name: str, sides: tuple[list[str], list[str]], infos):
    """Writes the records and the raw text of a split; returns its part of the manifest."""
    ids, counts, raw_text = [], [], []
    for lang, texts, info in zip(("en", "de"), sides, infos, strict=True):
        path = directory / raw_text_name(name, lang)
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        raw_text.append(describe_file(str(path), path.name, len(texts)))
        ids.append(load_tokenizer(str(directory / info.file)).encode(texts))
        lengths = [len(sentence) for sentence in ids[-1]]
        counts.append(SequenceInfo.of_histogram(length_histogram(lengths)))
    path = directory / shard_name(name, 0, 1)
    encoded = [[text.encode() for text in side] for side in sides]
    names = ("source", "target")
    write_examples(
        str(path),
        dict(zip(("en", "de"), encoded, strict=True)),
        dict(zip(names, ids, strict=True)),
    )
    shard = describe_file(str(path), path.name, len(ids[0]))
    held_out = () if name == "train" else tuple(raw_text)
    sequences = dict(zip(names, counts, strict=True))
    return SplitInfo((shard,), len(ids[0]), len(ids[0]), {}, sequences, held_out)


def _write_dataset(directory: Path, joint: bool) -> Manifest:
    """A dataset directory of 40 training pairs and 8 for validation."""
    words = ["red", "old", "dog", "cat", "man", "sees", "alte", "Hund", "Katze", "Mann", "mag"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, rng.integers(2, 7))) for _ in range(96)]
    if joint:
        info = _write_tokenizer(directory, tokenizers.JOINT_FILE, texts, 280)
        infos = info, info
    else:
        infos = (
            _write_tokenizer(directory, tokenizers.SOURCE_FILE, texts[::2], 288),
            _write_tokenizer(directory, tokenizers.TARGET_FILE, texts[1::2], 281),
        )
    splits = {
        name: _write_split(directory, name, (lines[::2], lines[1::2]), infos)
        for name, lines in (("train", texts[:80]), ("valid", texts[80:]))
    }
    Manifest(
        str(directory),
        "translation",
        {"source": "en", "target": "de"},
        dict(zip(("source", "target"), infos, strict=True)),
        splits,
    ).save()
    return load_manifest(str(directory))


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A finished dataset directory with one vocabulary."""
    return _write_dataset(tmp_path_factory.mktemp("dataset"), joint=True)


@pytest.fixture(scope="session")
def manifest_of_two(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The same text, with a vocabulary of 288 for the source and one of 281 for the target."""
    return _write_dataset(tmp_path_factory.mktemp("dataset_of_two"), joint=False)


@pytest.fixture(scope="session")
def rows_of() -> Callable[..., dict[str, np.ndarray]]:
    """Returns `FEATURES` of sentences: a list of rows, each a list of (source, target) ids."""

    def make(rows, length: int) -> dict[str, np.ndarray]:
        names = ("source", "source_segments", "target", "target_segments")
        batch = {name: np.zeros([len(rows), length], np.int32) for name in names}
        for row, sentences in enumerate(rows):
            for side, name in enumerate(("source", "target")):
                start = 0
                for segment, sentence in enumerate(sentences, 1):
                    ids = [*sentence[side], EOS]
                    batch[name][row, start : start + len(ids)] = ids
                    batch[f"{name}_segments"][row, start : start + len(ids)] = segment
                    start += len(ids)
        return batch

    return make


@pytest.fixture
def seeded() -> Iterator[None]:
    """Keras' initial weights are the same in every run of the test."""
    with seeded_weights(0):
        yield


@dataclass
class Run:
    """What a checkpoint is made of."""

    model: keras.Model
    optimizer: Optimizer
    loss_scale: LossScale
    checkpoints: Checkpoints

    def values(self) -> list[np.ndarray]:
        """Of all variables except those of `checkpoints.state`."""
        modules = (self.model, self.optimizer, self.loss_scale)
        return [variable.numpy() for module in modules for variable in module.variables]

    def save(self, metrics=None) -> None:
        """Writes a checkpoint and waits for it."""
        self.checkpoints.save(metrics)
        self.checkpoints.wait()


@pytest.fixture
def make_run(tmp_path, make_model, tiny_config) -> Callable[..., Run]:
    """Returns a `Run` with `tmp_path` for its directory; all values depend on `seed`."""

    def make(seed: int, step: int = 0, keep=None, facts=None, directory=tmp_path, **fields):
        model = make_model(seed=seed)
        config = tiny_config(optimizer=fields).optimizer
        optimizer = Optimizer(config, 10, model.trainable_variables)
        rng = np.random.default_rng(seed)
        for variable in [*itertools.chain(*optimizer.slots.values()), *optimizer.averages]:
            variable.assign(rng.random(variable.shape))
        optimizer.iterations.assign(step)
        optimizer.updates.assign(100 + seed)
        loss_scale = LossScale(dynamic=True)
        loss_scale.scale.assign(seed * 12345.678)
        loss_scale.good_steps.assign(1000 + seed)
        checkpoints = Checkpoints(
            str(directory), model, optimizer, loss_scale, keep or Keep(), facts
        )
        return Run(model, optimizer, loss_scale, checkpoints)

    return make
