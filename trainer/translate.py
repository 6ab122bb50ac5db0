"""Translate lines of text: one translation a line, in order.

    python -m trainer.translate --model_dir=MODEL < in.txt > out.txt
    python -m trainer.translate --model_dir=MODEL --interactive

A line that comes slowly, from a terminal or another program, is answered at once.
"""

import sys

from absl import flags

from common.errors import no_arguments, run_app
from trainer.checkpoints import model_dir as model_directory
from trainer.decoding import scoring
from trainer.decoding.lines import LineReader
from trainer.decoding.search import Decoder, search_options

_PIECE = 2_000  # lines: sorting by length wants many, progress wants few

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Model directory.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, or a checkpoint's path.")
_BEAM_SIZE = flags.DEFINE_integer("beam_size", 0, "Beams; 0 for the configuration's.", 0)
_INTERACTIVE = flags.DEFINE_bool(
    "interactive", False, "Show a prompt, and answer each line before the next is read."
)


def main(argv: list[str]) -> None:
    """Load, translate, write."""
    no_arguments(argv)
    loaded = model_directory.load(_MODEL_DIR.value, _CHECKPOINT.value)
    tokenizers = (loaded.tokenizers["source"], loaded.tokenizers["target"])
    decoder = Decoder(loaded.model, search_options(loaded.facts.config.decode, _BEAM_SIZE.value))
    _say(f"{'-'.join(loaded.facts.languages.values())}, step {loaded.step:,}\n")
    prompts = _INTERACTIVE.value or sys.stdin.isatty()
    reader = LineReader(sys.stdin.fileno(), 1 if prompts else _PIECE)
    translated: list[scoring.Translated] = []
    _say("> " if prompts else "")
    for lines in reader.pieces():
        piece = scoring.translate_lines(lines, tokenizers, decoder)
        text = "".join(f"{one.text}\n" for one in piece)
        sys.stdout.buffer.write(text.encode("utf-8"))
        sys.stdout.buffer.flush()
        translated += [one for one in piece if one.cut or one.source_cut]
        _say("> " if prompts else f"\r{reader.lines:,} lines")
    _say("\n" if reader.lines else "")
    scoring.warn_of_cuts(translated)
    reader.warn_of_encoding()


def _say(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
