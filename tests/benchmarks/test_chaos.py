"""The soak tool: that it strikes, and that it sees what differs."""

import json
import random
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow as tf

from benchmarks import same_run
from benchmarks.small import command
from benchmarks.victim import CheckpointFiles, Hit, Times, Victim, expected_codes, verdict
from common.errors import UsageError
from trainer.checkpoints import files


@pytest.fixture
def run_dirs(tmp_path):
    """Two equal model directories, each with two checkpoints of two variables."""
    folder = tmp_path / "whole" / "checkpoints"
    folder.mkdir(parents=True)
    for step in (4, 8):
        path = str(folder / f"ckpt-{step}")
        state = tf.Module()
        state.seconds = tf.Variable(float(step))
        tf.train.Checkpoint(
            weight=tf.Variable([1.0, step]), best=tf.Variable(float("nan")), state=state
        ).write(path)
        described = files.describe_files(str(folder), step)
        metrics = {"loss": 1.5, "evaluate_seconds": 2.0}
        files.write_manifest(files.Checkpoint(path, step, 0.0, described, metrics, False, {}))
    lines = [{"split": "train", "step": step, "time": 0.0, "loss": 2.0} for step in (1, 4, 8)]
    lines += [{"split": "valid", "step": 8, "time": 0.0, "loss": 1.5}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "whole" / "metrics.jsonl").write_text(text)
    shutil.copytree(tmp_path / "whole", tmp_path / "other")
    return str(tmp_path / "whole"), str(tmp_path / "other")


def test_a_line_of_a_start_is_no_difference(run_dirs):
    """A start reports on its first step alone: step 8 becomes step 5 and steps 6 to 8."""
    path = Path(run_dirs[1], "metrics.jsonl")
    lines = path.read_text().splitlines()
    lines[2:3] = [lines[2].replace("8", "5"), lines[2].replace("2.0", "2.1")]
    path.write_text("".join(line + "\n" for line in lines))
    assert same_run.differences(*run_dirs) == []


def test_equal_runs(run_dirs):
    assert same_run.differences(*run_dirs) == []
    assert same_run.newest(run_dirs[0]) == 8


def test_other_times_of_an_evaluation_are_no_difference(run_dirs):
    """It says where the time of the run went."""
    for path, down in zip(run_dirs, (0.0, 3.5), strict=True):
        old, new = '"loss": 1.5}', f'"loss": 1.5, "goodput": 0.5, "spent": {{"down": {down}}}}}'
        _edit_log(path, old, new)
    assert same_run.differences(*run_dirs) == []


def _rewrite(model_dir: str, step: int, **variables) -> None:
    folder = f"{model_dir}/checkpoints"
    files.remove(folder, step)
    path = f"{folder}/ckpt-{step}"
    state = tf.Module()
    state.seconds = tf.Variable(9.0)
    values = {"weight": [1.0, float(step)], "best": float("nan"), **variables}
    tf.train.Checkpoint(
        state=state, **{name: tf.Variable(value) for name, value in values.items()}
    ).write(path)
    described = files.describe_files(folder, step)
    files.write_manifest(files.Checkpoint(path, step, 0.0, described, {"loss": 1.5}, False, {}))


def test_other_elapsed_time_is_no_difference(run_dirs):
    _rewrite(run_dirs[1], 8)
    assert same_run.differences(*run_dirs) == []


def test_one_bit(run_dirs):
    _rewrite(run_dirs[1], 8, weight=[1.0, 8.000001])
    (found,) = same_run.differences(*run_dirs)
    assert found.startswith("weight/") and "differs, by 9.54e-07" in found


def _append(path: str, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def _edit_log(model_dir: str, old: str, new: str) -> None:
    path = Path(model_dir, "metrics.jsonl")
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: _append(f"{path}/checkpoints/ckpt-8.index", "x"), "checkpoint 8: ckpt-8.ind"),
        (
            lambda path: _append(f"{path}/checkpoints/ckpt-4.json.damaged", ""),
            "json.damaged is lef",
        ),
        (
            lambda path: _append(f"{path}/config.json.incomplete", ""),
            "config.json.incomplete is le",
        ),
        (lambda path: files.remove(f"{path}/checkpoints", 8), "are of steps 8 and 4"),
        (
            lambda path: _append(f"{path}/metrics.jsonl", '{"split": "valid"'),
            "metrics.jsonl is half written",
        ),
        (
            lambda path: _append(
                f"{path}/metrics.jsonl", '{"split": "valid", "step": 9, "loss": 1}\n'
            ),
            "the valid lines",
        ),
        (
            lambda path: _append(
                f"{path}/metrics.jsonl", '{"split": "train", "step": 8, "loss": 2}\n'
            ),
            "step 8 twice",
        ),
        (
            lambda path: _edit_log(path, '"step": 4', '"step": 5'),
            "lost the line of training step 4",
        ),
        (
            lambda path: _edit_log(path, '"loss": 2.0', '"loss": 2.0000001'),
            "the loss of steps 1 to 1 is 2.0000001, not 2.0",
        ),
    ],
)
def test_what_is_found(run_dirs, spoil, words):
    spoil(run_dirs[1])
    found = same_run.differences(*run_dirs)
    assert found and words in found[0]


