"""What a model directory says of its run, read without TensorFlow."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from common import files
from common.errors import UsageError
from configs.schema import flatten

LOWER_IS_BETTER = frozenset({"loss", "nll", "perplexity", "bits_per_byte", "bits_per_character"})
"""The metrics of all tasks, `Task.BEST`, that are the better the lower."""
PICTURES = "pictures"
"""Folder of a model directory with the latest pictures of attention, as PNG."""
_OUTPUT_FILE = re.compile(r"(?P<split>\w+)-(?P<step>\d+)\.txt")

Points = list[tuple[int, float]]
"""(step, value), by rising step."""


@dataclass(frozen=True)
class RunRecord:
    """A run as its model directory tells it.

    Attributes:
        name: what the report calls it: the shortest end of its path that tells it from the others.
        directory: the model directory.
        facts: the whole of config.json.
        lines: the objects of metrics.jsonl, in the order of the file.
        outputs: step -> lines of the model's output for the validation split.
        sources: the text that went in, one a line of the outputs; None if it is not there.
        references: the text that should have come out; None if it is not there.
        attention: name of a picture of attention weights -> PNG; of the last evaluation.
        average: the newest average of checkpoints, its last step and its metrics of validation like
            a line of metrics.jsonl; None if there is none.
    """

    name: str
    directory: str
    facts: dict[str, Any]
    lines: list[dict[str, Any]]
    outputs: dict[int, list[str]]
    sources: list[str] | None
    references: list[str] | None
    attention: dict[str, bytes]
    average: dict[str, Any] | None

    def settings(self) -> dict[str, Any]:
        """Return the configuration, flat: "group.field" -> value."""
        return flatten(self.facts["config"]) | {"precision": self.facts.get("precision", "")}

    def points(self, split: str, metric: str) -> Points:
        """Return a metric of a split by step, without what is not a finite number."""
        found = {}
        for line in self.lines:
            value = line.get(metric)
            if line["split"] == split and _is_finite(value):
                found[line["step"]] = float(value)  # a step that was run again counts once
        return sorted(found.items())

    def last(self, split: str) -> dict[str, Any] | None:
        """Return the last line of a split, or None if there is none."""
        return next((line for line in reversed(self.lines) if line["split"] == split), None)

    def best(self) -> dict[str, Any] | None:
        """Return the line of the best evaluation by `train.best_metric`, or None."""
        metric = self.settings().get("train.best_metric", "loss")
        return best_line(self.lines, metric, metric not in LOWER_IS_BETTER)


def _is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def best_line(lines: Sequence[dict[str, Any]], metric: str, higher: bool) -> dict[str, Any] | None:
    """Return the line of the best evaluation, or None; of equal ones that of the lower loss.

    Args:
        lines: of metrics.jsonl.
        metric: what makes an evaluation the best.
        higher: whether a higher value of it is better.
    """
    found = [line for line in lines if line["split"] == "valid" and _is_finite(line.get(metric))]
    sign = 1 if higher else -1
    return max(
        found,
        key=lambda line: (sign * line[metric], -line.get("loss", math.inf)),
        default=None,
    )


def read_run(directory: str, name: str) -> RunRecord:
    """Read a model directory, local or remote.

    Raises:
        UsageError: it is not one, or a file in it is damaged.
    """
    config = _text(os.path.join(directory, "config.json"))
    if config is None:
        raise UsageError(f"{directory} is no model directory: it has no config.json")
    facts = _json(config, f"{directory}/config.json")
    if not isinstance(facts, dict) or not isinstance(facts.get("config"), dict):
        raise UsageError(f"{directory}/config.json is not what trainer.main writes")
    lines = read_metrics(directory)
    if not lines:
        raise UsageError(
            f"{directory} has no metrics yet; wait for the first lines of metrics.jsonl"
        )
    outputs = _outputs(directory)
    sources, references = _raw_text(facts)
    attention, average = _attention(directory), _average(directory)
    return RunRecord(
        name, directory, facts, lines, outputs, sources, references, attention, average
    )


def names_of(directories: Sequence[str]) -> list[str]:
    """Return the shortest ends of the paths that tell all of them apart.

    Raises:
        UsageError: two of the paths are the same.
    """
    places = [path.rstrip("/") if "://" in path else os.path.abspath(path) for path in directories]
    if len(set(places)) < len(places):
        raise UsageError("--model_dir: a model directory is given twice; name each one once")
    parts = [place.split("/") for place in places]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return places


def _text(path: str) -> str | None:
    """Return the text of a file, or None if there is no such file."""
    if "://" in path:  # only then does the report import TensorFlow
        return files.read_bytes(path).decode("utf-8") if files.exists(path) else None
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _names(directory: str) -> list[str]:
    if "://" in directory:
        return files.list_names(directory)
    return os.listdir(directory) if os.path.isdir(directory) else []


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}") from error


def read_metrics(model_dir: str) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, but not half a line at the end, of a run in progress.

    Raises:
        UsageError: a line is damaged.
    """
    where = os.path.join(model_dir, "metrics.jsonl")
    lines = []
    for number, line in enumerate((_text(where) or "").split("\n")[:-1], start=1):
        value = _json(line, f"{where}, line {number},")
        found = value if isinstance(value, dict) else {}
        if not isinstance(found.get("step"), int) or not isinstance(found.get("split"), str):
            raise UsageError(f"{where}, line {number}, has no step and split; delete the line")
        lines.append(found)
    return lines


