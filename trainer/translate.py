"""Translates standard input to standard output: one translation a line, in order.

python -m trainer.translate --model_dir=MODEL < in.txt > out.txt
"""

import sys

from absl import flags

from common.errors import UsageError, no_arguments, run_app
from trainer.checkpoints import model_dir as model_directory
from trainer.decoding import scoring
from trainer.decoding.search import MAX_SOURCE, Decoder

_PIECE = 2_000  # lines: sorting by length wants many, progress wants few

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Model directory.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, or a checkpoint's path.")
_BEAM_SIZE = flags.DEFINE_integer("beam_size", 0, "Beams; 0 for the configuration's.", 0)


def read_lines(data: bytes) -> list[str]:
    """Splits at line feeds only; U+2028 and the like are text.

    Raises:
        UsageError: for bytes that are not UTF-8, with the line.
    """
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()  # the end of the last line, not one more line
    decoded = []
    for number, line in enumerate(lines, start=1):
        try:
            decoded.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UsageError(
                f"standard input, line {number}: not UTF-8 ({error.reason} at byte {error.start}); "
                "convert it with iconv"
            ) from error
    return decoded


def main(argv: list[str]) -> None:
    """Loads, translates, writes."""
    no_arguments(argv)
    loaded = model_directory.load(_MODEL_DIR.value, _CHECKPOINT.value)
    model, facts = loaded.model, loaded.facts
    tokenizers = (loaded.tokenizers["source"], loaded.tokenizers["target"])
    lines = read_lines(sys.stdin.buffer.read())
    config = facts.config.decode
    decoder = Decoder(model, config, _BEAM_SIZE.value or config.beam_size)
    _say(f"{facts.source_lang}-{facts.target_lang}, step {loaded.step:,}, {len(lines):,} lines\n")
    cut = sum(len(ids) >= MAX_SOURCE for ids in tokenizers[0].encode(lines))
    if cut:
        _say(f"warning: {cut} lines are longer than {MAX_SOURCE - 1} tokens and are cut there\n")
    # In pieces, so that what is done is written, whatever happens later.
    for start in range(0, len(lines), _PIECE):
        piece = lines[start : start + _PIECE]
        translations = scoring.translate_lines(piece, tokenizers, decoder)
        text = "".join(f"{translation}\n" for translation in translations)
        sys.stdout.buffer.write(text.encode("utf-8"))
        sys.stdout.buffer.flush()
        _say(f"\r{start + len(piece):,} of {len(lines):,}")
    _say("\n" if lines else "")


def _say(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
