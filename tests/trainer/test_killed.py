"""Trainings that SIGKILL ends at a chosen step, and that are then started again.

`benchmarks.chaos` kills at any moment; here the step is known, and so is what is special about it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import same_run, small
from tests.commands import run_command
from trainer.checkpoints.saver import find

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).parents[2]
_STEPS = 14
_FLAGS = (
    *small.FLAGS,
    "--config.train.batch_tokens=512",
    "--config.train.steps_per_loop=1",
    "--config.train.checkpoint_every=3",
    f"--config.train.steps={_STEPS}",
    f"--config.train.evaluate_every={_STEPS}",
    "--config.train.average_checkpoints=0",
    "--config.decode.validation_sentences=4",
)

# The trainer, that kills itself when so many steps are done and all checkpoints are written.
_DYING = """
import os, runpy, signal, sys
from trainer.loop import Loop
last, train = int(sys.argv.pop(1)), Loop._train_stretch
def train_or_die(loop):
    if loop._step == last:
        loop._run.checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    return train(loop)
Loop._train_stretch = train_or_die
runpy.run_module("trainer.main", run_name="__main__")
"""


def _prepare(directory: Path, size: int, *flags: str) -> Path:
    code, _, err = run_command(
        "data_pipeline.main",
        f"--train=builtin:train?size={size}",
        "--valid=builtin:valid?size=20",
        "--num_shards=2",
        "--row_length=64",
        f"--output_dir={directory}",
        *flags,
    )
    assert code == 0, err
    return directory


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return _prepare(tmp_path_factory.mktemp("killed") / "data", 400, "--vocab_size=600")


@pytest.fixture
def train(data_dir, tmp_path):
    """Trains to the last step into the model directory of that name; or, with `dies_at`, to that
    step, until SIGKILL. Returns what it printed."""

    def run(name: str, *flags: str, dies_at: int = 0, code: int = 0) -> str:
        program = ["-c", _DYING, str(dies_at)] if dies_at else ["-m", "trainer.main"]
        paths = [f"--data_dir={data_dir}", f"--model_dir={tmp_path / name}"]
        done = subprocess.run(
            [sys.executable, *program, *paths, *_FLAGS, *flags],
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == (-9 if dies_at else code), done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def _tensors(model_dir: Path) -> dict[str, np.ndarray]:
    """Weights, slots and moving average of the last checkpoint."""
    reader = tf.train.load_checkpoint(find(str(model_dir), "latest").path)
    names = reader.get_variable_to_shape_map()
    kept = ("model/", "optimizer/slots", "optimizer/averages")
    return {name: reader.get_tensor(name) for name in names if name.startswith(kept)}


def test_in_the_middle_of_a_stage(train, data_dir, tmp_path):
    """Bit for bit as if it had not been: dead in step 8, saved in step 6, of a stage of steps 6 to
    10. Each stage says how many pairs it has."""
    others = [
        _prepare(tmp_path / f"of_{size}", size, f"--tokenizer={data_dir}/tokenizer.model")
        for size in (300, 200)
    ]
    flags = [
        f"--config.data.stages={others[0]}:5,{others[1]}:10",
        "--config.model.dropout=0.1",
        "--config.optimizer.ema_decay=0.9",
    ]
    train("undisturbed", *flags)
    train("killed", *flags, dies_at=8)
    assert same_run.newest(str(tmp_path / "killed")) == 6
    refused = train("killed", *flags, flags[0].replace(":10", ":11"), code=2)
    assert re.search("^error: .*other (data|settings)", refused, re.MULTILINE)
    output = train("killed", *flags)
    assert "resumed at step 6" in output
    for steps, directory, pairs in (
        ("1 to 5", others[0], 300),
        ("6 to 10", others[1], 200),
        ("11 on", data_dir, 400),
    ):
        assert f"steps {steps}: {directory}, {pairs} examples" in output
    assert same_run.newest(str(tmp_path / "killed")) == _STEPS
    assert same_run.differences(str(tmp_path / "undisturbed"), str(tmp_path / "killed")) == []


def test_with_the_optimizer_in_slices(train, tmp_path):
    """Dead on four replicas, ended on two: the run of one replica with all of it, to rounding."""
    flags = ["--config.model.dropout=0.0", "--config.optimizer.ema_decay=0.9"]
    # As in test_topologies.py; and no kink, which rounding could take a number across.
    flags += ["--config.optimizer.epsilon=1e-4", "--config.model.activation=gelu"]
    train("whole", *flags)
    sharded = [*flags, "--config.train.shard_optimizer"]
    train("killed", *sharded, "--num_virtual_devices=4", dies_at=8)
    output = train("killed", *sharded, "--num_virtual_devices=2")
    assert "resumed at step 6" in output and "2 replicas on virtual CPU devices" in output
    ours, whole = (same_run.read_log(str(tmp_path / name), "train") for name in ("killed", "whole"))
    assert [line["step"] for line in ours] == [*range(1, _STEPS + 1)]
    losses = [[line["loss"] for line in lines] for lines in (ours, whole)]
    np.testing.assert_allclose(*losses, rtol=2e-6)
    found, expected = (_tensors(tmp_path / name) for name in ("killed", "whole"))
    assert found.keys() == expected.keys()
    assert len(found) > 4 * 20  # weights, two slots, and the average
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-5, atol=1e-6, err_msg=name)
