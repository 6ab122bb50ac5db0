"""What an export answers, against what this project's own commands answer.

Every check runs when a model is exported, on the first texts of the validation split. It returns
Markdown for the model card, and raises `UsageError` where the export is not to be used.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from common.errors import UsageError
from data_pipeline.dataset.examples import read_raw_text
from data_pipeline.dataset.manifest import load_manifest
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer.checkpoints.model_dir import LoadedModel
from trainer.decoding.generation import TextGenerator
from trainer.decoding.options import SamplingOptions, SearchOptions, search_options
from trainer.decoding.scoring import Tokenizers, bleu_tokenizer, score, translate_lines
from trainer.decoding.search import Decoder

_SAME = 0.99  # share of answers that must be the same; the rest are ties, decided by rounding
_BATCH = 32  # texts of a request to a SavedModel
_PROMPTS, _PROMPT_CHARACTERS, _LENGTH = 10, 20, 32  # of a language model


def read_texts(loaded: LoadedModel, data_dir: str, count: int) -> dict[str, list[str]]:
    """Return the first `count` texts of the validation split, and what belongs to them.

    Raises:
        UsageError: the dataset is not there, or belongs to another task.
    """
    if not count:
        return {}
    try:
        manifest = load_manifest(data_dir or loaded.facts.data_dir)
    except UsageError as error:
        raise UsageError(
            f"{error}. Export and model are compared on the dataset: --data_dir names it, and "
            "--compare=0 compares nothing"
        ) from error
    if manifest.task != loaded.facts.data_task:
        raise UsageError(
            f"--data_dir={manifest.directory} is a dataset for {manifest.task}, and the model is "
            f"for {loaded.facts.data_task}"
        )
    return {name: lines[:count] for name, lines in read_raw_text(manifest, "valid").items()}


def check_saved_model(
    loaded: LoadedModel, directory: str, texts: dict[str, list[str]]
) -> list[str]:
    """Compare a SavedModel with the model that it was made of.

    Args:
        loaded: the model.
        directory: of the SavedModel.
        texts: of `read_texts`.
    """
    import tensorflow as tf

    saved = tf.saved_model.load(directory)
    if loaded.facts.config.task == "translation":
        return _check_translations(loaded, saved, texts["source"])
    if loaded.facts.config.task == "language_model":
        return _check_language_model(loaded, saved, texts["text"])
    return _check_classes(loaded, saved, texts["text"])


def _ask(function: Any, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the answers to all texts."""
    import tensorflow as tf

    parts = [
        function(tf.constant(texts[start : start + _BATCH]))
        for start in range(0, len(texts), _BATCH)
    ]
    return {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}


def _require(same: float, what: str) -> None:
    if same < _SAME:
        raise UsageError(
            f"only {same:.1%} of the {what} are those of this project's own commands; nothing was "
            "exported. This is a bug; please report it with the model's config.json"
        )


def _check_translations(loaded: LoadedModel, saved: Any, lines: list[str]) -> list[str]:
    tokenizers = (loaded.tokenizers["source"], loaded.tokenizers["target"])
    decoder = Decoder(loaded.model, search_options(loaded.facts.config.decode))
    ours = [one.text for one in translate_lines(lines, tokenizers, decoder)]
    found = [text.decode("utf-8") for text in _ask(saved.translate, lines)["translation"]]
    same = sum(a == b for a, b in zip(ours, found, strict=True)) / len(lines)
    _require(same, "translations")
    return [f"Of {len(lines):,} validation sentences, {same:.1%} are translated alike."]


def _check_classes(loaded: LoadedModel, saved: Any, texts: list[str]) -> list[str]:
    classifier = loaded.task.classifier(loaded.model, loaded.tokenizers)  # type: ignore[attr-defined]
    ours, _ = classifier.probabilities(texts)
    found = _ask(saved.classify, texts)
    expected = np.array([loaded.facts.labels[row.argmax()].encode("utf-8") for row in ours])
    same = float(np.mean(found["label"] == expected))
    _require(same, "labels")
    difference = np.abs(found["probabilities"] - ours).max()
    return [
        f"Of {len(texts):,} validation texts, {same:.1%} get the same label; probabilities differ "
        f"by {difference:.1e} at most."
    ]


