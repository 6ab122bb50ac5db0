"""A model card: what a model was made of and how good it is, beside every exported model."""

import json
import os
from typing import Any

import keras
import sacrebleu
import tensorflow as tf

from common.files import read_bytes, write_bytes
from configs import schema
from trainer.checkpoints.model_dir import LoadedModel


def _last_test(model_dir: str, step: int) -> dict[str, Any]:
    """Return the scores of the test split at a step; empty where it was not tested."""
    path = os.path.join(model_dir, "metrics.jsonl")
    if not tf.io.gfile.exists(path):
        return {}
    lines = [json.loads(line) for line in read_bytes(path).decode("utf-8").splitlines()]
    tests = [line for line in lines if line["split"] == "test" and line["step"] == step]
    return (
        {key: tests[-1][key] for key in tests[-1] if key not in ("time", "split")} if tests else {}
    )


def _table(values: dict[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in values.items())]


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
    languages = " to ".join(facts.languages.values())
    about = {
        "task": f"{facts.config.task}, {languages}",
        "parameters": f"{weights:,}",
        "checkpoint": f"step {loaded.step:,}",
        "precision of training": facts.precision,
        "data": f"fingerprint {facts.data_fingerprint[:12]}",
        **{key: value for key, value in facts.data.items() if key.endswith("pairs")},
    }
    versions = {
        **{f"{name} (training)": version for name, version in facts.versions.items()},
        "tensorflow (export)": tf.__version__,
        "keras (export)": keras.__version__,
        "sacrebleu": sacrebleu.__version__,
    }
    tested = _last_test(model_dir, loaded.step)
    settings = json.dumps(schema.to_dict(facts.config), indent=1)
    lines = [f"# {languages}, Transformer", "", *_table(about), "", "## Use", "", *format_lines]
    lines += ["", "## Scores of the test split", ""]
    lines += _table(tested) if tested else ["It was not tested at this checkpoint."]
    lines += ["", "## Versions", "", *_table(versions)]
    lines += ["", "## Settings", "", "```json", settings, "```", ""]
    write_bytes(os.path.join(directory, "README.md"), "\n".join(lines).encode("utf-8"))
