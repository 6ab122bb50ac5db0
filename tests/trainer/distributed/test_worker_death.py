"""Two real workers under launch.local, one killed and one stopped: the result is the same."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from configs import schema

ROOT = Path(__file__).parents[3]
STEPS, LOOP = 300, 5

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")


class Story:
    """A run of two workers; its lines are read as they come."""

    def __init__(self, folder: Path, config: Path, data: str, model: Path, *flags: str):
        self._lines: list[str] = []
        command = [sys.executable, "-m", "launch.local", "--workers=2", "--"]
        command += [f"--config={config}", f"--data_dir={data}", f"--model_dir={model}", *flags]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._clock = threading.Timer(1500, self.process.kill)  # no test waits forever
        self._clock.start()

    def read_until(self, text: str) -> str:
        """The next line that holds it."""
        for line in self.process.stdout:
            self._lines.append(line)
            if text in line:
                return line
        raise AssertionError("".join(self._lines[-40:]))

    def send(self, number: int, index: int) -> None:
        """A signal to a worker."""
        launcher = self.process.pid
        task = f'"index": {index}}}'
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        (pid,) = (int(p) for p in children if task in Path(f"/proc/{p}/environ").read_text())
        os.kill(pid, number)

    def finish(self) -> None:
        """Reads on to the end, which must be a good one."""
        self._lines += self.process.stdout
        assert self.process.wait() == 0, "".join(self._lines[-40:])
        self.close()

    def close(self) -> None:
        self._clock.cancel()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def start(tmp_path, manifest, tiny_config):
    """Returns a function that starts a run with that model directory and those flags."""
    config = tiny_config(
        model={"dropout": 0.1},
        train={
            "steps": STEPS,
            "steps_per_loop": LOOP,
            "checkpoint_every": 20,
            "evaluate_every": STEPS,
        },
        decode={"validation_sentences": 2, "beam_size": 1},
    )
    path = tmp_path / "config.py"
    values = json.dumps(schema.to_dict(config))
    path.write_text(
        "import json\nfrom configs import schema\n\n\ndef get_config():\n"
        f"    return schema.from_dict(json.loads({values!r}))\n"
    )
    with contextlib.ExitStack() as stack:

        def run(name: str, *flags: str) -> Story:
            story = Story(tmp_path, path, manifest.directory, tmp_path / name, *flags)
            stack.callback(story.close)
            return story

        yield run


def variables(model: Path) -> dict[str, np.ndarray]:
    """All of the last checkpoint but the elapsed time."""
    reader = tf.train.load_checkpoint(str(model / "checkpoints" / f"ckpt-{STEPS}"))
    names = reader.get_variable_to_shape_map()
    return {name: reader.get_tensor(name) for name in names if "seconds" not in name}


def losses(model: Path) -> dict[int, float]:
    """Step -> training loss."""
    lines = map(json.loads, (model / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["split"] == "train"}


@pytest.mark.slow
def test_killed_and_stopped_workers(start, tmp_path):
    """Worker 1 is killed; after the restart the chief stands still for longer than the time-out."""
    start("undisturbed").finish()
    story = start("disturbed", "--worker_timeout_seconds=60")
    story.read_until(f"      40/{STEPS}")
    story.send(signal.SIGKILL, 1)
    assert "worker 1 died of SIGKILL; the others are stopped\n" in story.read_until("[launch]")
    assert "restart 1 of 3" in story.read_until("[launch]")
    story.read_until("resumed at step")
    story.read_until(f"     100/{STEPS}")
    story.send(signal.SIGSTOP, 0)
    line = story.read_until("error: ")
    assert line.startswith("[worker 1] error: worker 0 (localhost:")
    assert ") has not answered for 60 s; ending, so that all can be started again" in line
    assert "worker 0 has not answered for 60 s, says worker 1; it is killed\n" in story.read_until(
        "[launch]"
    )
    assert "restart 2 of 3" in story.read_until("[launch]")
    story.finish()

    expected, found = variables(tmp_path / "undisturbed"), variables(tmp_path / "disturbed")
    assert expected.keys() == found.keys() and len(expected) > 50
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    before, after = losses(tmp_path / "undisturbed"), losses(tmp_path / "disturbed")
    # The first step of a start has a line of its own, and the line after it tells of one step less.
    own = after.keys() - before.keys()
    assert len(own) == 2 and len(before) > STEPS // LOOP
    assert {step: before[step] for step in before if step - LOOP + 1 not in own} == {
        step: after[step] for step in before if step - LOOP + 1 not in own
    }
