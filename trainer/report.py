"""Makes one HTML page of one or several runs, to read or to send.

    python -m trainer.report --model_dir=MODEL --output=report.html
    python -m trainer.report --model_dir=FIRST SECOND THIRD --output=comparison.html

The page needs no other file and no network. It has the scores, curves, samples, settings and where
the time went. It reads the model directory, even while the run goes on: config.json, metrics.jsonl,
outputs and pictures; and the validation text of the dataset.
"""

from absl import flags

from common.errors import run_app
from trainer.reporting.document import make_report

_MODEL_DIR = flags.DEFINE_string(
    "model_dir", None, "Model directory; more of them may follow, to compare.", required=True
)
_OUTPUT = flags.DEFINE_string("output", "report.html", "The page to write.")


def main(argv: list[str]) -> None:
    """Make the report on all model directories that were given."""
    names = make_report([_MODEL_DIR.value, *argv[1:]], _OUTPUT.value)
    print(f"report on {', '.join(names)} in {_OUTPUT.value}", flush=True)


if __name__ == "__main__":
    run_app(main)
