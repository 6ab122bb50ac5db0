"""The whole of --strategy=tpu, with the calls to the TPU system replaced by a stand-in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from configs import schema

ROOT = Path(__file__).parents[3]
STEPS = 8


@pytest.fixture(scope="module")
def train(tmp_path_factory, manifest, tiny_config):
    """Returns a function that trains; it gives the exit code, the output and what was seen."""
    folder = tmp_path_factory.mktemp("tpu")
    config = tiny_config(
        model={"dropout": 0.1},
        train={"steps": STEPS, "steps_per_loop": 4, "checkpoint_every": 4, "evaluate_every": 8},
        decode={"validation_sentences": 2, "beam_size": 2},
    )
    values = json.dumps(schema.to_dict(config))
    (folder / "config.py").write_text(
        "import json\nfrom configs import schema\n\n\ndef get_config():\n"
        f"    return schema.from_dict(json.loads({values!r}))\n"
    )

    def run(name: str, *command: str, **environment: str):
        seen = folder / f"{name}.seen.json"
        done = subprocess.run(
            [
                *(sys.executable, *command, f"--config={folder}/config.py"),
                *(f"--data_dir={manifest.directory}", f"--model_dir={folder}/{name}"),
            ],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "SEEN": str(seen),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        looked = json.loads(seen.read_text()) if seen.exists() else {}
        return done.returncode, done.stdout, looked

    run.folder = folder
    return run


_TPU = (
    str(ROOT / "tests/trainer/tpu_stand_in.py"),
    "--strategy=tpu",
    "--tpu_type=v5litepod-4",
)


def _variables(model: Path) -> dict[str, np.ndarray]:
    """All of the last checkpoint but the elapsed time."""
    reader = tf.train.load_checkpoint(str(model / "checkpoints" / f"ckpt-{STEPS}"))
    names = reader.get_variable_to_shape_map()
    return {name: reader.get_tensor(name) for name in names if "seconds" not in name}


@pytest.mark.slow
def test_a_run_that_loses_its_tpu_and_goes_on_equals_a_mirrored_one(train):
    code, output, _ = train("run", *_TPU, LOST_AT="5")
    assert code == 1, output
    assert output.splitlines()[-1] == (
        "error: Socket closed; start again, to go on from the checkpoint"
    )

    code, output, seen = train("run", *_TPU)
    assert code == 0, output
    assert "resumed at step 4" in output
    assert "tpu: 2 replicas on TPU local, 1 host(s)" in output
    assert "XLA off" in output  # of our own: TPUStrategy compiles
    assert seen["calls"] == [
        ["resolve", {"tpu": "local", "zone": None, "project": None}],
        ["connect"],
        ["initialize"],
        ["strategy"],
    ]
    assert seen["optimized"] == ["Transformer"]
    assert not seen["compiled"]
    assert seen["forbidden"] == []
    # Nothing runs on the replicas one operation at a time, and every argument is int32, [2, 16]:
    # half of the four rows of a batch.
    assert {"replica_step", "replica_norms"} <= set(seen["functions"])
    assert not [name for name in seen["functions"] if name.startswith("eager")]
    assert {(kind, tuple(shape)) for kind, shape in seen["arguments"]} == {("int32", (2, 16))}

    code, output, _ = train("mirrored", "-m", "trainer.main", "--num_virtual_devices=2")
    assert code == 0, output
    ours, theirs = (_variables(train.folder / name) for name in ("run", "mirrored"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
