"""A small parallel corpus and datasets made of it."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.dataset.manifest import Manifest
from data_pipeline.job import prepare
from data_pipeline.settings import Settings

SOURCE_TEXT = "the a red old dog cat man house runs sees buys likes today slowly in on"
TARGET_TEXT = "der ein rote alte Hund Katze Mann Haus läuft sieht kauft mag heute in auf ß"
VOCAB_SIZE = 305


def make_sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Returns `count` distinct pairs of 3 to 12 words a side."""
    rng = random.Random(seed)
    pairs: dict[tuple[str, str], None] = {}
    while len(pairs) < count:
        words = rng.randint(3, 12)
        source = " ".join(rng.choices(SOURCE_TEXT.split(), k=words)) + "."
        target = " ".join(rng.choices(TARGET_TEXT.split(), k=words)) + "."
        pairs[source, target] = None
    return list(pairs)


def write_sides(directory: Path, name: str, pairs: list[tuple[str, str]]) -> str:
    """Writes NAME.en and NAME.de; returns the spec."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{name}.{lang}" for lang in ("en", "de")]
    for path, side in zip(paths, zip(*pairs, strict=True), strict=True):
        path.write_bytes("".join(f"{line}\n" for line in side).encode())
    return f"text:{paths[0]},{paths[1]}"


@pytest.fixture(scope="session")
def sentences() -> Callable[..., list[tuple[str, str]]]:
    """`make_sentences`, for tests: a conftest cannot be imported under every import mode."""
    return make_sentences


@pytest.fixture(scope="session")
def write_text() -> Callable[[Path, str, list[tuple[str, str]]], str]:
    """`write_sides`, for tests."""
    return write_sides


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Specs of a clean corpus: 600 training pairs, 20 for validation, 30 for the test."""
    directory = tmp_path_factory.mktemp("corpus")
    sizes = {"train": 600, "valid": 20, "test": 30}
    return {
        split: write_sides(directory, split, make_sentences(size, seed))
        for seed, (split, size) in enumerate(sizes.items())
    }


@pytest.fixture(scope="session")
def make_settings(corpus: dict[str, str]) -> Callable[..., Settings]:
    """Returns Settings of the corpus in `output_dir`, with fields replaced."""

    def make(output_dir: Path | str, **fields) -> Settings:
        values = {
            **{split: (spec,) for split, spec in corpus.items()},
            "source_lang": "en",
            "target_lang": "de",
            "output_dir": str(output_dir),
            "vocab_size": VOCAB_SIZE,
            "num_shards": 3,
        }
        return Settings(**{**values, **fields})

    return make


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, make_settings) -> Manifest:
    """A finished dataset; tests that damage it work on a copy."""
    return prepare(make_settings(tmp_path_factory.mktemp("data") / "dataset"))
