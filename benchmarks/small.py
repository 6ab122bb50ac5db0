"""A small training for the fault tools: its data, its flags, and the commands that run it."""

import os
import re
import subprocess
import sys

from common.errors import UsageError
from configs.flags import SMALL_MODEL

FLAGS = (
    *SMALL_MODEL,
    "--config.train.batch_tokens=2048",
    "--jit_compile=off",
)


def prepare(directory: str) -> None:
    """Prepare a small part of the built-in corpus, unless it is there."""
    if not os.path.exists(os.path.join(directory, "dataset.json")):
        flags = [
            "--train=builtin:train?size=2000",
            "--valid=builtin:valid?size=40",
            "--test=builtin:test?size=20",
            "--vocab_size=1000",
            "--row_length=64",
            f"--output_dir={directory}",
        ]
        subprocess.run([sys.executable, "-m", "data_pipeline.main", *flags], check=True)


def command(on: str, arguments: list[str]) -> list[str]:
    """Return the command that trains on "4", four replicas in one process, or "2w", two workers."""
    match = re.fullmatch(r"([1-9][0-9]*)(w?)", on)
    if not match:
        raise UsageError(f"--legs: {on!r} is neither replicas, such as 4, nor workers, such as 2w")
    count, workers = match.groups()
    if workers:  # which the launcher must not restart
        launcher = ["launch.local", f"--workers={count}", "--max_restarts=0", "--"]
        return [sys.executable, "-m", *launcher, *arguments]
    replicas = [f"--num_virtual_devices={count}"] if count != "1" else []
    return [sys.executable, "-m", "trainer.main", *replicas, *arguments]
