"""Measure what the pictures of TensorBoard cost: the demonstration with and without them.

    python -m benchmarks.pictures --data_dir=data/demo

The two take turns, first the one, then the other. The result is a JSON object: for each, target
tokens per second of every round, of the steps alone and of all the time after the first step, which
has evaluations and pictures in it; and what share of either the pictures cost.
"""

import json
import os
import subprocess
import sys
import tempfile

from absl import flags

from benchmarks.speeds import compare, speeds
from common.errors import UsageError, no_arguments, run_app
from trainer.reporting.records import read_metrics

_DATA_DIR = flags.DEFINE_string("data_dir", "data/demo", "What make demo has prepared.")
_STEPS = flags.DEFINE_integer("steps", 800, "Length of each run; it evaluates four times.", 40)
_ROUNDS = flags.DEFINE_integer("rounds", 2, "Runs with pictures, and as many without.", 1)
_SIDES = ("pictures", "nopictures")


def main(argv: list[str]) -> None:
    """Train in turns, and print the comparison."""
    no_arguments(argv)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in _SIDES}
    for number in range(_ROUNDS.value):
        for side in _SIDES if number % 2 == 0 else reversed(_SIDES):
            print(f"round {number + 1} of {_ROUNDS.value}: --{side}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                found[side].append(_train(side, os.path.join(folder, "model")))
    print(json.dumps({**found, "cost": compare(found)}, indent=2))


def _train(side: str, model_dir: str) -> dict[str, float]:
    """Train once; return the speeds of the run."""
    every = _STEPS.value // 4
    command = [sys.executable, "-m", "trainer.main", "--strategy=mirrored", f"--{side}"]
    command += [f"--data_dir={_DATA_DIR.value}", f"--model_dir={model_dir}"]
    command += [f"--config.train.{name}={every}" for name in ("evaluate_every", "checkpoint_every")]
    command += [f"--config.train.steps={every * 4}"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UsageError(f"training ended with code {done.returncode}: {' '.join(command)}")
    return speeds(read_metrics(model_dir))


if __name__ == "__main__":
    run_app(main)
