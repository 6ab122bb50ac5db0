"""The soak tool: that it strikes, and that it sees what differs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from benchmarks import same_run
from benchmarks.chaos import command
from benchmarks.topologies import leg_command
from benchmarks.victim import Victim
from data_pipeline.errors import UsageError
from trainer import checkpoint_files as files

_ROOT = Path(__file__).parents[2]


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


def test_equal_runs(run_dirs):
    assert same_run.differences(*run_dirs) == []
    assert same_run.newest(run_dirs[0]) == 8


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
    ],
)
def test_what_is_found(run_dirs, spoil, words):
    spoil(run_dirs[1])
    found = same_run.differences(*run_dirs)
    assert found and words in found[0]


def test_codes():
    victim = Victim([sys.executable, "-c", "pass"], "nowhere")
    assert victim.finish() == 0
    assert victim.expected_codes("SIGKILL", "step") == {-9}
    assert victim.expected_codes("SIGTERM", "step") == {42}
    assert victim.expected_codes("SIGTERM", "start") == {42, -15}
    assert command(2, ["--x"])[1:4] == ["-m", "launch.local", "--workers=2"]


def test_legs():
    assert leg_command("4")[-1] == "--num_virtual_devices=4"
    assert "--workers=2" in leg_command("2w")
    with pytest.raises(UsageError, match="'w2'"):
        leg_command("w2")


def test_the_command(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.chaos", "--kills=1", "--terms=1", "--seed=3"),
            f"--work_dir={tmp_path}",
        ],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical after 2 faults: step 48" in done.stdout
    assert done.stdout.count("SIGKILL to the trainer in") == 1
    assert done.stdout.count("SIGTERM to the trainer in") == 1
