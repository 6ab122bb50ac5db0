"""Translate lines of text: one translation a line, in order.

    python -m trainer.translate --model_dir=MODEL < in.txt > out.txt
    python -m trainer.translate --model_dir=MODEL --interactive
    python -m trainer.translate --model_dir=MODEL --json --n_best=3 --alignments < in.txt

A line that comes slowly, from a terminal or another program, is answered at once.
"""

import json
import sys
from typing import Any

from absl import flags

from common.errors import UsageError, no_arguments, run_app
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer.checkpoints import model_dir as model_directory
from trainer.decoding import scoring
from trainer.decoding.forced import ForcedDecoder
from trainer.decoding.lines import LineReader, split_sentences
from trainer.decoding.options import SamplingOptions
from trainer.decoding.risk import expected_chrf, least_risk
from trainer.decoding.search import Decoder, search_options
from trainer.decoding.words import word_alignment

_PIECE = 2_000  # lines: sorting by length wants many, progress wants few

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Model directory.", required=True)
_CHECKPOINT = flags.DEFINE_list(
    "checkpoint",
    ["best"],
    "best, latest, or a checkpoint's path; several, with commas, are an ensemble.",
)
_BEAM_SIZE = flags.DEFINE_integer("beam_size", 0, "Beams; 0 for the configuration's.", 0)
_INTERACTIVE = flags.DEFINE_bool(
    "interactive", False, "Show a prompt, and answer each line before the next is read."
)
_JSON = flags.DEFINE_bool("json", False, "Write one JSON object a line: text, score, cut.")
_N_BEST = flags.DEFINE_integer(
    "n_best", 1, 'With --json: so many of the beam\'s translations, under "alternatives".', 1
)
_ALIGNMENTS = flags.DEFINE_bool(
    "alignments", False, "With --json: pairs of source and target words, counted from 0."
)
_SPLIT = flags.DEFINE_bool(
    "split_sentences", False, "Translate each sentence of a line by itself, and join them again."
)
_MIN_LENGTH = flags.DEFINE_integer(
    "min_length", None, "Tokens of a translation, at least; default: the configuration's.", 0
)
_SUPPRESS = flags.DEFINE_multi_string(
    "suppress", [], "A piece of the target vocabulary that no translation holds; repeatable."
)
_PREFIX = flags.DEFINE_string("prefix", "", "What every translation begins with.")
_GROUPS = flags.DEFINE_integer("diverse_groups", 1, "Groups of a diverse beam search.", 1)
_DIVERSITY = flags.DEFINE_float(
    "diversity", 0.5, "What a group loses for a token that an earlier group has chosen.", 0.0
)
_SAMPLES = flags.DEFINE_integer(
    "samples",
    0,
    "Draw so many translations; the one that agrees best with the others, by chrF, "
    "is written (minimum Bayes risk). 0 to search for the likeliest.",
    0,
)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of --samples.", 0.01)
_TOP_K = flags.DEFINE_integer("top_k", 0, "Of --samples: among so many tokens; 0 for all.", 0)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Of --samples: among this share.", 0.01, 1.0)
_SEED = flags.DEFINE_integer("seed", 1, "Of --samples.", 0)


def _suppressed_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    ids = {
        piece: number for number, piece in enumerate(tokenizer.pieces(range(tokenizer.vocab_size)))
    }
    missing = [piece for piece in _SUPPRESS.value if piece not in ids]
    if missing:
        raise UsageError(
            f"--suppress={missing[0]}: the target vocabulary has no such piece; a piece that "
            "begins a word begins with \u2581"
        )
    return tuple(ids[piece] for piece in _SUPPRESS.value)


