"""What is measured, and where it goes: metrics.jsonl, TensorBoard and the console."""

import json
import math
import os
import time
from typing import Any

import tensorflow as tf

from data_pipeline.records import UsageError

# TensorBoard shows two groups of charts unfolded: these metrics are one, all others the second.
_QUALITY = ("loss", "nll", "perplexity", "token_accuracy", "bleu", "chrf")


def averages(sums: dict[str, float]) -> dict[str, float]:
    """Metrics per target token from the sums of `Translation.sums`.

    Returns:
        "loss", "nll" (nats per token), "perplexity", "token_accuracy", and "fill_rate", the
        share of target positions that are not padding.
    """
    tokens = max(sums["tokens"], 1.0)  # there is none where only damaged data was skipped
    nll = sums["nll"] / tokens
    return {
        "loss": sums["loss"] / tokens,
        "nll": nll,
        "perplexity": math.exp(min(nll, 100.0)),  # e**100 is a number in JSON, infinity is not
        "token_accuracy": sums["correct"] / tokens,
        "fill_rate": sums["tokens"] / sums["positions"],
    }


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


class MetricsWriter:
    """Writes the metrics of a run into its model directory.

    Args:
        model_dir: gets metrics.jsonl and tensorboard/{train,valid,test}.
        step: the step that the run starts at; what metrics.jsonl holds of later steps, which are
            about to be run again, is removed. TensorBoard's files are only ever added to.
        active: False for a writer that writes nothing, on workers that are not the chief.

    Raises:
        UsageError: when metrics.jsonl cannot be read.
    """

    def __init__(self, model_dir: str, step: int, *, active: bool = True):
        self._active = active
        self._path = os.path.join(model_dir, "metrics.jsonl")
        self._boards = os.path.join(model_dir, "tensorboard")
        self._writers: dict[str, Any] = {}
        if active:
            self._forget_after(step)

    def _forget_after(self, step: int) -> None:
        if not tf.io.gfile.exists(self._path):
            return
        with tf.io.gfile.GFile(self._path) as file:
            # A killed run can leave half a line, without its end, and only as the last one.
            lines = [line for line in file.read().splitlines(keepends=True) if line.endswith("\n")]
        # Test scores stand at the end of a run, which is still to come.
        kept = []
        for number, line in enumerate(lines, start=1):
            values = self._parse(line, number)
            if values["step"] <= step and values["split"] != "test":
                kept.append(line)
        temporary = f"{self._path}.incomplete"
        with tf.io.gfile.GFile(temporary, "w") as file:
            file.write("".join(kept))
        tf.io.gfile.rename(temporary, self._path, overwrite=True)

    def _parse(self, line: str, number: int) -> dict[str, Any]:
        try:
            return json.loads(line)
        except ValueError as error:
            raise UsageError(
                f"{self._path}, line {number} is not JSON ({error}); delete the line"
            ) from error

    def _writer(self, split: str):
        if split not in self._writers:
            self._writers[split] = tf.summary.create_file_writer(
                os.path.join(self._boards, split), flush_millis=30_000
            )
        return self._writers[split]

    def write(self, split: str, step: int, metrics: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl, and the numbers in it to TensorBoard."""
        if not self._active:
            return
        line = {"step": step, "time": round(time.time(), 3), "split": split, **metrics}
        with tf.io.gfile.GFile(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")
        with self._writer(split).as_default(step=step):
            for name, value in metrics.items():
                if isinstance(value, int | float):
                    group = "quality" if name in _QUALITY else "training"
                    tf.summary.scalar(f"{group}/{name}", value)

    def text(self, split: str, step: int, name: str, markdown: str) -> None:
        """Shows a text, in Markdown, under TensorBoard's Text tab."""
        if not self._active:
            return
        with self._writer(split).as_default(step=step):
            tf.summary.text(name, markdown)

    def flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()


def translations_table(rows: list[tuple[str, str, str]]) -> str:
    """A Markdown table of (source, reference, translation)."""

    def cell(text: str) -> str:
        return text.replace("|", "\\|")

    lines = ["| source | reference | translation |", "|---|---|---|"]
    lines += ["| " + " | ".join(cell(text) for text in row) + " |" for row in rows]
    return "\n".join(lines)
