"""Translating with a model that was exported for CTranslate2; TensorFlow is not loaded."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import UsageError
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer.decoding.options import MAX_SOURCE, SearchOptions

FORMAT = 1
"""Of an export; a reader refuses any other."""

FACTS_FILE = "translation.json"
"""Beside the model: {"format", "languages", "step", "decode": `SearchOptions`, "tokenizers": side
-> SHA-256}."""

BEST = "int8"
"""Which of the precisions stands for the whole export."""

SIDES = ("source", "target")

POSITIONS = 2 * MAX_SOURCE
"""Rows of an export's table of positions: CTranslate2 fails beyond them."""

_NEVER = ("<pad>", "<unk>", "<s>")

# The OpenMP of CTranslate2 reads this when it is loaded. Its threads otherwise wait for each other
# in busy loops: where other programs use the CPUs too, that made float32 180 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@dataclass(frozen=True)
class Found:
    """A translation.

    Attributes:
        text: empty for an empty line.
        score: the normalised log probability.
        cut: whether the translation reached its longest length.
        source_cut: whether the line was longer than a source may be.
        pieces: of the source and of the translation, as SentencePiece writes them.
        attention: float32 [target pieces, source pieces]; None if it was not asked for.
    """

    text: str
    score: float
    cut: bool
    source_cut: bool
    pieces: tuple[list[str], list[str]]
    attention: np.ndarray | None


def find_export(directory: str) -> str | None:
    """Return the directory of a CTranslate2 model: this one, its int8, or None if neither is."""
    for place in (directory, os.path.join(directory, BEST)):
        if os.path.isfile(os.path.join(place, "model.bin")):
            return place
    return None


def supported(options: SearchOptions) -> tuple[SearchOptions, list[str]]:
    """Return the options without those that CTranslate2 lacks or counts in another way.

    It distributes the probability of a token that is not allowed over the others. For the special
    tokens that is next to nothing; for an n-gram rule or a minimal length it is not.

    Returns:
        the options, and what was left out, as NAME=VALUE.
    """
    possible = dataclasses.replace(
        options,
        coverage_penalty=0.0,
        repetition_penalty=1.0,
        no_repeat_ngram=0,
        min_length=min(options.min_length, 1),
    )
    before, after = (dataclasses.asdict(one) for one in (options, possible))
    return possible, [f"{name}={value}" for name, value in before.items() if value != after[name]]


class Engine:
    """Translates with an exported model, as `trainer.decoding` would.

    Args:
        directory: written by trainer.export, of one precision.
        threads: of the CPU; 0 for as many as CTranslate2 likes.

    Attributes:
        options: how the model searches.
        languages: side -> its language.
        tokenizers: of the source and of the target.

    Raises:
        UsageError: the directory cannot be used, or CTranslate2 is not installed.
    """

    def __init__(self, directory: str, threads: int = 0):
        try:
            import ctranslate2
        except ImportError as error:
            raise UsageError(
                f"{directory} needs CTranslate2; pip install -c requirements/extras.txt "
                "-e '.[export]' brings it"
            ) from error
        facts = _read_facts(directory)
        try:
            decode = {**facts["decode"], "suppressed": ()}
            self.options = SearchOptions(**decode)
            self.languages: dict[str, str] = facts["languages"]
            source, target = (
                _tokenizer(directory, side, facts["tokenizers"][side]) for side in SIDES
            )
            self.tokenizers = source, target
            self._translator = ctranslate2.Translator(
                directory, device="cpu", intra_threads=threads
            )
        except (RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
            raise UsageError(f"{directory} cannot be used: {error}; export it again") from error
        pieces = target.pieces(range(target.vocab_size))
        self._ids = {piece: number for number, piece in enumerate(pieces)}

    def target_ids(self, pieces: Sequence[str]) -> list[int]:
        """Return the token ids of a translation's pieces."""
        return [self._ids[piece] for piece in pieces]

    def translate(
        self, lines: Sequence[str], beam_size: int = 0, attention: bool = False
    ) -> list[Found]:
        """Translate each line, in order.

        Args:
            lines: the text.
            beam_size: 1 for greedy search; 0 for that of the export.
            attention: whether to return where the translation looks.
        """
        source, target = self.tokenizers
        ids = source.encode(lines)
        sources = [source.pieces(line[: MAX_SOURCE - 1]) for line in ids]
        limits = [min(self.options.longest(len(pieces) + 1), POSITIONS) for pieces in sources]
        beam_size = beam_size or self.options.beam_size
        results = self._search(sources, max(limits, default=1), beam_size, attention)
        # CTranslate2 has one limit for a batch. What is longer than its own is searched again, so
        # that the neighbours change nothing.
        for number, (pieces, _, _) in enumerate(results):
            if len(pieces) >= limits[number]:
                (results[number],) = self._search(
                    [sources[number]], limits[number], beam_size, attention
                )
        texts = target.decode([self.target_ids(pieces) for pieces, _, _ in results])
        found = []
        for text, whole, line, limit, (pieces, score, looks) in zip(
            texts, ids, sources, limits, results, strict=True
        ):
            if not line:
                found.append(Found("", 0.0, False, False, ([], []), None))
                continue
            cut, source_cut = len(pieces) >= limit, len(whole) >= MAX_SOURCE
            text = " ".join(text.split())
            found.append(Found(text, score, cut, source_cut, (line, pieces), looks))
        return found

    def _search(
        self, sources: list[list[str]], limit: int, beam_size: int, attention: bool
    ) -> list[tuple[list[str], float, Any]]:
        """Return the pieces, score and attention of each best translation."""
        options = self.options
        gnmt = options.normalization == "gnmt"
        results = self._translator.translate_batch(
            sources,
            beam_size=beam_size,
            # CTranslate2 knows no GNMT penalty. But a beam finds the same hypotheses whatever
            # their ranks in the end; without any penalty it would stop at the first one.
            num_hypotheses=beam_size if gnmt else 1,
            length_penalty=1.0 if gnmt else options.length_penalty,
            min_decoding_length=min(options.min_length, limit),
            max_decoding_length=limit,
            max_batch_size=64,
            return_scores=True,
            return_attention=attention,
            suppress_sequences=[[piece] for piece in _NEVER],
        )
        best = []
        for result in results:
            scores = result.scores
            if gnmt:
                lengths = [min(len(pieces) + 1, limit) for pieces in result.hypotheses]
                scores = [
                    score * length / ((5 + length) / 6) ** options.length_penalty
                    for score, length in zip(scores, lengths, strict=True)
                ]
            place = int(np.argmax(scores))
            looks = np.asarray(result.attention[place], np.float32) if attention else None
            best.append((result.hypotheses[place], scores[place], looks))
        return best


def _read_facts(directory: str) -> dict[str, Any]:
    path = os.path.join(directory, FACTS_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            facts = json.load(file)
    except FileNotFoundError as error:
        raise UsageError(
            f"{directory} has no {FACTS_FILE}: trainer.export did not write it, or an older "
            "version did; export the model again"
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}; export the model again") from error
    found = facts.get("format") if isinstance(facts, dict) else None
    if found != FORMAT:
        raise UsageError(
            f"{directory} has the format {found}, and this version reads {FORMAT}; export the "
            "model again"
        )
    return facts


def _tokenizer(directory: str, side: str, sha256: str) -> Tokenizer:
    with open(os.path.join(directory, f"{side}.model"), "rb") as file:
        tokenizer = Tokenizer(file.read())
    if tokenizer.sha256 != sha256:
        raise ValueError(f"{side}.model belongs to another model")
    return tokenizer
