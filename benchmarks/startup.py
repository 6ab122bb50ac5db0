"""Seconds from the start of the trainer's process to its first finished step.

    python -m benchmarks.startup [--runs=5] [--data_dir=DATA] [-- TRAINER FLAGS]

Runs the demonstration's configuration for one step, again and again, each time with a new model
directory. The first run, which finds nothing in the file cache, is not counted.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags

from common.errors import UsageError, run_app

_RUNS = flags.DEFINE_integer("runs", 5, "Runs that count.", 1)
_DATA_DIR = flags.DEFINE_string("data_dir", "data/demo", "Dataset directory, prepared before.")

_LINE = re.compile(r"first step +([0-9.]+) s after the start of the program \((.*)\)")


def measure(data_dir: str, trainer_flags: list[str]) -> dict[str, float]:
    """One run: seconds of each phase, of the whole, and of the process as seen from outside."""
    with tempfile.TemporaryDirectory() as model_dir:
        command = [sys.executable, "-m", "trainer.main", "--strategy=mirrored"]
        command += [f"--data_dir={data_dir}", f"--model_dir={model_dir}", *trainer_flags]
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        assert process.stdout is not None
        lines = []
        try:
            for line in process.stdout:
                lines.append(line)
                if match := _LINE.match(line):
                    outside = time.monotonic() - began
                    phases = (part.rsplit(" ", 1) for part in match[2].split(", "))
                    seconds = {name: float(value) for name, value in phases}
                    return {**seconds, "the trainer's count": float(match[1]), "wall": outside}
        finally:
            process.kill()
            process.wait()
    raise UsageError(f"the trainer did not reach its first step: {lines[-1] if lines else ''}")


def main(argv: list[str]) -> None:
    """Measures and prints."""
    measure(_DATA_DIR.value, argv[1:])
    runs = [measure(_DATA_DIR.value, argv[1:]) for _ in range(_RUNS.value)]
    print(f"{'seconds':20}{'median':>8}{'min':>8}{'max':>8}   of {len(runs)} runs")
    for name in runs[0]:
        values = [run[name] for run in runs]
        print(f"{name:20}{statistics.median(values):8.1f}{min(values):8.1f}{max(values):8.1f}")


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