@pytest.mark.parametrize(
    ("fault", "phase", "target", "codes"),
    [
        ("SIGKILL", "step", "the trainer", {-9}),
        ("SIGKILL", "step", "the launcher", {-9}),
        ("SIGKILL", "step", "worker 1", {1}),
        ("SIGTERM", "step", "the trainer", {42}),
        ("SIGTERM", "compile", "worker 0", {42}),
        ("SIGTERM", "start", "the trainer", {42, -15}),
        ("SIGTERM", "start", "worker 0", {42, 1}),
    ],
)
def test_codes(fault, phase, target, codes):
    assert expected_codes(fault, Hit(phase, 0, target, ended=True, left=0)) == codes


def test_commands():
    assert command("1", ["--x"])[1:] == ["-m", "trainer.main", "--x"]
    assert command("4", ["--x"])[2:] == ["trainer.main", "--num_virtual_devices=4", "--x"]
    assert command("2w", ["--x"])[2:4] == ["launch.local", "--workers=2"]
    assert command("2w", ["--x"])[-2:] == ["--", "--x"]
    with pytest.raises(UsageError, match="'w2'"):
        command("w2", [])


# The files that a training writes, without TensorFlow.
_FAKE = """
import itertools, json, os, signal, sys, time
folder, how = sys.argv[1], sys.argv[2:]
if "deaf" in how:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(f"{folder}/config.json", "w") as file:
    json.dump({"config": {"train": {"evaluate_every": 6, "checkpoint_every": 4}}}, file)
def log(split, step):
    with open(f"{folder}/metrics.jsonl", "a") as file:
        line = {"step": step, "time": round(time.time(), 3), "split": split}
        file.write(json.dumps(line) + "\\n")
os.makedirs(f"{folder}/tensorboard/train", exist_ok=True)
open(f"{folder}/tensorboard/train/events.{os.getpid()}", "w").close()
def stay(phase):
    while phase in how:
        time.sleep(0.01)
stay("compile")
for step in itertools.count(1):
    log("train", step)
    time.sleep(0.01)
    if step % 6 == 0:
        stay("evaluation")
        time.sleep(0.2)
        log("valid", step)
    if step % 4 == 0:
        path = f"{folder}/checkpoints/ckpt-{step}"
        for end in (".data-00000-of-00001", ".index"):
            with open(path + end, "w") as file:
                file.write("x" * 100_000)
            time.sleep(0.01)
            if step >= 24:
                stay("write")
        temporary = f"{path}.json.incomplete" if "rename" in how else f"{path}.json"
        with open(temporary, "w") as file:
            file.write("{}")
        os.rename(temporary, f"{path}.json")
"""
_TIMES = Times(start=0.02, compile=0.01, evaluation=0.1, whole=1e9)  # it never ends by itself


def _fake(folder, *arguments: str) -> Victim:
    """A training that goes on in a model directory in which there was one before."""
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "tensorboard" / "train").mkdir(parents=True, exist_ok=True)
    (folder / "tensorboard" / "train" / "events.0").touch()
    old = {"step": 900, "time": 1.0, "split": "train"}
    (folder / "metrics.jsonl").write_text(json.dumps(old) + "\n")
    return Victim([sys.executable, "-c", _FAKE, str(folder), *arguments], str(folder))


def _names(folder) -> set[str]:
    return {path.name for path in (folder / "checkpoints").iterdir()}


@pytest.mark.parametrize("seed", range(3))
def test_a_checkpoint_is_hit_while_it_is_written(tmp_path, seed):
    (tmp_path / "checkpoints").mkdir()
    # Of a kill before, and of a later step than those that are written now.
    (tmp_path / "checkpoints" / "ckpt-9000.index").touch()
    # It stays in step 24: a later one is not waited for longer than two minutes.
    hit = _fake(tmp_path, "write").strike("SIGKILL", "write", Times(), random.Random(seed))
    names = _names(tmp_path) - {"ckpt-9000.index"}
    newest = max(int(name[5:].partition(".")[0]) for name in names)
    assert (hit.phase, hit.ended) == ("write", True)
    assert f"ckpt-{newest}.json" not in names
    assert hit.left == 1 + sum(name.startswith(f"ckpt-{newest}.") for name in names)


