"""Measure the seconds from the start of the trainer's process to its first finished step.

    python -m benchmarks.startup [--runs=5] [--data_dir=DATA] [-- TRAINER FLAGS]

Run the demonstration's configuration up to its first step, several times, each time with a new
model directory. The first run does not count: it finds nothing in the file cache.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags

from common import status
from common.errors import UsageError, run_app

_RUNS = flags.DEFINE_integer("runs", 5, "Measured runs.", 1)
_DATA_DIR = flags.DEFINE_string("data_dir", "data/demo", "A dataset directory that exists.")

_POLL_SECONDS = 0.01


def measure(data_dir: str, trainer_flags: list[str]) -> dict[str, float]:
    """Return the seconds of each phase of a run, of all phases, and as seen from outside."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "trainer.main", "--strategy=mirrored"]
        command += [f"--data_dir={data_dir}", f"--model_dir={folder}/model", *trainer_flags]
        report, output = f"{folder}/status.json", f"{folder}/output"
        began = time.monotonic()
        with open(output, "wb") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, status.VARIABLE: report},
            )
        try:
            while process.poll() is None and not os.path.exists(report):
                time.sleep(_POLL_SECONDS)
            wall = time.monotonic() - began
        finally:
            process.kill()
            process.wait()
        phases = status.read(report).get("seconds_to_first_step")
        if not phases:
            with open(output, encoding="utf-8", errors="replace") as file:
                last = file.read().strip().rpartition("\n")[2]
            raise UsageError(f"the trainer did not reach its first step: {last}")
    return {**phases, "all phases": sum(phases.values()), "wall": wall}


def main(argv: list[str]) -> None:
    """Measure and print."""
    measure(_DATA_DIR.value, argv[1:])
    runs = [measure(_DATA_DIR.value, argv[1:]) for _ in range(_RUNS.value)]
    print(f"{'seconds':20}{'median':>8}{'min':>8}{'max':>8}   of {len(runs)} runs")
    for name in runs[0]:
        values = [run[name] for run in runs]
        print(f"{name:20}{statistics.median(values):8.1f}{min(values):8.1f}{max(values):8.1f}")


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
