"""Score a model on a split of its dataset: one JSON line.

python -m trainer.evaluate --model_dir=MODEL --split=test
python -m trainer.evaluate --model_dir=MODEL --split=valid --checkpoint=all
python -m trainer.evaluate --model_dir=MODEL --compare_with=other_system.txt
python -m trainer.evaluate --model_dir=MODEL --perturb
python -m trainer.evaluate --model_dir=MODEL --source=talks.en --reference=talks.de
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from absl import flags

from common.console import error_text, warn
from common.errors import UsageError, no_arguments, run_app
from common.files import check_output, write_output
from configs.schema import DecodeConfig
from data_pipeline.dataset.examples import read_raw_text
from data_pipeline.dataset.manifest import Manifest, load_manifest
from data_pipeline.dataset.perturbation import KINDS, perturb
from trainer.checkpoints import files, saver
from trainer.checkpoints import model_dir as model_directory
from trainer.checkpoints.model_dir import LoadedModel
from trainer.decoding import comparison
from trainer.decoding.options import search_options
from trainer.decoding.scoring import bleu_tokenizer, score, translate_lines
from trainer.decoding.search import Decoder
from trainer.distributed.strategy import all_gpus
from trainer.metrics import boards
from trainer.split_scores import SplitScorer, check_dataset
from trainer.tasks.base import Scores

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Model directory.", required=True)
_SPLIT = flags.DEFINE_string("split", "test", "Split to score: valid or test.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "best",
    "best, latest, a checkpoint's path, or all: one line for each, a table, "
    "and a curve in TensorBoard.",
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Dataset directory; default: the training's.")
_BEAM_SIZE = flags.DEFINE_integer("beam_size", 0, "Beams; 0 for the configuration's.", 0)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Also write what the model produces to this file, a line each."
)
_TOKENIZED = flags.DEFINE_bool(
    "tokenized", False, "Also count BLEU as old papers did: on tokenised text, lower-cased."
)
_COMPARE = flags.DEFINE_string(
    "compare_with",
    None,
    "Another system's translations of the split, a line each: adds a paired "
    "bootstrap test of the difference in BLEU.",
)
_SOURCE = flags.DEFINE_string("source", None, "Score this file, not a split: a sentence a line.")
_REFERENCE = flags.DEFINE_string("reference", None, "Of --source: its translations, a line each.")
_PERTURB = flags.DEFINE_bool(
    "perturb",
    False,
    "Also score the split with its sources in capitals, with typos and so on: a table.",
)


class Evaluation:
    """Scores the checkpoints of one model directory on one split.

    Args:
        loaded: the model; its weights may change between two calls of `score`.
        manifest: of the dataset.
        split: to score.
    """

    def __init__(self, loaded: LoadedModel, manifest: Manifest, split: str):
        self._manifest = manifest
        self._decode = loaded.facts.config.decode
        self._references: list[str] = []
        self._other: list[str] | None = None
        if loaded.facts.config.task == "translation":
            self._references = read_raw_text(manifest, split)["target"]
            self._other = _other_lines(len(self._references))
        self._scorer = SplitScorer(loaded, manifest, split, quick=False)

    def score(self) -> tuple[dict[str, Any], Scores]:
        """Return the metrics of the model as it is now, and its outputs."""
        result, scores = self._scorer.score()
        metrics = {key: round(value, 5) for key, value in result.items()} | dict(scores.metrics)
        if self._references:
            language = self._manifest.languages["target"]
            given = scores.outputs, self._references, self._other
            metrics |= _more_scores(*given, language, self._decode)
        return metrics, scores


def _other_lines(count: int) -> list[str] | None:
    """Return the lines of --compare_with, of which there have to be `count`."""
    return _read_lines("compare_with", _COMPARE.value, count) if _COMPARE.value else None


def _more_scores(
    outputs: Sequence[str],
    references: Sequence[str],
    other: Sequence[str] | None,
    language: str,
    decode: DecodeConfig,
) -> dict[str, Any]:
    """Return how it was translated, and the scores that take longer."""
    more: dict[str, Any] = {
        "sentences": len(outputs),
        "beam_size": decode.beam_size,
        "length_penalty": decode.length_penalty,
    }
    more |= comparison.edit_rate(outputs, references)
    if _TOKENIZED.value:
        more |= comparison.tokenized_bleu(outputs, references)
    if other is not None:
        tokenizer = bleu_tokenizer(language)
        more |= comparison.paired_bootstrap(outputs, other, references, tokenizer)
    return more


def _read_lines(flag: str, path: str, count: int | None = None) -> list[str]:
    """Read a file of as many lines as there are sentences; None for any number above 0."""
    try:
        with tf.io.gfile.GFile(path) as file:
            text = file.read().removeprefix("\ufeff")
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        raise UsageError(f"--{flag}={path} cannot be read as UTF-8 text") from error
    if not text:
        raise UsageError(f"--{flag}={path} is empty")
    lines = text.removesuffix("\n").split("\n")
    if count is not None and len(lines) != count:
        raise UsageError(f"--{flag}={path}: {len(lines)} lines for {count} sentences")
    return lines


def _score_files(loaded: LoadedModel) -> tuple[dict[str, Any], list[str]]:
    """Return the scores of --source against --reference, and the translations."""
    if not (_SOURCE.value and _REFERENCE.value):
        raise UsageError("--source and --reference come together: a text and its translation")
    if loaded.facts.config.task != "translation":
        raise UsageError("--source and --reference are for translation models")
    if _PERTURB.value or _DATA_DIR.value:
        raise UsageError("--perturb and --data_dir are for splits, not for --source")
    sources = _read_lines("source", _SOURCE.value)
    references = _read_lines("reference", _REFERENCE.value, len(sources))
    other = _other_lines(len(references))
    decode, language = loaded.facts.config.decode, loaded.facts.languages["target"]
    decoder = Decoder(loaded.model, search_options(decode))
    tokenizers = (loaded.tokenizers["source"], loaded.tokenizers["target"])
    translated = translate_lines(sources, tokenizers, decoder)
    outputs = [one.text for one in translated]
    metrics = score(outputs, references, bleu_tokenizer(language))
    metrics["cut_translations"] = sum(one.cut for one in translated)
    return metrics | _more_scores(outputs, references, other, language, decode), outputs


def _load(which: str) -> LoadedModel:
    with all_gpus().scope():
        loaded = model_directory.load(_MODEL_DIR.value, which)
    if _BEAM_SIZE.value:
        decode = dataclasses.replace(loaded.facts.config.decode, beam_size=_BEAM_SIZE.value)
        loaded.facts.config.decode = decode
        loaded = dataclasses.replace(loaded, task=loaded.facts.task())
    return loaded


def _check(manifest: Manifest, loaded: LoadedModel) -> None:
    check_dataset(manifest, loaded.facts)
    if _SPLIT.value not in manifest.splits or _SPLIT.value == "train":
        held_out = sorted(set(manifest.splits) - {"train"})
        raise UsageError(
            f"--split={_SPLIT.value}: {manifest.directory} has these splits to score: "
            f"{', '.join(held_out)}"
        )
    if loaded.facts.config.task != "translation" and (
        _TOKENIZED.value or _COMPARE.value or _PERTURB.value
    ):
        raise UsageError("--tokenized, --compare_with and --perturb are for translation models")


def _perturbed_scores(loaded: LoadedModel, manifest: Manifest) -> dict[str, dict[str, float]]:
    """Return kind of perturbation -> "bleu" and "chrf" of the split's sentences perturbed so."""
    pairs = list(zip(*read_raw_text(manifest, _SPLIT.value).values(), strict=True))
    tokenizers = (loaded.tokenizers["source"], loaded.tokenizers["target"])
    decoder = Decoder(loaded.model, search_options(loaded.facts.config.decode))
    tokenizer = bleu_tokenizer(manifest.languages["target"])
    found = {}
    for kind in KINDS:
        changed = (perturb(pair, kind, "1", tokenizers[0].symbols) for pair in pairs)
        sources, references = zip(*changed, strict=True)
        translations = [one.text for one in translate_lines(sources, tokenizers, decoder)]
        scores = score(translations, references, tokenizer)
        found[kind] = {name: scores[name] for name in ("bleu", "chrf")}
    return found