def test_phase_and_files_agree_where_the_rename_was_aimed_at(tmp_path):
    """Whether it is met is luck on a busy machine; that it is said only when it was, is not."""
    hit = _fake(tmp_path, "rename").strike("SIGKILL", "rename", _TIMES, random.Random(1))
    assert (hit.phase == "rename") == any(name.endswith(".incomplete") for name in _names(tmp_path))


def test_a_rename_that_never_comes_is_not_waited_for(tmp_path):
    hit = _fake(tmp_path).strike("SIGKILL", "rename", _TIMES, random.Random(1))
    assert hit.ended and hit.phase in ("step", "evaluation")


def test_checkpoints_that_come_and_go_unseen_are_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(CheckpointFiles, "writing", lambda files: (0, "write"))
    hit = _fake(tmp_path).strike("SIGKILL", "write", _TIMES, random.Random(1))
    assert hit.ended and hit.phase in ("step", "evaluation")


def test_a_checkpoint_that_was_removed_is_not_waited_for(tmp_path, monkeypatch):
    now = [0.0]

    def writing(files):
        now[0] += 1.0
        return 2, "write"

    clock = SimpleNamespace(time=time.time, sleep=time.sleep, monotonic=lambda: now[0])
    monkeypatch.setattr("benchmarks.victim.time", clock)
    monkeypatch.setattr(CheckpointFiles, "writing", writing)
    hit = _fake(tmp_path).strike("SIGKILL", "rename", Times(), random.Random(1))
    assert hit.ended and hit.phase in ("step", "evaluation")


def test_an_evaluation_is_hit(tmp_path):
    victim = _fake(tmp_path, "evaluation")
    hit = victim.strike("SIGKILL", "evaluation", _TIMES, random.Random(1))
    assert (hit.phase, hit.step % 6, victim.code) == ("evaluation", 0, -9)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["split"] == "train"


def test_compilation_is_hit(tmp_path):
    """It has begun when this start, not one before, has a file of TensorBoard's."""
    hit = _fake(tmp_path, "compile").strike("SIGKILL", "compile", _TIMES, random.Random(1))
    assert (hit.phase, hit.step) == ("compile", 0)


def test_the_times_of_an_undisturbed_run(tmp_path, monkeypatch):
    """Also of one whose first lines are far from the end of the file."""
    monkeypatch.setattr("benchmarks.victim._TAIL_BYTES", 200)
    program = _FAKE.replace("itertools.count(1)", "range(1, 13)")
    (tmp_path / "checkpoints").mkdir()
    victim = Victim([sys.executable, "-c", program, str(tmp_path)], str(tmp_path))
    times = victim.measure()
    assert victim.code == 0 and times.evaluation >= 0.2
    assert times.whole >= times.start + times.compile + 12 * 0.01 + 2 * 0.2
    assert times.start > 0.0


def test_a_training_that_does_not_end_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.victim._DEADLINE", 1.0)
    victim = _fake(tmp_path, "deaf")
    hit = victim.strike("SIGTERM", "step", _TIMES, random.Random(1))
    assert not hit.ended and victim.code == -9
    assert "did not end" in verdict("SIGKILL", hit, victim.code)


def test_a_training_that_was_done_before(tmp_path):
    victim = Victim([sys.executable, "-c", "pass"], str(tmp_path))
    assert victim.strike("SIGKILL", "step", _TIMES, random.Random(1)) is None
    assert victim.finish() == 0


def test_older_files_are_not_being_written(tmp_path):
    (tmp_path / "ckpt-8.index").touch()
    found = CheckpointFiles(str(tmp_path))
    assert found.writing()[0] == 0 and found.unfinished() == ["ckpt-8.index"]
    (tmp_path / "ckpt-12.index").touch()
    assert found.writing() == (12, "write")
    (tmp_path / "ckpt-12.json.incomplete").touch()
    assert found.writing() == (12, "rename")
    assert found.unfinished() == ["ckpt-12.index", "ckpt-12.json.incomplete", "ckpt-8.index"]
    (tmp_path / "ckpt-12.json.incomplete").rename(tmp_path / "ckpt-12.json")
    assert found.writing()[0] == 0 and found.unfinished() == ["ckpt-8.index"]
    (tmp_path / "ckpt-10.data-00000-of-00001").touch()  # one that is being removed
    assert found.writing()[0] == 0
    (tmp_path / "ckpt-16.index").touch()
    assert found.writing() == (16, "write")
