"""Make one HTML page of one or several runs, to read or to send.

    python -m trainer.report --model_dir=MODEL --output=report.html
    python -m trainer.report --model_dir=FIRST SECOND THIRD --output=comparison.html

The page needs no other file and no network. It has the scores, curves, samples, settings and where
the time went. It reads the model directory, even while the run goes on: config.json, metrics.jsonl,
outputs and pictures; and the validation text of the dataset.
"""

from collections.abc import Sequence

from absl import flags

from common.errors import run_app
from common.files import check_output, write_output
from trainer.reporting.page import render
from trainer.reporting.records import names_of, read_run

_MODEL_DIR = flags.DEFINE_multi_string(
    "model_dir", None, "Model directory; more of them may follow, to compare.", required=True
)
_OUTPUT = flags.DEFINE_string("output", "report.html", "The page to write.")


def make_report(directories: Sequence[str], output: str) -> list[str]:
    """Write the report on the runs of some model directories.

    Args:
        directories: of the runs, local or remote, each once.
        output: the file to write; it is replaced if it is there.

    Returns:
        The names that the report gives the runs.

    Raises:
        UsageError: a directory is no model directory, or the file cannot be written.
    """
    check_output(output)
    names = names_of(directories)
    runs = [read_run(path, name) for path, name in zip(directories, names, strict=True)]
    write_output(output, render(runs).encode("utf-8", "backslashreplace"))
    return names


def main(argv: list[str]) -> None:
    """Make the report on all model directories that were given."""
    names = make_report([*_MODEL_DIR.value, *argv[1:]], _OUTPUT.value)
    print(f"report on {', '.join(names)} in {_OUTPUT.value}", flush=True)


if __name__ == "__main__":
    run_app(main)