def _perturbation_table(metrics: dict[str, Any]) -> str:
    lines = [f"{'sources':>22}{'BLEU':>8}{'':>8}{'chrF':>8}"]
    for kind, scores in {"as they are": metrics, **metrics["perturbed"]}.items():
        loss = scores["bleu"] - metrics["bleu"]
        lines.append(f"{kind:>22}{scores['bleu']:>8.2f}{loss:>+8.2f}{scores['chrf']:>8.2f}")
    return "\n".join(lines)


def _line(step: int, metrics: dict[str, Any]) -> str:
    return json.dumps({"split": _SPLIT.value, "step": step, **metrics})


def _evaluate_all(loaded: LoadedModel, evaluation: Evaluation) -> None:
    """Score every checkpoint: a JSON line each, then a table, and a curve in TensorBoard."""
    directory = os.path.join(_MODEL_DIR.value, "checkpoints")
    board = os.path.join(_MODEL_DIR.value, "tensorboard", f"evaluate-{_SPLIT.value}")
    try:
        writer = tf.summary.create_file_writer(board)
    except tf.errors.OpError as error:
        warn(f"{board} cannot be written: {error_text(error)}; there will be no curve")
        writer = tf.summary.create_noop_writer()
    rows: list[tuple[int, dict[str, Any]]] = []
    for step in files.steps(directory):
        try:
            found = saver.find(_MODEL_DIR.value, files.prefix(directory, step))
            saver.restore_model(loaded.model, found, loaded.facts.of_checkpoint())
        except UsageError as error:  # a run in progress deletes old ones
            warn(f"step {step:,} is left out: {error}")
            continue
        metrics, _ = evaluation.score()
        print(_line(step, metrics), flush=True)
        rows.append((step, metrics))
        with writer.as_default(step=step):
            for name, value in metrics.items():
                if name in loaded.task.BEST:
                    tf.summary.scalar(boards.tag_of(name), value)
    writer.close()
    if not rows:
        raise UsageError(f"{directory} has no checkpoint that can be scored")
    names = dict.fromkeys(("loss", *loaded.task.SCORES, loaded.facts.config.train.best_metric))
    print("".join(f"{name:>15}" for name in ("step", *names)), file=sys.stderr)
    for step, metrics in rows:
        cells = "".join(f"{metrics[name]:>15.4g}" for name in names)
        print(f"{step:>15,}{cells}", file=sys.stderr)


