"""How fast a run was, from its metrics, and what a choice costs."""

import itertools
import statistics
from typing import Any


def speeds(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Return how fast a run was, and how long it evaluated.

    Args:
        lines: of its metrics.jsonl, the last one with the test scores.

    Returns:
        "steps" and "all": target tokens per second of the steps, and of all the time from the end
        of the first step to the test scores. "evaluation_seconds": with pictures and the test.
    """
    train = [line for line in lines if line["split"] == "train"]
    seconds = tokens = 0.0
    for before, line in itertools.pairwise(train):  # the first one has the compilation
        taken = line["step_seconds"] * (line["step"] - before["step"])
        seconds += taken
        tokens += line["target_tokens_per_second"] * taken
    return {
        "steps": tokens / seconds,
        "all": tokens / (lines[-1]["time"] - train[0]["time"]),
        "evaluation_seconds": lines[-1]["spent"]["evaluation"],
    }


def compare(found: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Return what share of the speed the pictures cost, by the medians of the rounds."""
    medians = {
        (side, name): statistics.median(one[name] for one in runs)
        for side, runs in found.items()
        for name in runs[0]
    }
    return {
        name: 1 - medians["pictures", name] / medians["nopictures", name]
        for name in ("steps", "all")
    }
