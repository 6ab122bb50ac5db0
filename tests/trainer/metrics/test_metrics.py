"""What is measured and where it is written."""

import json

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from common.errors import UsageError
from trainer.metrics.writer import MetricsWriter, clock, samples_table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.4, "0:00:59"), (59.6, "0:01:00"), (3600, "1:00:00"), (90061, "25:01:01")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def lines(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_lines_hold_step_split_and_metrics(tmp_path):
    writer = MetricsWriter(str(tmp_path), 0)
    writer.write("train", 3, {"loss": 1.5})
    writer.write("valid", 4, {"bleu": 12.25, "signature": "a|b"})
    writer.text("valid", 4, "translations", "| a |")
    writer.flush()
    first, second = lines(tmp_path)
    assert first.pop("time") > 1e9
    assert first == {"step": 3, "split": "train", "loss": 1.5}
    assert (second["split"], second["bleu"], second["signature"]) == ("valid", 12.25, "a|b")
    for split in ("train", "valid"):
        start, events = sorted((tmp_path / "tensorboard" / split).iterdir())
        assert start.stat().st_size < 100 < events.stat().st_size


def test_what_lies_beyond_the_step_is_dropped(tmp_path):
    """A run that was killed at step 7 and resumes at 5 writes 6 and 7 again."""
    writer = MetricsWriter(str(tmp_path), 0)
    for step in range(1, 8):
        writer.write("train", step, {"loss": float(step)})
    writer.write("valid", 5, {"loss": 0.5})
    MetricsWriter(str(tmp_path), 5).write("train", 6, {"loss": 60.0})
    result = [(line["step"], line["split"], line["loss"]) for line in lines(tmp_path)]
    assert result == [
        *((step, "train", float(step)) for step in range(1, 6)),
        (5, "valid", 0.5),
        (6, "train", 60.0),
    ]
    assert not (tmp_path / "metrics.jsonl.incomplete").exists()


def age(directory):
    """Give the event files an older time in their names, as those of an earlier start have."""
    for path in (directory / "tensorboard").glob("*/events*"):
        path.rename(path.with_name(f"events.out.tfevents.1000000000.{path.name}"))


def points(directory, split: str) -> list[tuple[int, float]]:
    """What TensorBoard's own reader makes of the event files."""
    folder = directory / "tensorboard" / split
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    found = [(point.step, point.tensor_proto) for point in events.Tensors("quality/loss")]
    return [(step, float(tf.make_ndarray(value))) for step, value in found]


@pytest.mark.parametrize("step", [0, 5])
def test_a_restart_counts_no_step_twice_in_tensorboard(tmp_path, step):
    """Killed at step 7, started again from step 5, or from nothing."""
    writer = MetricsWriter(str(tmp_path), 0)
    for number in range(1, 8):
        writer.write("train", number, {"loss": float(number)})
    writer.write("test", 3, {"loss": 3.0})
    writer.flush()
    age(tmp_path)
    writer = MetricsWriter(str(tmp_path), step)
    for number in range(step + 1, 7):
        writer.write("train", number, {"loss": 10.0 * number})
    writer.write("test", 3, {"loss": 30.0})
    writer.flush()
    assert points(tmp_path, "train") == [
        (number, float(number if number <= step else 10 * number)) for number in range(1, 7)
    ]
    assert points(tmp_path, "test") == [(3, 30.0)]


def test_a_rollback_counts_no_step_twice(tmp_path):
    writer = MetricsWriter(str(tmp_path), 0)
    for number in range(1, 5):
        writer.write("train", number, {"loss": float(number)})
    writer.rewind(2)
    age(tmp_path)
    writer.write("train", 3, {"loss": 30.0})
    writer.flush()
    assert points(tmp_path, "train") == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 2.0, 30.0]


@pytest.mark.parametrize("half", ['{"step": 2, "lo', '{"step": 2}', "{"])
def test_half_a_line_is_removed(tmp_path, half):
    MetricsWriter(str(tmp_path), 0).write("train", 1, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(half)
    MetricsWriter(str(tmp_path), 9).write("train", 2, {"loss": 2.0})
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 2.0]


