"""Where the time of a run went, from its metrics."""

from trainer.reporting.records import RunRecord

PARTS = ("steps", "input", "compilation", "evaluation", "the rest")


def time_spent(run: RunRecord) -> dict[str, float]:
    """Return seconds by part of the work, `PARTS`; all zero if the metrics do not tell.

    "input" is the time in which a step waited for its batch. "the rest" is what the clock of the
    training counts besides: checkpoints and what the program does at its start.
    """
    spent = dict.fromkeys(PARTS, 0.0)
    before = 0
    for line in run.lines:
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
    last = run.last("train")
    total = last.get("train_seconds", 0.0) if last else 0.0
    valid = run.last("valid")
    if valid and last and valid["step"] >= last["step"]:  # evaluated after the last training line
        total += valid.get("evaluate_seconds", 0.0)
    spent["the rest"] = max(0.0, total - sum(spent.values()))
    return spent
