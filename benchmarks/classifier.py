"""Our classifier beside a logistic regression on words: which of two corpora a half sentence is of.

    pip install -e '.[bench]'
    python -m benchmarks.classifier --first=a-train.en.gz,a-test.en.gz --second=b.tsv.gz

Of every line, of a .tsv its first column, the first half of the words counts, once. As many of
either corpus, drawn at random, are for validation and for test; the rest is for training, where a
rare class counts as much as a common one. What both are tuned with was chosen on the validation
texts. The result is one JSON line: right guesses and their share of the test texts.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from common.errors import UsageError, no_arguments, run_app
from configs import classifier
from configs.schema import Config
from data_pipeline import job
from data_pipeline.dataset.examples import LABEL, read_examples, read_raw_text
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.sources.text_files import read_lines

_FIRST = flags.DEFINE_list("first", None, "Text files, plain, .gz or .zst.", required=True)
_SECOND = flags.DEFINE_list("second", None, "Those of the other corpus.", required=True)
_VALID = flags.DEFINE_integer("valid", 2_000, "Texts of each to choose by.", 1)
_TEST = flags.DEFINE_integer("test", 2_500, "Texts of each to test on.", 1)
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 4000, "Of our tokenizer.", 1)
_STEPS = flags.DEFINE_integer("steps", 400, "Of each of our trainings.", 1)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of ours.", 1)
_SPLIT_SEED = flags.DEFINE_integer("split_seed", 1, "Decides which texts are for testing.", 0)


def config_of(steps: int, seed: int) -> Config:
    """Return configs/classifier.py with what was tuned."""
    config = classifier.get_config()
    config.train.steps, config.train.seed = steps, seed
    config.train.class_weights, config.train.evaluate_every = "balanced", 100
    config.model.dropout, config.optimizer.ema_decay = 0.0, 0.99
    return config


def half_sentences(paths: Sequence[str]) -> list[str]:
    """Return the first half of the words of each different line of some files."""
    found: dict[str, None] = {}
    for path in paths:
        for block, _ in read_lines(path):
            try:
                text = block.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(f"{path} is no UTF-8 text") from error
            for line in text.split("\n"):
                words = line.split("\t")[0].split()
                if len(words) > 1:
                    found[" ".join(words[: (len(words) + 1) // 2])] = None
    return list(found)


def write_splits(directory: str, corpora: dict[str, list[str]], held_out: dict[str, int]) -> None:
    """Write train.tsv and those of the held out splits: text, tab, label.

    A text of both corpora is left out.

    Args:
        directory: to write into.
        corpora: label -> different texts.
        held_out: split -> texts of each corpus.
    """
    both = set.intersection(*map(set, corpora.values()))
    own = {label: [text for text in texts if text not in both] for label, texts in corpora.items()}
    smallest, asked = min(map(len, own.values())), sum(held_out.values())
    if smallest <= asked:
        raise UsageError(
            f"the smaller corpus has {smallest:,} texts of its own, and {asked:,} are to be held "
            "out; lower --valid and --test"
        )
    rng = np.random.default_rng(_SPLIT_SEED.value)
    rows: dict[str, list[str]] = {split: [] for split in (*held_out, "train")}
    for label, texts in own.items():
        order, start = rng.permutation(len(texts)), 0
        for split, size in {**held_out, "train": len(texts)}.items():
            rows[split] += [f"{texts[i]}\t{label}\n" for i in order[start : start + size]]
            start += size
    for split, lines in rows.items():
        with open(os.path.join(directory, f"{split}.tsv"), "w", encoding="utf-8") as file:
            file.writelines(lines)


def prepare(directory: str, vocab_size: int) -> Manifest:
    """Make the dataset of what `write_splits` wrote."""
    return job.prepare(
        job.Settings(
            train=(f"tsv:{directory}/train.tsv",),
            valid=(f"tsv:{directory}/valid.tsv",),
            test=(f"tsv:{directory}/test.tsv",),
            source_lang="en",
            target_lang="de",
            output_dir=os.path.join(directory, "data"),
            task="classification",
            vocab_size=vocab_size,
            row_length=classifier.get_config().data.row_length,
        )
    )


def train_ours(manifest: Manifest, model_dir: str, config: Config) -> int:
    """Train; return the right guesses of the best checkpoint on the test texts."""
    from benchmarks import ours
    from trainer import loop
    from trainer.checkpoints import model_dir as model_directory
    from trainer.split_scores import SplitScorer

    loop.train(ours.build(config, manifest, model_dir))
    loaded = model_directory.load(model_dir, "best")
    _, scores = SplitScorer(loaded, manifest, "test", quick=False).score()
    return int(np.trace(scores.metrics["confusion_matrix"]))


def train_words(manifest: Manifest, directory: str) -> dict[str, dict]:
    """Fit the regression on words, and on words and pairs of words."""
    from benchmarks.peers import bag_of_words

    with open(os.path.join(directory, "train.tsv"), encoding="utf-8") as file:
        texts, labels = zip(*(line.rstrip("\n").split("\t") for line in file), strict=True)
    valid, test = (read_raw_text(manifest, split) for split in ("valid", "test"))
    return {
        name: dataclasses.asdict(
            bag_of_words.fit(
                (texts, labels),
                (valid["text"], valid[LABEL]),
                (test["text"], test[LABEL]),
                longest,
            )
        )
        for name, longest in (("words", 1), ("words_and_pairs", 2))
    }


def main(argv: list[str]) -> None:
    """Make the labelled set, train both, print."""
    no_arguments(argv)
    if importlib.util.find_spec("sklearn") is None:
        raise UsageError("scikit-learn is not installed; pip install -e '.[bench]' brings it")
    corpora = {"first": half_sentences(_FIRST.value), "second": half_sentences(_SECOND.value)}
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(sys.stderr):
        write_splits(directory, corpora, {"valid": _VALID.value, "test": _TEST.value})
        manifest = prepare(directory, _VOCAB_SIZE.value)
        tested = manifest.splits["test"].kept
        result: dict[str, object] = {"texts": len(read_examples(manifest, "train"))}
        result["test_texts"] = tested
        began = time.monotonic()
        for name, found in train_words(manifest, directory).items():
            result[name] = {**found, "accuracy": round(found["test"] / tested, 4)}
        result["words_seconds"] = round(time.monotonic() - began, 1)
        began, right = time.monotonic(), []
        for seed in range(1, _SEEDS.value + 1):
            model_dir = os.path.join(directory, f"model-{seed}")
            right.append(train_ours(manifest, model_dir, config_of(_STEPS.value, seed)))
        mean = statistics.mean(right) / tested
        result["ours"] = {"test": right, "accuracy": round(mean, 4)}
        result["ours_seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