def test_starting_anew_forgets_everything(tmp_path):
    MetricsWriter(str(tmp_path), 0).write("train", 1, {"loss": 1.0})
    MetricsWriter(str(tmp_path), 0)
    assert lines(tmp_path) == []


def test_unicode_line_separators(tmp_path):
    """Line separators that only Unicode knows do not end a line."""
    MetricsWriter(str(tmp_path), 0).write("train", 1, {"note": "a\u2028b"})
    MetricsWriter(str(tmp_path), 1)
    assert lines(tmp_path)[0]["note"] == "a\u2028b"


def test_samples_table():
    sample = {"source": "a | b", "reference": "ein gutes W_", "translation": "ein <b> W_ hier"}
    assert samples_table([sample]).splitlines() == [
        "| source | reference | translation |",
        "|---|---|---|",
        "| a \\| b | ein **gutes** W\\_ | ein **&lt;b&gt;** W\\_ **hier** |",
    ]
    assert samples_table([{"text": "a\nb"}]).splitlines()[2] == "| a<br>b |"
    assert samples_table([]).count("\n") == 1


def fail(*arguments, **options):
    raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")


def test_a_full_disk_costs_one_warning(tmp_path, monkeypatch, capsys):
    """Of everything that is written; later lines are there when there is room again."""
    writer = MetricsWriter(str(tmp_path), 0)
    writer.write("train", 1, {"loss": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(tf.io.gfile, "GFile", fail)
        patch.setattr(tf.summary, "scalar", fail)
        patch.setattr(tf.summary, "text", fail)
        patch.setattr(tf.summary, "create_file_writer", fail)
        writer.write("train", 2, {"loss": 2.0})
        writer.write("valid", 2, {"loss": 2.0})
        writer.text("valid", 2, "translations", "| a |")
        writer.outputs("translations", "valid", 2, ["a"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"warning: metrics cannot be written to {tmp_path}: No space left on device; training "
        "goes on, and this is said once"
    )
    writer.write("train", 3, {"loss": 3.0})
    writer.outputs("translations", "valid", 3, ["a", "b"])
    written = [(line["split"], line["step"]) for line in lines(tmp_path)]
    assert written == [("train", 1), ("train", 2), ("valid", 2), ("train", 3)]
    assert (tmp_path / "translations" / "valid-3.txt").read_text() == "a\nb\n"


def test_half_a_line_of_a_full_disk_is_removed(tmp_path, monkeypatch):
    writer = MetricsWriter(str(tmp_path), 0)
    writer.write("train", 1, {"loss": 1.0})
    gfile = tf.io.gfile.GFile

    class HalfFile(gfile):
        def write(self, text):
            super().write(text[:9])
            self.flush()
            fail()

    with monkeypatch.context() as patch:
        patch.setattr(tf.io.gfile, "GFile", HalfFile)
        writer.write("train", 2, {"loss": 2.0})
    assert not (tmp_path / "metrics.jsonl").read_text().endswith("\n")
    writer.flush()
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 2.0]


def test_a_line_of_which_it_is_unknown_whether_it_is_written_is_there_once(tmp_path, monkeypatch):
    writer = MetricsWriter(str(tmp_path), 0)
    gfile = tf.io.gfile.GFile

    class FailsLate(gfile):
        def close(self):
            super().close()
            fail()

    with monkeypatch.context() as patch:
        patch.setattr(tf.io.gfile, "GFile", FailsLate)
        writer.write("train", 1, {"loss": float("nan")})
    assert len(lines(tmp_path)) == 1
    writer.write("train", 2, {"loss": 2.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_full_disk_at_the_start(tmp_path, monkeypatch):
    MetricsWriter(str(tmp_path), 0).write("train", 5, {"loss": 1.0})
    monkeypatch.setattr(tf.io.gfile, "rename", fail)
    with pytest.raises(UsageError, match=r"metrics.jsonl cannot be written: No space left"):
        MetricsWriter(str(tmp_path), 3)
    MetricsWriter(str(tmp_path), 5)  # there is nothing to remove, so nothing is written
