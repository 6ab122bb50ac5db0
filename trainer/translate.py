"""Translate lines of text: one translation a line, in order.

    python -m trainer.translate --model_dir=MODEL --input=in.txt --output=out.txt
    python -m trainer.translate --model_dir=MODEL < in.txt > out.txt
    python -m trainer.translate --model_dir=MODEL --interactive
    python -m trainer.translate --model_dir=MODEL --json --n_best=3 --alignments < in.txt

A line that comes slowly, from a terminal or another program, is answered at once. --model_dir may
also be what trainer.export wrote with --format=ctranslate2; TensorFlow is not loaded then.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from absl import flags

from common.console import write_stdout
from common.errors import UsageError, no_arguments, run_app
from common.files import check_output, open_input, write_output
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer.decoding import scoring
from trainer.decoding.lines import LineReader, Progress, split_sentences
from trainer.decoding.options import SamplingOptions, search_options
from trainer.decoding.words import word_alignment
from trainer.exporting import ctranslate2_engine

if TYPE_CHECKING:  # an export does not need TensorFlow, whose import takes seconds
    from trainer.decoding.forced import ForcedDecoder

_BATCH_LINES = 2_000  # sorting by length wants many, a reader of the output wants few

_MODEL_DIR = flags.DEFINE_string(
    "model_dir", None, "Model directory, or an export for CTranslate2.", required=True
)
_INPUT = flags.DEFINE_string("input", None, "File to translate. Default: standard input.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "File to write, when all is translated. Default: standard output."
)
_CHECKPOINT = flags.DEFINE_list(
    "checkpoint",
    ["best"],
    "best, latest, or a checkpoint's path; several, with commas, are an ensemble.",
)
_BEAM_SIZE = flags.DEFINE_integer("beam_size", 0, "Beams; 0 for the configuration's.", 0, 1000)
_INTERACTIVE = flags.DEFINE_bool(
    "interactive", False, "Show a prompt, and answer each line before the next is read."
)
_JSON = flags.DEFINE_bool("json", False, "Write one JSON object a line: text, score, cut.")
_N_BEST = flags.DEFINE_integer(
    "n_best", 1, 'With --json: at most so many texts of the beam, under "alternatives".', 1
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
    "Draw this many translations; the one that agrees best with the others, by chrF, "
    "is written (minimum Bayes risk). 0 to search for the likeliest.",
    0,
    1000,
)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Temperature of --samples.", 0.01)
_TOP_K = flags.DEFINE_integer(
    "top_k", 0, "With --samples: draw among this many of the likeliest tokens; 0 for all.", 0
)
_TOP_P = flags.DEFINE_float(
    "top_p",
    1.0,
    "With --samples: draw among the likeliest tokens of this total probability.",
    0.01,
    1.0,
)
_SEED = flags.DEFINE_integer("seed", 1, "Random seed of --samples.", 0)
_NOT_FOR_EXPORTS = (
    *("checkpoint", "n_best", "min_length", "suppress", "prefix", "diverse_groups", "diversity"),
    *("samples", "temperature", "top_k", "top_p", "seed"),
)
_OF_SAMPLING = ("temperature", "top_k", "top_p", "seed")
_OF_SEARCHING = ("beam_size", "n_best", "diverse_groups", "diversity")


def _check_flags() -> None:
    """Refuse flags that contradict each other, or do nothing.

    Raises:
        UsageError: with the first of them.
    """
    if not _JSON.value and (_ALIGNMENTS.value or _N_BEST.value > 1):
        raise UsageError("--n_best and --alignments need --json, which has room for them")
    if _SPLIT.value and (_JSON.value or _PREFIX.value):
        raise UsageError("--split_sentences is for text, without --json and --prefix")
    if _INTERACTIVE.value and (_INPUT.value or _OUTPUT.value):
        raise UsageError("--interactive is for a terminal, without --input and --output")
    if not _CHECKPOINT.value:
        raise UsageError("--checkpoint= is empty; give best, latest, or a checkpoint's path")
    for name in _OF_SEARCHING if _SAMPLES.value else _OF_SAMPLING:
        if flags.FLAGS[name].present and _SAMPLES.value:
            raise UsageError(f"--{name} does nothing beside --samples; leave one of them out")
        if flags.FLAGS[name].present:
            raise UsageError(f"--{name} does nothing without --samples; add that, or leave it out")
    if flags.FLAGS["diversity"].present and _GROUPS.value == 1:
        raise UsageError("--diversity does nothing without --diverse_groups; add it")


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


class _Model:
    """A model directory, searched as the flags say.

    Attributes:
        name: of the model, for people.
        target_language: of what it writes.
    """

    def __init__(self):
        from trainer.checkpoints import model_dir as model_directory
        from trainer.decoding.forced import ForcedDecoder
        from trainer.decoding.search import Decoder
        from trainer.distributed.strategy import all_gpus

        with all_gpus().scope():
            loaded = [
                model_directory.load(_MODEL_DIR.value, which, "translation")
                for which in _CHECKPOINT.value
            ]
        first = loaded[0]
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
        if _N_BEST.value > options.beam_size:
            raise UsageError(
                f"--n_best={_N_BEST.value}: a beam of {options.beam_size} has no more than "
                f"{options.beam_size} translations; add --beam_size={_N_BEST.value}"
            )
        sampling = None
        if _SAMPLES.value:
            sampling = SamplingOptions(
                _SAMPLES.value, _TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _SEED.value
            )
        self._decoder = Decoder(models, options, sampling=sampling)
        self._forced = ForcedDecoder(models) if _ALIGNMENTS.value else None
        self.target_language = first.facts.languages["target"]
        self.name = "-".join(first.facts.languages.values())
        self.name += f", step {', '.join(f'{one.step:,}' for one in loaded)}"

    def translate(
        self, lines: list[str], after_batch: Callable[[int], Any]
    ) -> tuple[list[str], Sequence[scoring.Translated]]:
        """Return what to write for each line, and the translations.

        Args:
            lines: the text.
            after_batch: called with the number of lines that have just been translated.
        """
        prefixes = [_PREFIX.value] * len(lines) if _PREFIX.value else None
        found = scoring.translate_lines(
            lines, self._tokenizers, self._decoder, after_batch, prefixes
        )
        if _SAMPLES.value:
            from trainer.decoding.risk import least_risk

            found = [one.led_by(least_risk(one.texts)) if one.texts else one for one in found]
        texts = [one.text for one in found]
        if not _JSON.value:
            return texts, found
        values = [self._value(*pair) for pair in zip(lines, texts, found, strict=True)]
        if self._forced:
            self._align(self._forced, lines, values)
        return _json_lines(values), found

    def _value(self, line: str, text: str, one: scoring.Translated) -> dict:
        value: dict = {"source": line, "translation": text, "cut": one.cut or one.source_cut}
        if not one.hypotheses:
            return value
        scores: list[dict[str, Any]] = [
            {"translation": text, "score": part.score, "log_probability": part.log_probability}
            for text, part in zip(one.texts, one.hypotheses, strict=True)
        ]
        if _SAMPLES.value:
            from trainer.decoding.risk import expected_chrf

            for score, expected in zip(scores, expected_chrf(one.texts), strict=True):
                score["expected_chrf"] = expected
            return {**value, "samples": scores}
        value["score"] = scores[0]["score"]
        value["log_probability"] = scores[0]["log_probability"]
        if _N_BEST.value > 1:
            # Groups, and other segmentations, find the same text again.
            distinct: dict[str, dict[str, Any]] = {}
            for found in scores:
                distinct.setdefault(found["translation"], found)
            value["alternatives"] = list(distinct.values())[: _N_BEST.value]
        return value

    def _align(self, forced: "ForcedDecoder", lines: list[str], values: list[dict]) -> None:
        source, target = self._tokenizers
        pairs = source.encode(lines), target.encode([value["translation"] for value in values])
        for value, looks, *ids in zip(values, forced.score(*pairs), *pairs, strict=True):
            read = ids[0][: looks.attention.shape[1] - 1]  # the rest was cut
            value["alignment"] = word_alignment(
                looks.attention, source.pieces(read), target.pieces(ids[1])
            )


class _Export:
    """An export for CTranslate2; the attributes and the method are those of `_Model`."""

    def __init__(self, directory: str):
        given = [name for name in _NOT_FOR_EXPORTS if flags.FLAGS[name].present]
        if given:
            raise UsageError(
                f"--{given[0]} is for a model directory; {directory} is an export for CTranslate2, "
                "which searches as the model did when it was exported, but for --beam_size"
            )
        self._engine = ctranslate2_engine.Engine(directory)
        self.target_language = self._engine.languages["target"]
        precision = os.path.basename(os.path.abspath(directory))
        self.name = f"{'-'.join(self._engine.languages.values())}, CTranslate2, {precision}"

    def translate(
        self, lines: list[str], after_batch: Callable[[int], Any]
    ) -> tuple[list[str], Sequence[ctranslate2_engine.Found]]:
        found = self._engine.translate(lines, _BEAM_SIZE.value, _ALIGNMENTS.value)
        after_batch(len(lines))
        if not _JSON.value:
            return [one.text for one in found], found
        values = []
        for line, one in zip(lines, found, strict=True):
            cut = one.cut or one.source_cut
            value = {"source": line, "translation": one.text, "cut": cut}
            values.append({**value, "score": one.score} if one.pieces[0] else value)
            if _ALIGNMENTS.value:
                looks = one.attention
                aligned = [] if looks is None else word_alignment(looks, *one.pieces)
                values[-1]["alignment"] = aligned
        return _json_lines(values), found


def _json_lines(values: list[dict]) -> list[str]:
    return [json.dumps(value, ensure_ascii=False) for value in values]


class _BySentence:
    """Translates each sentence of a line by itself, and joins the translations.

    Args:
        translator: of sentences.
    """

    def __init__(self, translator: _Model | _Export):
        self._translator = translator
        self.name = translator.name
        self._space = " " if scoring.writes_spaces(translator.target_language) else ""

    def translate(self, lines: list[str], after_batch: Callable[[float], Any]):
        """See `_Model`."""
        split = [split_sentences(line) for line in lines]
        parts = [part for parts in split for part in parts]
        texts, found = self._translator.translate(
            parts, lambda count: after_batch(count * len(lines) / len(parts))
        )
        each = iter(texts)
        joined = [[next(each) for _ in parts] for parts in split]
        return [self._space.join(filter(None, parts)) for parts in joined], found


def main(argv: list[str]) -> None:
    """Load, translate, write."""
    no_arguments(argv)
    _check_flags()
    if _OUTPUT.value:
        check_output(_OUTPUT.value)
    with open_input(_INPUT.value) if _INPUT.value else nullcontext(sys.stdin) as file:
        exported = ctranslate2_engine.find_export(_MODEL_DIR.value)
        translator = _Export(exported) if exported else _Model()
        _say(f"{translator.name}\n")
        files = _INPUT.value or _OUTPUT.value
        prompts = _INTERACTIVE.value or (not files and sys.stdin.isatty())
        _translate(_BySentence(translator) if _SPLIT.value else translator, file.fileno(), prompts)


def _translate(translator: _Model | _Export | _BySentence, descriptor: int, prompts: bool) -> None:
    """Translate what the descriptor gives.

    Args:
        translator: of lines.
        descriptor: what to read.
        prompts: answer each line before the next is read.
    """
    reader = LineReader(descriptor, 1 if prompts else _BATCH_LINES)
    progress = Progress(reader, descriptor, silent=prompts)
    whole: list[bytes] = []
    sources_cut = targets_cut = 0
    _say("> " if prompts else "")
    for lines in reader.batches():
        written, found = translator.translate(lines, progress.add)
        content = "".join(f"{line}\n" for line in written).encode("utf-8")
        if _OUTPUT.value:
            whole.append(content)
        else:
            write_stdout(content)
        sources_cut += sum(one.source_cut for one in found)
        targets_cut += sum(one.cut for one in found)
        progress.end_batch()
        _say("> " if prompts else "")
    if _OUTPUT.value:
        write_output(_OUTPUT.value, b"".join(whole))
    progress.end()
    _say("\n" if prompts else "")
    scoring.warn_of_cuts(sources_cut, targets_cut)
    reader.warn_of_encoding()


def _say(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