def _check_language_model(loaded: LoadedModel, saved: Any, texts: list[str]) -> list[str]:
    import tensorflow as tf

    tokenizer, room = loaded.tokenizers["text"], loaded.facts.config.data.longest_row
    generator = TextGenerator(loaded.model, SamplingOptions(top_k=1), room)
    length = min(_LENGTH, room // 2)
    # A SavedModel stops at the end of the row; our generator would go on.
    prompts = [_beginning(text, tokenizer, room - length - 1) for text in texts[:_PROMPTS]]
    ours = []
    for ids in tokenizer.encode(prompts):
        new = generator.generate(np.array([ids], np.int32), length)[0]
        ours += tokenizer.decode([[*ids, *new[new > 0]]])
    arguments = tf.constant(length), tf.constant(0.0), tf.constant(1)
    found = saved.generate(tf.constant(prompts), *arguments)["text"].numpy()
    same = np.mean([text == part.decode("utf-8") for text, part in zip(ours, found, strict=True)])
    _require(float(same), "greedy continuations")
    return [
        f"{len(prompts)} beginnings of validation texts were continued by {length} tokens at a "
        f"temperature of 0: {same:.1%} alike."
    ]


def _beginning(text: str, tokenizer: Tokenizer, most: int) -> str:
    """Return the beginning of a text, of no more than so many tokens."""
    text = text[:_PROMPT_CHARACTERS]
    while len(tokenizer.encode([text])[0]) > most:
        text = text[:-1]
    return text


class CTranslate2Check:
    """Compares exports of several precisions with our own decoder, in a table.

    Args:
        loaded: a translation model.
        texts: of `read_texts`.
        options: how the exports search.
    """

    def __init__(self, loaded: LoadedModel, texts: dict[str, list[str]], options: SearchOptions):
        tokenizers: Tokenizers = (loaded.tokenizers["source"], loaded.tokenizers["target"])
        self._lines, self._references = texts["source"], texts["target"]
        self._tokenizer = bleu_tokenizer(loaded.facts.languages["target"])
        decoder = Decoder(loaded.model, options)
        translate_lines(self._lines, tokenizers, decoder)  # compiles
        began = time.monotonic()
        self._ours = translate_lines(self._lines, tokenizers, decoder)
        speed = len(self._lines) / (time.monotonic() - began)
        bleu = score([one.text for one in self._ours], self._references, self._tokenizer)
        self.table = [
            f"{len(self._lines):,} sentences of the validation split, beam {options.beam_size}, "
            f"{os.cpu_count()} CPUs of the machine that exported; {bleu['signature']}.",
            "",
            "| | BLEU | translations as ours | MB | sentences/s |",
            "|---|---|---|---|---|",
            f"| this project | {bleu['bleu']:.2f} | | | {speed:.1f} |",
        ]

    def add(self, name: str, directory: str, size: int) -> None:
        """Translate with an export, and add a line to the table.

        Args:
            name: the precision.
            directory: of the export.
            size: bytes of its weights.

        Raises:
            UsageError: in float32 the translations are others than ours.
        """
        from trainer.exporting.ctranslate2_engine import Engine

        engine, lines = Engine(directory), self._lines
        engine.translate(lines[:1])
        began = time.monotonic()
        found = [one.text for one in engine.translate(lines)]
        speed = len(lines) / (time.monotonic() - began)
        pairs = zip(self._ours, found, strict=True)
        # What was cut at its longest length is no translation: CTranslate2 may end it elsewhere.
        alike = [one.text == text for one, text in pairs if not one.cut]
        same = sum(alike) / max(1, len(alike))
        bleu = score(found, self._references, self._tokenizer)["bleu"]
        self.table.append(f"| {name} | {bleu:.2f} | {same:.1%} | {size / 1e6:.1f} | {speed:.1f} |")
        if name == "float32" and alike:
            _require(same, "translations")
