"""Classify lines of text: for each the label and the probabilities of all classes, as TSV.

    python -m trainer.classify --model_dir=MODEL < in.txt > out.tsv

The first line of the output names the columns. A line that comes slowly is answered at once.
"""

import sys

from absl import flags

from common.console import warn, write_stdout
from common.errors import no_arguments, run_app
from trainer.checkpoints import model_dir as model_directory
from trainer.decoding.lines import LineReader

_BATCH_LINES = 2_000

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Model directory.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, or a checkpoint's path.")


def main(argv: list[str]) -> None:
    """Load, classify, write."""
    no_arguments(argv)
    loaded = model_directory.load(_MODEL_DIR.value, _CHECKPOINT.value, "classification")
    labels = loaded.facts.labels
    classifier = loaded.task.classifier(loaded.model, loaded.tokenizers)  # type: ignore[attr-defined]
    _write(["\t".join(("label", *labels))])
    reader, cut = LineReader(sys.stdin.fileno(), 1 if sys.stdin.isatty() else _BATCH_LINES), 0
    for lines in reader.batches():
        probabilities, cut_now = classifier.probabilities(lines)
        _write(
            "\t".join((labels[row.argmax()], *(f"{value:.6f}" for value in row)))
            for row in probabilities
        )
        cut += cut_now
    if cut:
        length = loaded.facts.config.data.longest_row
        warn(f"{cut:,} lines are longer than {length - 1:,} tokens and were cut")
    reader.warn_of_encoding()


def _write(lines) -> None:
    write_stdout("".join(f"{line}\n" for line in lines).encode("utf-8"))


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