class Translator:
    """Lines to what is written for them, as the flags say."""

    def __init__(self):
        loaded = [model_directory.load(_MODEL_DIR.value, which) for which in _CHECKPOINT.value]
        first = loaded[0]
        if first.facts.config.task != "translation":
            raise UsageError(
                f"{_MODEL_DIR.value} holds no translation model, but one for "
                f"{first.facts.config.task}; trainer.generate is for language models, "
                "trainer.classify for classifiers"
            )
        models = [one.model for one in loaded]
        self._tokenizers = (first.tokenizers["source"], first.tokenizers["target"])
        changes: dict[str, Any] = {"suppressed": _suppressed_ids(self._tokenizers[1])}
        if _GROUPS.value > 1:
            changes |= {"groups": _GROUPS.value, "diversity": _DIVERSITY.value}
        if _MIN_LENGTH.value is not None:
            changes["min_length"] = _MIN_LENGTH.value
        try:
            options = search_options(first.facts.config.decode, _BEAM_SIZE.value, **changes)
        except ValueError as error:
            raise UsageError(f"--diverse_groups: {error}") from error
        sampling = None
        if _SAMPLES.value:
            sampling = SamplingOptions(
                _SAMPLES.value, _TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _SEED.value
            )
        self._decoder = Decoder(models, options, sampling=sampling)
        self._forced = ForcedDecoder(models) if _ALIGNMENTS.value else None
        self._space = " " if scoring.writes_spaces(first.facts.languages["target"]) else ""
        self.name = "-".join(first.facts.languages.values())
        self.name += f", step {', '.join(f'{one.step:,}' for one in loaded)}"

    def translate(self, lines: list[str]) -> tuple[list[str], list[scoring.Translated]]:
        """Return what to write for each line, and the translations."""
        if _SPLIT.value:
            split = [split_sentences(line) for line in lines]
            texts, found = self._translate_each([part for parts in split for part in parts])
            each = iter(texts)
            joined = [[next(each) for _ in parts] for parts in split]
            return [self._space.join(filter(None, parts)) for parts in joined], found
        return self._translate_each(lines)

    def _translate_each(self, lines: list[str]) -> tuple[list[str], list[scoring.Translated]]:
        prefixes = [_PREFIX.value] * len(lines) if _PREFIX.value else None
        found = scoring.translate_lines(lines, self._tokenizers, self._decoder, prefixes=prefixes)
        if _SAMPLES.value:
            texts = [one.texts[least_risk(one.texts)] if one.texts else "" for one in found]
        else:
            texts = [one.text for one in found]
        if not _JSON.value:
            return texts, found
        values = [self._value(*pair) for pair in zip(lines, texts, found, strict=True)]
        if self._forced:
            self._align(self._forced, lines, values)
        return [json.dumps(value, ensure_ascii=False) for value in values], found

    def _value(self, line: str, text: str, one: scoring.Translated) -> dict:
        value: dict = {"source": line, "translation": text, "cut": one.cut or one.source_cut}
        if not one.hypotheses:
            return value
        scores = [
            {"translation": text, "score": part.score, "log_probability": part.log_probability}
            for text, part in zip(one.texts, one.hypotheses, strict=True)
        ]
        if _SAMPLES.value:
            for score, expected in zip(scores, expected_chrf(one.texts), strict=True):
                score["expected_chrf"] = expected
            return {**value, "samples": scores}
        value["score"] = scores[0]["score"]
        value["log_probability"] = scores[0]["log_probability"]
        return {**value, "alternatives": scores[: _N_BEST.value]} if _N_BEST.value > 1 else value

    def _align(self, forced: ForcedDecoder, lines: list[str], values: list[dict]) -> None:
        source, target = self._tokenizers
        pairs = source.encode(lines), target.encode([value["translation"] for value in values])
        for value, looks, *ids in zip(values, forced.score(*pairs), *pairs, strict=True):
            value["alignment"] = word_alignment(
                looks.attention, source.pieces(ids[0]), target.pieces(ids[1])
            )


def main(argv: list[str]) -> None:
    """Load, translate, write."""
    no_arguments(argv)
    if not _JSON.value and (_ALIGNMENTS.value or _N_BEST.value > 1):
        raise UsageError("--n_best and --alignments need --json, which has room for them")
    if _SPLIT.value and (_JSON.value or _PREFIX.value):
        raise UsageError("--split_sentences is for text, without --json and --prefix")
    translator = Translator()
    _say(f"{translator.name}\n")
    prompts = _INTERACTIVE.value or sys.stdin.isatty()
    reader = LineReader(sys.stdin.fileno(), 1 if prompts else _PIECE)
    cut: list[scoring.Translated] = []
    _say("> " if prompts else "")
    for lines in reader.pieces():
        written, found = translator.translate(lines)
        sys.stdout.buffer.write("".join(f"{line}\n" for line in written).encode("utf-8"))
        sys.stdout.buffer.flush()
        cut += [one for one in found if one.cut or one.source_cut]
        _say("> " if prompts else f"\r{reader.lines:,} lines")
    _say("\n" if reader.lines else "")
    scoring.warn_of_cuts(cut)
    reader.warn_of_encoding()


def _say(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
