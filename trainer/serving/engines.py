"""What translates for the server: our own decoder or CTranslate2."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from common.errors import UsageError
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer.decoding.options import SearchOptions
from trainer.decoding.words import group_words, word_attention
from trainer.exporting import ctranslate2_engine

_REMOTE = "a remote export, and CTranslate2 reads only local files"
# File of a directory -> what that is.
_NOT_SERVED = {
    "saved_model.pb": "a SavedModel, which TensorFlow Serving serves",
    "model.safetensors": "an export for other programs",
    "model.bin": _REMOTE,
    f"{ctranslate2_engine.BEST}/model.bin": _REMOTE,
}


@dataclass(frozen=True)
class Attention:
    """Where each word of a translation looks.

    Attributes:
        source_words, target_words: of the sentence and of its translation.
        weights: [target words][source words], 0 to 1.
    """

    source_words: list[str]
    target_words: list[str]
    weights: list[list[float]]


@dataclass(frozen=True)
class Answer:
    """The translation of a sentence.

    Attributes:
        translation: empty for an empty sentence.
        score: the normalised log probability.
        cut: whether the sentence or its translation was too long, and was cut.
        attention: None if it was not asked for.
    """

    translation: str
    score: float
    cut: bool
    attention: Attention | None


class TranslationEngine(Protocol):
    """Translates sentences.

    Attributes:
        name: the model in a few words, for people.
    """

    name: str

    def translate(self, lines: Sequence[str], attention: bool) -> list[Answer]:
        """Translate each sentence, in order, with attention if it is asked for."""
        ...


def _attention(
    weights: np.ndarray,
    tokenizers: tuple[Tokenizer, Tokenizer],
    ids: tuple[Sequence[int], Sequence[int]],
) -> Attention:
    pieces = [one.pieces(part) for one, part in zip(tokenizers, ids, strict=True)]
    source, target = (
        list(one.decode(group_words(part, own)))
        for one, part, own in zip(tokenizers, ids, pieces, strict=True)
    )
    looks = word_attention(weights, *pieces)
    return Attention(source, target, [[round(float(x), 4) for x in row] for row in looks])


class OwnEngine:
    """Our own decoder.

    Args:
        models: one `trainer.model.transformer.Transformer`, or several as an ensemble.
        tokenizers: of the source and of the target.
        options: how to search.
        name: of the model, for people.
    """

    def __init__(self, models, tokenizers, options: SearchOptions, name: str):
        from trainer.decoding.forced import ForcedDecoder
        from trainer.decoding.search import Decoder

        self.name, self._tokenizers = name, tokenizers
        self._decoder, self._forced = Decoder(models, options), ForcedDecoder(models)

    def translate(self, lines: Sequence[str], attention: bool) -> list[Answer]:
        """Translate each sentence, in order, with attention if it is asked for."""
        from trainer.decoding.scoring import translate_lines

        found = translate_lines(lines, self._tokenizers, self._decoder)
        looks: list[Attention | None] = [None] * len(lines)
        if attention:
            sources = self._tokenizers[0].encode(lines)
            targets = [one.hypotheses[0].ids if one.hypotheses else [] for one in found]
            forced = self._forced.score(sources, targets)
            looks = [
                _attention(one.attention, self._tokenizers, (ids[: one.attention.shape[1] - 1], to))
                for one, ids, to in zip(forced, sources, targets, strict=True)
            ]
        return [
            Answer(
                one.text,
                one.hypotheses[0].score if one.hypotheses else 0.0,
                one.cut or one.source_cut,
                look,
            )
            for one, look in zip(found, looks, strict=True)
        ]


class CTranslate2Engine:
    """CTranslate2 on an exported model.

    Args:
        directory: of one precision.
        beam_size: 1 for greedy search; 0 for that of the export.
        threads: of the CPU; 0 for as many as CTranslate2 likes.
    """

    def __init__(self, directory: str, beam_size: int = 0, threads: int = 0):
        self._engine = ctranslate2_engine.Engine(directory, threads)
        self._beam_size = beam_size
        precision = os.path.basename(os.path.abspath(directory))
        self.name = f"{' to '.join(self._engine.languages.values())}, CTranslate2, {precision}"

    def translate(self, lines: Sequence[str], attention: bool) -> list[Answer]:
        """Translate each sentence, in order, with attention if it is asked for."""
        found = self._engine.translate(lines, self._beam_size, attention)
        return [
            Answer(one.text, one.score, one.cut or one.source_cut, self._attention(line, one))
            for line, one in zip(lines, found, strict=True)
        ]

    def _attention(self, line: str, one: ctranslate2_engine.Found) -> Attention | None:
        if one.attention is None:
            return None
        (ids,) = self._engine.tokenizers[0].encode([line])
        both = ids[: len(one.pieces[0])], self._engine.target_ids(one.pieces[1])
        return _attention(one.attention, self._engine.tokenizers, both)


def load_engine(model_dir: str, checkpoint: str, beam_size: int) -> TranslationEngine:
    """Return the engine for a directory.

    Args:
        model_dir: a model directory, or what trainer.export wrote with --format=ctranslate2: of
            all its precisions int8 is taken, unless the directory of one is named.
        checkpoint: best, latest or a path, of a model directory.
        beam_size: 0 for the configuration's.

    Raises:
        UsageError: the directory holds nothing that can translate.
    """
    if directory := ctranslate2_engine.find_export(model_dir):
        return CTranslate2Engine(directory, beam_size)
    from common.files import exists
    from trainer.checkpoints import model_dir as model_directory

    for name, problem in _NOT_SERVED.items():
        if exists(os.path.join(model_dir, name)):
            raise UsageError(
                f"{model_dir} is {problem}; name the model directory, or an export with "
                "--format=ctranslate2 on this machine's disk"
            )
    from trainer.decoding.options import search_options

    loaded = model_directory.load(model_dir, checkpoint, "translation")
    name = f"{' to '.join(loaded.facts.languages.values())}, step {loaded.step:,}"
    tokenizers = (loaded.tokenizers["source"], loaded.tokenizers["target"])
    options = search_options(loaded.facts.config.decode, beam_size)
    return OwnEngine([loaded.model], tokenizers, options, name)