def main(argv: list[str]) -> None:
    """Load, score, print."""
    no_arguments(argv)
    if _OUTPUT.value:
        check_output(_OUTPUT.value)
    every = _CHECKPOINT.value == "all"
    if every and (_OUTPUT.value or _PERTURB.value):
        raise UsageError("--output and --perturb are for one checkpoint, not --checkpoint=all")
    if every and (_SOURCE.value or _REFERENCE.value):
        raise UsageError("--source and --reference are for one checkpoint, not --checkpoint=all")
    loaded = _load("latest" if every else _CHECKPOINT.value)
    if _SOURCE.value or _REFERENCE.value:
        metrics, outputs = _score_files(loaded)
        _write(outputs)
        facts = {"source": _SOURCE.value, "reference": _REFERENCE.value, "step": loaded.step}
        print(json.dumps({**facts, **metrics}), flush=True)
        return
    manifest = load_manifest(_DATA_DIR.value or loaded.facts.data_dir)
    _check(manifest, loaded)
    evaluation = Evaluation(loaded, manifest, _SPLIT.value)
    if every:
        _evaluate_all(loaded, evaluation)
        return
    metrics, scores = evaluation.score()
    _write(scores.outputs)
    if _PERTURB.value:
        metrics["perturbed"] = _perturbed_scores(loaded, manifest)
        print(_perturbation_table(metrics), file=sys.stderr)
    print(_line(loaded.step, metrics), flush=True)


def _write(outputs: Sequence[str]) -> None:
    if _OUTPUT.value:
        text = "".join(f"{line}\n" for line in outputs)
        write_output(_OUTPUT.value, text.encode("utf-8"))


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
