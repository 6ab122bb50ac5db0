"""Compare the throughput of several workers, one CPU core each, with that of one worker.

    python -m benchmarks.scaling --data_dir=DATA [--workers=2] [--rounds=3] [-- TRAINER FLAGS]

Every worker has the same share of the global batch (weak scaling). The runs alternate, so that
other work on the machine affects both alike. The results are medians.
"""

import os
import statistics
import subprocess
import sys
import tempfile

from absl import flags

from common.errors import UsageError, run_app
from trainer.reporting.records import read_metrics

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Dataset directory.", required=True)
_CONFIG = flags.DEFINE_string("config", "configs/transformer_tiny.py", "Configuration.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Workers; the machine needs as many cores.", 2)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Runs of each kind.", 1)
_STEPS = flags.DEFINE_integer("steps", 40, "Steps of a run; the first ones do not count.", 10)
_BATCH_TOKENS = flags.DEFINE_integer("batch_tokens", 4096, "Positions in a worker's batch.", 1)


def tokens_per_second(workers: int, trainer_flags: list[str]) -> float:
    """Return the median target tokens/s, without padding, of one run."""
    cores = sorted(os.sched_getaffinity(0))[:workers]
    with tempfile.TemporaryDirectory() as model_dir:
        command = [sys.executable, "-m", "launch.local", f"--workers={workers}", "--pin_cores"]
        command += ["--max_restarts=0", "--", f"--config={_CONFIG.value}"]
        command += [f"--data_dir={_DATA_DIR.value}", f"--model_dir={model_dir}"]
        command += [
            f"--config.train.batch_tokens={_BATCH_TOKENS.value * workers}",
            f"--config.train.steps={_STEPS.value}",
            "--config.train.steps_per_loop=5",
            "--config.train.evaluate_every=1000000",
            # Only the steps are measured; keep the translation at the end short.
            "--config.decode.validation_sentences=1",
            "--config.decode.beam_size=1",
            "--config.decode.max_length_ratio=0.1",
            *trainer_flags,
        ]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        if done.returncode:
            raise UsageError(f"{' '.join(command)} ended with {done.returncode}; see above")
        lines = read_metrics(model_dir)
    speeds = [line.get("target_tokens_per_second") for line in lines if line["split"] == "train"]
    return statistics.median(speed for speed in speeds[1:] if speed)


def main(argv: list[str]) -> None:
    """Measure and print."""
    if len(os.sched_getaffinity(0)) < _WORKERS.value:
        raise UsageError(f"--workers={_WORKERS.value}: this machine has fewer CPU cores")
    counts = (1, _WORKERS.value)
    speeds: dict[int, list[float]] = {count: [] for count in counts}
    for number in range(_ROUNDS.value):
        for count in counts:
            speeds[count].append(tokens_per_second(count, argv[1:]))
            print(f"round {number + 1}, {count} worker(s): {speeds[count][-1]:,.0f} tokens/s")
    one, several = (statistics.median(speeds[count]) for count in counts)
    print(f"1 worker on 1 core          {one:10,.0f} target tokens/s")
    print(f"{counts[1]} workers on 1 core each   {several:10,.0f} target tokens/s")
    print(f"efficiency                  {several / (counts[1] * one):10.3f}")


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