def _outputs(model_dir: str) -> dict[int, list[str]]:
    """Read the folder with outputs, which each task names its own way."""
    found = {}
    for folder in _names(model_dir):
        for name in _names(os.path.join(model_dir, folder)):
            match = _OUTPUT_FILE.fullmatch(name)
            if match and match["split"] == "valid":
                text = _text(os.path.join(model_dir, folder, name)) or ""
                found[int(match["step"])] = text.split("\n")[:-1]
    return dict(sorted(found.items()))


def _attention(model_dir: str) -> dict[str, bytes]:
    """Read the pictures of attention on the first of the examples that are drawn."""
    folder = os.path.join(model_dir, PICTURES)
    found = {}
    for kind in ("encoder", "decoder", "cross"):
        name = f"attention-{kind}-1.png"
        if name in _names(folder):
            found[name] = files.read_bytes(os.path.join(folder, name))
    return found


def _average(model_dir: str) -> dict[str, Any] | None:
    folder = os.path.join(model_dir, "averaged")
    matches = (re.fullmatch(r"ckpt-(\d+)\.json", name) for name in _names(folder))
    steps = [int(match[1]) for match in matches if match]
    if not steps:
        return None
    where = os.path.join(folder, f"ckpt-{max(steps)}.json")
    found = _json(_text(where) or "", where)
    return {"step": max(steps), **found["metrics"]}


def _raw_text(facts: Mapping[str, Any]) -> tuple[list[str] | None, list[str] | None]:
    """Return the validation text of a run's dataset, if it is still where it was."""
    data_dir = str(facts.get("data_dir", ""))
    content = _text(os.path.join(data_dir, "dataset.json")) if data_dir else None
    manifest = _json(content, f"{data_dir}/dataset.json") if content is not None else None
    if not isinstance(manifest, dict):
        return None, None
    # A run in stages has a fingerprint of all its datasets.
    stages = facts.get("config", {}).get("data", {}).get("stages", "")
    if not stages and manifest.get("fingerprint") != facts.get("data_fingerprint"):
        return None, None  # made again from other text
    split = manifest.get("splits", {}).get("valid", {})
    texts = [_text(os.path.join(data_dir, file["name"])) for file in split.get("raw_text", ())]
    lines = [None if text is None else text.split("\n")[:-1] for text in texts]
    return (lines[0], lines[1]) if len(lines) == 2 else (None, None)


def duration(seconds: float) -> str:
    """Return a time for people: 4.2 s, 5 min 38 s, 2 h 03 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
