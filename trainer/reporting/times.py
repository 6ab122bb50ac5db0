"""Where the time of a run went, from its metrics."""

from collections.abc import Sequence
from typing import Any

from trainer.reporting.records import duration

PARTS = ("steps", "input", "compilation", "evaluation", "the rest")


def time_spent(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return seconds by part of the work, `PARTS`, from the lines of metrics.jsonl.

    "input" is the time in which a step waited for its batch. "the rest" is what the clock of the
    training counts besides: checkpoints and what the program does at its start.
    """
    spent = dict.fromkeys(PARTS, 0.0)
    before = 0
    for line in lines:
        if line["split"] == "valid":
            spent["evaluation"] += line.get("evaluate_seconds", 0.0)
        if line["split"] != "train":
            continue
        spent["compilation"] += line.get("compile_seconds", 0.0)
        seconds = line.get("step_seconds", 0.0) * max(0, line["step"] - before)
        waited = seconds * line.get("input_wait", 0.0)
        spent["input"] += waited
        spent["steps"] += seconds - waited
        before = line["step"]
    last = next((line for line in reversed(lines) if line["split"] == "train"), None)
    total = last.get("train_seconds", 0.0) if last else 0.0
    valid = next((line for line in reversed(lines) if line["split"] == "valid"), None)
    if valid and last and valid["step"] >= last["step"]:  # evaluated after the last training line
        total += valid.get("evaluate_seconds", 0.0)
    spent["the rest"] = max(0.0, total - sum(spent.values()))
    return spent


def summary(lines: Sequence[dict[str, Any]], cores: int) -> str:
    """Return where the time of a run went, in a line.

    Args:
        lines: of metrics.jsonl.
        cores: CPU cores that the run could use.
    """
    spent = time_spent(lines)
    total = sum(spent.values())
    shares = ", ".join(
        f"{name} {seconds / total:.0%}" for name, seconds in spent.items() if seconds > 0
    )
    hours = f"{total * cores / 3600:.2f} core-hours on {cores} cores"
    return f"{duration(total)}{f': {shares}' if shares else ''}; {hours}"
