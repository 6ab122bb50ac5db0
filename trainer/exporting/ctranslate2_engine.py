"""Translating with a model that was exported for CTranslate2; TensorFlow is not loaded."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import UsageError
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer.decoding.options import MAX_SOURCE

_NEVER = ("<pad>", "<unk>", "<s>")
_SIDES = ("source", "target")


@dataclass(frozen=True)
class Found:
    """A translation.

    Attributes:
        text: empty for an empty line.
        score: the log probability, divided by a power of the length.
        cut: whether it reached the longest length.
        pieces: of the source and of the translation, as SentencePiece writes them.
        attention: float32 [target pieces, source pieces]; None if it was not asked for.
    """

    text: str
    score: float
    cut: bool
    pieces: tuple[list[str], list[str]]
    attention: np.ndarray | None


def is_exported(directory: str) -> bool:
    """Return whether this is the directory of one CTranslate2 model."""
    return os.path.isfile(os.path.join(directory, "model.bin"))


class Engine:
    """Translates with an exported model, as `trainer.decoding` would.

    Args:
        directory: written by trainer.export, of one precision.
        threads: of the CPU; 0 for as many as CTranslate2 likes.

    Raises:
        UsageError: the directory cannot be used, or CTranslate2 is not installed.
    """

    def __init__(self, directory: str, threads: int = 0):
        try:
            import ctranslate2
        except ImportError as error:
            raise UsageError(
                f"{directory} needs CTranslate2; pip install 'transformer-pipeline[export]' "
                "brings it"
            ) from error
        try:
            self._translator = ctranslate2.Translator(
                directory, device="cpu", intra_threads=threads
            )
            self.tokenizers = tuple(
                _tokenizer(os.path.join(directory, f"{side}.model")) for side in _SIDES
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise UsageError(f"{directory} cannot be used: {error}; export it again") from error
        target = self.tokenizers[1]
        pieces = target.pieces(range(target.vocab_size))
        self._ids = {piece: number for number, piece in enumerate(pieces)}

    def target_ids(self, pieces: Sequence[str]) -> list[int]:
        """Return the token ids of a translation's pieces."""
        return [self._ids[piece] for piece in pieces]

    def translate(
        self,
        lines: Sequence[str],
        beam_size: int,
        length_penalty: float,
        most: int,
        attention: bool = False,
    ) -> list[Found]:
        """Translate each line, in order.

        Args:
            lines: the text.
            beam_size: 1 for greedy search.
            length_penalty: scores are divided by length ** this.
            most: tokens of a translation, at most.
            attention: whether to return where the translation looks.
        """
        source, target = self.tokenizers
        sources = [source.pieces(ids[: MAX_SOURCE - 1]) for ids in source.encode(lines)]
        most = min(most, MAX_SOURCE)
        results = self._translator.translate_batch(
            sources,
            beam_size=beam_size,
            length_penalty=length_penalty,
            max_decoding_length=most,
            max_batch_size=64,
            return_scores=True,
            return_attention=attention,
            suppress_sequences=[[piece] for piece in _NEVER],
        )
        translations = [result.hypotheses[0] for result in results]
        texts = target.decode([self.target_ids(pieces) for pieces in translations])
        found = []
        for text, *pieces, result in zip(texts, sources, translations, results, strict=True):
            if not pieces[0]:
                found.append(Found("", 0.0, False, ([], []), None))
                continue
            looks = np.asarray(result.attention[0], np.float32) if attention else None
            cut = len(pieces[1]) >= most
            both = (pieces[0], pieces[1])
            found.append(Found(" ".join(text.split()), result.scores[0], cut, both, looks))
        return found


def _tokenizer(path: str) -> Tokenizer:
    with open(path, "rb") as file:
        return Tokenizer(file.read())
