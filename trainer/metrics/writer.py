"""Write what is measured: metrics.jsonl, TensorBoard, and what the model produced."""

import contextlib
import html
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from common.console import error_text, warn
from common.errors import UsageError
from common.files import write_bytes
from trainer.metrics import boards
from trainer.metrics.goodput import Ledger, goodput
from trainer.reporting.differences import differences
from trainer.reporting.records import PICTURES, read_metrics


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def image(title: str, png: bytes) -> None:
    """Write a PNG image with tf.summary."""
    tf.summary.image(title, tf.io.decode_png(png, channels=3)[tf.newaxis])


class MetricsWriter:
    """Writes the metrics of a run into its model directory.

    Metrics that cannot be written, for example to a full disk, cost one warning and do not end the
    run. Lines of metrics.jsonl wait until there is room again; TensorBoard's points are lost.

    An object store cannot append to an object: every line would send the whole file again. For
    such a model directory, the files are written on this machine. `flush` copies metrics.jsonl,
    and moves TensorBoard's files, each of them once, when it is closed.

    Args:
        model_dir: gets metrics.jsonl, tensorboard/{train,valid,test} and translations/.
        step: the step that the run starts from. Later steps run again: metrics.jsonl loses their
            lines, and TensorBoard's files, which are only ever added to, say that those points
            do not count.
        active: False for a writer that writes nothing, on workers that are not the chief.
        ledger: counts where the time goes, for every line; None for none.

    Attributes:
        listener: gets the split, step and metrics of every line too; None for none.

    Raises:
        UsageError: when metrics.jsonl cannot be read or rewritten.
    """

    def __init__(
        self, model_dir: str, step: int, *, active: bool = True, ledger: Ledger | None = None
    ):
        self._active, self._ledger = active, ledger
        self.listener: Callable[[str, int, dict[str, Any]], None] | None = None
        self._model_dir = model_dir
        self._path = os.path.join(model_dir, "metrics.jsonl")
        self._spool: tempfile.TemporaryDirectory | None = None
        self._writers: dict[str, Any] = {}
        self._first_step = step + 1
        self._marked: set[str] = set()  # splits that say where they start
        self._warned = False
        self._waiting: list[str] = []  # lines that are not written yet
        self._torn = False  # the file may end in one of them, or in half of it
        self._unsent = False
        if active:
            remote = self._path
            if "://" in model_dir:
                self._spool = tempfile.TemporaryDirectory(prefix="metrics-")
                self._path = os.path.join(self._spool.name, "metrics.jsonl")
            try:
                if self._spool and tf.io.gfile.exists(remote):
                    tf.io.gfile.copy(remote, self._path)
                # Test scores stand at the end of a run, which is still to come.
                self._keep(lambda line: line["step"] <= step and line["split"] != "test")
            except tf.errors.OpError as error:
                raise UsageError(f"{remote} cannot be written: {error_text(error)}") from error
        self._boards = os.path.join(self._spool.name if self._spool else model_dir, "tensorboard")

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Keep the wanted lines of metrics.jsonl; drop half a line that a killed run has left."""
        if not tf.io.gfile.exists(self._path):
            return
        with tf.io.gfile.GFile(self._path) as file:
            text = file.read()
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        kept = "".join(
            line for number, line in enumerate(lines, start=1) if wanted(self._parse(line, number))
        )
        if kept == text:
            return
        write_bytes(self._path, kept.encode(), alone=True)

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            if not self._warned:
                warn(
                    f"metrics cannot be written to {self._model_dir}: {error_text(error)}; "
                    "training goes on, and this is said once"
                )
            self._warned = True

    def _parse(self, line: str, number: int) -> dict[str, Any]:
        try:
            return json.loads(line)
        except ValueError as error:
            raise UsageError(
                f"{self._path}, line {number} is not JSON ({error}); delete the line"
            ) from error

    def _writer(self, split: str):
        if split not in self._marked:
            self._mark_start(split)
            self._marked.add(split)
        if split not in self._writers:
            self._writers[split] = tf.summary.create_file_writer(
                os.path.join(self._boards, split), flush_millis=30_000
            )
        return self._writers[split]

    def _mark_start(self, split: str) -> None:
        """Tell readers of the event files that older points from this step on do not count.

        As TensorFlow 1 did at every start, with an event SessionLog.START, of which readers pass
        over the first. Here it has a file of its own, whose name comes before that of the next
        file. Test scores are all written again.
        """
        folder = os.path.join(self._boards, split)
        tf.io.gfile.makedirs(folder)
        now, v1 = time.time(), tf.compat.v1
        start = v1.SessionLog(status=v1.SessionLog.START)
        step = 0 if split == "test" else self._first_step
        path = os.path.join(folder, f"events.out.tfevents.{int(now):010}.{socket.gethostname()}")
        with tf.io.TFRecordWriter(path) as file:
            for event in (
                v1.Event(wall_time=now, file_version="brain.Event:2"),
                v1.Event(wall_time=now, step=step, session_log=start),
            ):
                file.write(event.SerializeToString())

    def write(self, split: str, step: int, metrics: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl, and the numbers in it to TensorBoard."""
        if not self._active:
            return
        if self._ledger:
            spent = self._ledger.spent()
            metrics = {**metrics, "goodput": round(goodput(spent), 4), "spent": spent}
        line = {"step": step, "time": round(time.time(), 3), "split": split, **metrics}
        if self.listener:
            self.listener(split, step, metrics)
        self._waiting.append(json.dumps(line))
        self._write_waiting()
        with self._tolerant(), self._writer(split).as_default(step=step):
            for name, value in metrics.items():
                if isinstance(value, int | float):
                    tf.summary.scalar(boards.tag_of(name), value)

    def _write_waiting(self) -> None:
        with self._tolerant():
            if self._torn:
                self._keep(lambda line: json.dumps(line) not in self._waiting)
            while self._waiting:
                self._torn = True
                with tf.io.gfile.GFile(self._path, "a") as file:
                    file.write(self._waiting[0] + "\n")
                self._torn, self._unsent = False, True
                del self._waiting[0]

    def rewind(self, step: int) -> None:
        """Go back to a step: later ones run again, as at the start."""
        self.flush()
        if self._active:
            for writer in self._writers.values():
                writer.close()
            self._writers.clear()
            self._marked.clear()
            self._first_step = step + 1
            if self._ledger:
                self._ledger.rewind(read_metrics(os.path.dirname(self._path)), step)
            with self._tolerant():
                self._keep(lambda line: line["step"] <= step)

    def text(self, split: str, step: int, name: str, markdown: str) -> None:
        """Show a text, in Markdown, under TensorBoard's Text tab."""
        self.show(split, step, lambda: tf.summary.text(name, markdown))

    def images(self, split: str, step: int, pictures: Mapping[str, bytes]) -> None:
        """Show PNG images under TensorBoard's Images tab: title -> image."""

        def draw() -> None:
            for title, png in pictures.items():
                image(title, png)

        self.show(split, step, draw)

    def start_boards(
        self,
        step: int,
        settings: Mapping[str, Any],
        scores: Collection[str],
        rates: Collection[str],
    ) -> None:
        """Lay out TensorBoard's first page, and enter the run into its table of runs.

        Args:
            step: the first one that is about to run.
            settings: of the configuration, "group.field" -> value.
            scores: metrics of evaluations, to sort the runs by.
            rates: metrics of training, per second.
        """

        def enter() -> None:
            page = boards.first_page([*scores, *rates])
            for summary in (page, *boards.table_of_runs(self._model_dir, settings, scores)):
                tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=step)

        self.show("valid", step, enter)

    def show(self, split: str, step: int, draw: Callable[[], Any]) -> None:
        """Call a function that writes with tf.summary, so that it writes to a split's board."""
        if not self._active:
            return
        with self._tolerant(), self._writer(split).as_default(step=step):
            draw()

    def board_files(self, split: str, contents: Mapping[str, str]) -> None:
        """Put files of TensorBoard's plugins beside the events of a split."""
        self._files(os.path.join(self._boards, split), contents)

    def pictures(self, contents: Mapping[str, bytes]) -> None:
        """Put PNG images into the folder pictures, in place of those of the same name."""
        self._files(os.path.join(self._model_dir, PICTURES), contents)

    def _files(self, folder: str, contents: Mapping[str, str | bytes]) -> None:
        if not self._active:
            return
        with self._tolerant():
            tf.io.gfile.makedirs(folder)
            for name, content in contents.items():
                data = content if isinstance(content, bytes) else content.encode("utf-8")
                write_bytes(os.path.join(folder, name), data, alone=True)

    def outputs(self, name: str, split: str, step: int, lines: Sequence[str]) -> None:
        """Write NAME/SPLIT-STEP.txt, what the model produced, a line an example."""
        text = "".join(f"{line}\n" for line in lines)
        self._files(os.path.join(self._model_dir, name), {f"{split}-{step}.txt": text})

    def flush(self) -> None:
        """Write what is still held back, so that a run that is killed now has all of it."""
        self._write_waiting()
        for writer in self._writers.values():
            with self._tolerant():
                writer.close() if self._spool else writer.flush()
        if self._spool:
            self._writers.clear()
            with self._tolerant():
                self._send()

    def _send(self) -> None:
        """Move TensorBoard's files to the model directory, and copy metrics.jsonl there."""
        for folder, _, names in os.walk(self._boards):
            remote = os.path.join(
                self._model_dir, "tensorboard", os.path.relpath(folder, self._boards)
            )
            for name in names:
                path = os.path.join(folder, name)
                tf.io.gfile.copy(path, os.path.join(remote, name), overwrite=True)
                os.remove(path)
        if self._unsent:
            remote = os.path.join(self._model_dir, "metrics.jsonl")
            tf.io.gfile.copy(self._path, remote, overwrite=True)
            self._unsent = False


def samples_table(samples: Sequence[Mapping[str, str]]) -> str:
    """Return a Markdown table of samples: a row for each, with a column for each label.

    Where there is a reference, the words in which it and the last column differ are bold in both.
    """
    labels = list(samples[0]) if samples else []
    lines = [_row(labels), "|" + "---|" * len(labels)]
    return "\n".join(lines + [_row(_cells(sample)) for sample in samples])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(sample: Mapping[str, str]) -> list[str]:
    """Return the texts of a sample as Markdown."""
    cells = {label: _literal(text) for label, text in sample.items()}
    last = list(sample)[-1]
    if "reference" in sample:
        for label, other in (("reference", last), (last, "reference")):
            cells[label] = " ".join(
                f"**{_literal(words)}**" if differs else _literal(words)
                for words, differs in differences(sample[label], sample[other])
            )
    return list(cells.values())


def _literal(text: str) -> str:
    """Return text so that Markdown shows it as it is."""
    escaped = re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(text, quote=False))
    return escaped.replace("\n", "<br>")
