"""Our classifier beside a logistic regression on words: which of two corpora a half sentence is of.

    pip install -e '.[bench]'
    python -m benchmarks.classifier --first=a.en.gz --second=b.tsv.gz

Of every line, of a .tsv its first column, the first half of the words counts. Both learn from the
same texts, as many of either corpus. The result is one JSON line.
"""

import importlib.util
import json
import os
import tempfile
import time

import numpy as np
from absl import flags

from common.errors import UsageError, no_arguments, run_app
from configs import classifier
from data_pipeline import job
from data_pipeline.dataset.examples import LABEL, read_examples, read_raw_text
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.sources.text_files import read_lines

_FIRST = flags.DEFINE_string("first", None, "Text file, plain, .gz or .zst.", required=True)
_SECOND = flags.DEFINE_string("second", None, "The other one.", required=True)
_TEXTS = flags.DEFINE_integer("texts", 20_000, "Training texts of each.", 10)
_HELD_OUT = flags.DEFINE_integer("held_out", 1_000, "Texts of each to test on, and to choose by.")
_STEPS = flags.DEFINE_integer("steps", 400, "Of our training.", 1)


def half_sentences(path: str) -> list[str]:
    """Return the first half of the words of each different line of a file."""
    found: dict[str, None] = {}
    for block, _ in read_lines(path):
        for line in block.decode("utf-8").split("\n"):
            words = line.split("\t")[0].split()
            if len(words) > 1:
                found[" ".join(words[: (len(words) + 1) // 2])] = None
    return list(found)


def write_splits(directory: str, corpora: dict[str, list[str]], sizes: dict[str, int]) -> None:
    """Write NAME.tsv of each split: text, tab, label; a text of both corpora is left out."""
    texts = list(corpora.values())
    both = set(texts[0]) & set(texts[1])
    rng = np.random.default_rng(1)
    rows: dict[str, list[str]] = {split: [] for split in sizes}
    for label, lines in corpora.items():
        own = [line for line in lines if line not in both]
        order = rng.permutation(len(own))
        if len(own) < sum(sizes.values()):
            raise UsageError(
                f"the corpus {label} has {len(own):,} different texts, and {sum(sizes.values()):,} "
                "are asked for; lower --texts"
            )
        start = 0
        for split, size in sizes.items():
            rows[split] += [f"{own[i]}\t{label}\n" for i in order[start : start + size]]
            start += size
    for split, lines in rows.items():
        with open(os.path.join(directory, f"{split}.tsv"), "w", encoding="utf-8") as file:
            file.writelines(lines)


def prepare(directory: str) -> Manifest:
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
            vocab_size=4000,
            row_length=classifier.get_config().data.row_length,
        )
    )


def train_ours(manifest: Manifest, model_dir: str, steps: int) -> dict[str, float]:
    """Train configs/classifier.py; return the test scores of the best checkpoint."""
    from trainer import loop
    from trainer.checkpoints import model_dir as model_directory
    from trainer.distributed.strategy import make_strategy, use_xla
    from trainer.metrics.flops import Hardware
    from trainer.run import assemble
    from trainer.split_scores import SplitScorer

    config = classifier.get_config()
    config.train.steps = steps
    config.model.dropout = 0.2
    strategy, _ = make_strategy("one_device")
    compiles = use_xla("auto", strategy)
    hardware = Hardware(1, "float32")
    run = assemble(
        config, manifest, model_dir, strategy, "float32", compiles, hardware, pictures=False
    )
    loop.train(run)
    loaded = model_directory.load(model_dir, "best")
    metrics, scores = SplitScorer(loaded, manifest, "test", quick=False).score()
    return {"accuracy": metrics["accuracy"], "macro_f1": scores.metrics["macro_f1"]}


def train_words(manifest: Manifest, directory: str) -> dict[str, float]:
    """Fit a logistic regression on counts of words; its strength is chosen on the valid split."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    with open(os.path.join(directory, "train.tsv"), encoding="utf-8") as file:
        texts, labels = zip(*(line.rstrip("\n").split("\t") for line in file), strict=True)
    vectorizer = CountVectorizer(token_pattern=r"(?u)\w+|[^\w\s]")
    words = vectorizer.fit_transform(texts)
    best: tuple[float, LogisticRegression] | None = None
    valid, test = (read_raw_text(manifest, split) for split in ("valid", "test"))
    for strength in (0.1, 0.3, 1.0, 3.0, 10.0):
        model = LogisticRegression(C=strength, max_iter=1000).fit(words, labels)
        accuracy = model.score(vectorizer.transform(valid["text"]), valid[LABEL])
        if best is None or accuracy > best[0]:
            best = accuracy, model
    assert best
    guesses = best[1].predict(vectorizer.transform(test["text"]))
    return {
        "accuracy": float(np.mean(guesses == np.array(test[LABEL]))),
        "macro_f1": float(f1_score(test[LABEL], guesses, average="macro")),
    }


def main(argv: list[str]) -> None:
    """Make the labelled set, train both, print."""
    no_arguments(argv)
    if importlib.util.find_spec("sklearn") is None:
        raise UsageError("scikit-learn is not installed; pip install -e '.[bench]' brings it")
    sizes = {"train": _TEXTS.value, "valid": _HELD_OUT.value, "test": _HELD_OUT.value}
    corpora = {"first": half_sentences(_FIRST.value), "second": half_sentences(_SECOND.value)}
    with tempfile.TemporaryDirectory() as directory:
        write_splits(directory, corpora, sizes)
        manifest = prepare(directory)
        result: dict[str, object] = {"texts": len(read_examples(manifest, "train"))}
        began = time.monotonic()
        result["words"] = train_words(manifest, directory)
        result["words_seconds"] = round(time.monotonic() - began, 1)
        began = time.monotonic()
        result["ours"] = train_ours(manifest, os.path.join(directory, "model"), _STEPS.value)
        result["ours_seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    run_app(main)
