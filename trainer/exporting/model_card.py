"""A model card: what a model was made of and how good it is, beside every exported model."""

import json
import os
from collections.abc import Mapping
from typing import Any

import keras
import sacrebleu
import tensorflow as tf

from common.files import write_bytes
from configs import schema
from trainer.checkpoints.model_dir import LoadedModel
from trainer.reporting.records import read_metrics

FILE = "README.md"
_NOT_SCORES = ("time", "split", "step", "evaluate_seconds", "goodput", "spent")


def _scores(loaded: LoadedModel, model_dir: str) -> dict[str, dict[str, Any]]:
    """Return split -> scores of the checkpoint, without lists such as a confusion matrix.

    Those of the validation split are in the manifest of the checkpoint, an average too.
    """
    found = {"valid": _rounded(loaded.metrics)} if loaded.metrics else {}
    for values in read_metrics(model_dir):
        if values["step"] != loaded.step:
            continue
        if values["split"] == "test":
            found["test"] = _rounded(values)
        elif values["split"] == "valid" and "valid" in found and "signature" in values:
            found["valid"]["signature"] = values["signature"]  # manifests hold numbers only
    return found


def _rounded(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in metrics.items()
        if key not in _NOT_SCORES and not isinstance(value, list)
    }


def _table(values: dict[str, Any]) -> list[str]:
    cells = ((key, str(value).replace("|", r"\|")) for key, value in values.items())
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells)]


def write(loaded: LoadedModel, model_dir: str, directory: str, format_lines: list[str]) -> None:
    """Write README.md into the directory of an exported model.

    Args:
        loaded: the model.
        model_dir: where it was trained.
        directory: of the exported model.
        format_lines: Markdown about the format: how to load it, and what was measured.
    """
    facts = loaded.facts
    weights = sum(int(tf.size(variable)) for variable in loaded.model.trainable_variables)
    what = f"{facts.config.task.replace('_', ' ')}, {' to '.join(facts.languages.values())}"
    about = {
        "parameters": f"{weights:,}",
        "checkpoint": f"step {loaded.step:,}",
        "precision of training": facts.precision,
        **({"labels": ", ".join(facts.labels)} if facts.labels else {}),
    }
    # The hashes of the input files are left out: the fingerprint covers them.
    data = {
        key.replace(" pairs", " examples"): (
            ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        )
        for key, value in facts.data.items()
        if not key.endswith(" input")
    }
    versions = {
        **{f"{name} (training)": version for name, version in facts.versions.items()},
        "tensorflow (export)": tf.__version__,
        "keras (export)": keras.__version__,
        "sacrebleu": sacrebleu.__version__,
    }
    lines = [f"# Transformer: {what}", "", *_table(about), "", "## Use", "", *format_lines]
    scores = _scores(loaded, model_dir)
    for split, found in scores.items():
        lines += ["", f"## Scores of the {split} split", "", *_table(found)]
    if not scores:
        lines += ["", "## Scores", "", "It was not evaluated at this checkpoint."]
    lines += ["", "## Data", "", *_table({"fingerprint": facts.data_fingerprint[:12], **data})]
    settings = json.dumps(schema.to_dict(facts.config), indent=1)
    lines += ["", "## Versions", "", *_table(versions)]
    lines += ["", "## Settings", "", "```json", settings, "```", ""]
    write_bytes(os.path.join(directory, FILE), "\n".join(lines).encode("utf-8"))
