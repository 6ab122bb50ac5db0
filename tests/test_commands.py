"""The commands as a user runs them: separate processes, exit codes, what they print."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from data_pipeline.dataset.examples import read_raw_text
from data_pipeline.dataset.manifest import load_manifest
from tests.commands import run_command
from trainer.checkpoints.files import read_manifests
from trainer.checkpoints.saver import find

_ROOT = Path(__file__).parent.parent
_SMALL = (
    "--config.model.width=16",
    "--config.model.feed_forward=32",
    "--config.model.heads=2",
    "--config.model.encoder_layers=1",
    "--config.model.decoder_layers=1",
    "--config.model.dropout=0.1",
    "--config.train.batch_tokens=256",
    "--config.data.row_length=64",
    "--config.train.steps_per_loop=2",
    "--config.train.checkpoint_every=2",
    "--config.train.evaluate_every=20",
    "--config.train.steps=20",
    "--config.decode.validation_sentences=5",
    "--config.train.average_checkpoints=0",
    "--jit_compile=off",
)


def _command(module: str, *arguments) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def _run(module: str, *arguments, code: int = 0, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(_command(module, *arguments), cwd=_ROOT, capture_output=True, **options)
    assert done.returncode == code, (done.stdout + done.stderr).decode()
    return done


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """The built-in corpus, very small, by the data job's command."""
    directory = tmp_path_factory.mktemp("commands") / "data"
    code, _, err = run_command(
        "data_pipeline.main",
        "--train=builtin:train?size=400",
        "--valid=builtin:valid?size=20",
        "--test=builtin:test?size=20",
        "--vocab_size=600",
        "--num_shards=2",
        f"--output_dir={directory}",
    )
    assert code == 0, err
    return directory


@pytest.fixture(scope="module")
def model_dir(data_dir) -> Path:
    """A model after 20 steps."""
    directory = data_dir.parent / "model"
    code, _, err = run_command(
        "trainer.main", f"--data_dir={data_dir}", f"--model_dir={directory}", *_SMALL
    )
    assert code == 0, err
    return directory


@pytest.mark.slow
def test_killed_and_stopped_and_started_again_equals_undisturbed(data_dir, tmp_path):
    """`benchmarks.chaos`: one training killed and stopped, and one not."""
    steps = 400  # so many that a training is not over before it is struck
    folder = tmp_path / "chaos"
    output = _run(
        *("benchmarks.chaos", "--kills=1", "--terms=1", "--seed=9", f"--data_dir={data_dir}"),
        *(f"--work_dir={folder}", "--", *_SMALL, f"--config.train.steps={steps}"),
        *(f"--config.train.evaluate_every={steps}", "--config.train.checkpoint_every=20"),
    ).stdout.decode()
    assert f"identical after 2 faults: step {steps}" in output
    assert output.count("SIGKILL to the trainer in") == 1
    assert output.count("SIGTERM to the trainer in") == 1
    saved = json.loads((folder / "disturbed" / "config.json").read_text())["config"]
    assert saved["model"]["dropout"] == 0.1  # or nothing random would have to be resumed
    spent = _lines(folder / "disturbed")[-1]
    started = json.loads((folder / "disturbed" / "config.json").read_text())["started"]
    assert sum(spent["spent"].values()) == pytest.approx(spent["time"] - started, rel=0.01)
    assert spent["spent"]["down"] > 0 and 0 < spent["goodput"] < 1
    log = (folder / "disturbed.log").read_text()
    assert "resumed at step" in log
    whole, again = (
        tf.train.load_checkpoint(find(str(folder / name), "latest").path)
        for name in ("undisturbed", "disturbed")
    )
    compared = 0
    for name in whole.get_variable_to_shape_map():
        if name.startswith(("model/", "optimizer/")):
            np.testing.assert_array_equal(whole.get_tensor(name), again.get_tensor(name), name)
            compared += 1
    assert compared > 20


def test_a_second_run_is_refused_and_sigterm_saves_and_exits_with_42(data_dir, tmp_path):
    arguments = [f"--data_dir={data_dir}", f"--model_dir={tmp_path}", *_SMALL]
    arguments += ["--config.train.steps=100000", "--config.train.evaluate_every=100000"]
    training = subprocess.Popen(
        _command("trainer.main", *arguments), cwd=_ROOT, stdout=subprocess.PIPE, text=True
    )
    for line in training.stdout:
        if line.startswith("step"):
            break
    refused = _run("trainer.main", *arguments, code=2)
    _assert_one_error_line(
        refused.stderr.decode(), f"{tmp_path} is in use by process {training.pid} on "
    )
    training.terminate()
    rest = training.stdout.read()
    assert training.wait() == 42
    assert not (tmp_path / "in_use.json").exists()
    assert "SIGTERM: saved at step" in rest
    assert f"saved at step {find(str(tmp_path), 'latest').step:,};" in rest


def test_evaluate_prints_one_json_line(data_dir, model_dir, tmp_path):
    """Of a split; and of two files, which here are the same split, so that the scores are too."""
    code, output, err = run_command(
        "trainer.evaluate", f"--model_dir={model_dir}", "--split=test", "--perturb"
    )
    assert code == 0, err
    (line,) = output.splitlines()
    result = json.loads(line)
    assert result["split"] == "test" and result["sentences"] == 20 and result["step"] == 20
    assert 0 < result["loss"] < 10 and 0 <= result["bleu"] <= 100 and 0 <= result["chrf"] <= 100
    assert "tok:13a" in result["signature"]
    kinds = ["upper", "title", "typos", "no_final_punctuation"]
    assert list(result["perturbed"]) == kinds
    assert [line.split()[0] for line in err.splitlines()[-5:]] == ["as", *kinds]
    text = read_raw_text(load_manifest(str(data_dir)), "test")
    for side, lines in text.items():
        (tmp_path / side).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    files = [f"--source={tmp_path / 'source'}", f"--reference={tmp_path / 'target'}"]
    code, output, err = run_command("trainer.evaluate", f"--model_dir={model_dir}", *files)
    assert code == 0, err
    of_files = json.loads(output)
    for name in ("bleu", "chrf", "ter", "signature", "sentences", "cut_translations", "step"):
        assert of_files[name] == result[name]
    (tmp_path / "target").write_text("\ufeff" + (tmp_path / "target").read_text("utf-8"), "utf-8")
    code, output, err = run_command("trainer.evaluate", f"--model_dir={model_dir}", *files)
    assert code == 0 and json.loads(output) == of_files
    (tmp_path / "target").write_text("one line\n")
    code, output, err = run_command("trainer.evaluate", f"--model_dir={model_dir}", *files)
    assert code == 2 and output == ""
    _assert_one_error_line(err, "--reference", "1 lines for 20 sentences")
    compared = (f"--compare_with={tmp_path / 'target'}", f"--output={tmp_path / 'out.txt'}")
    code, output, err = run_command("trainer.evaluate", f"--model_dir={model_dir}", *compared)
    assert code == 2 and output == "" and not (tmp_path / "out.txt").exists()
    _assert_one_error_line(err, "--compare_with", "1 lines for 20 sentences")


def test_evaluate_scores_every_checkpoint_that_is_there(model_dir, tmp_path):
    """A damaged one, or one that a run in progress deletes meanwhile, costs a warning."""
    copy = shutil.copytree(model_dir, tmp_path / "copy")
    steps = [one.step for one in read_manifests(str(copy / "checkpoints"))]
    assert len(steps) > 1
    (copy / "checkpoints" / f"ckpt-{steps[0]}.index").unlink()
    arguments = (f"--model_dir={copy}", "--split=test", "--checkpoint=all")
    code, output, err = run_command("trainer.evaluate", *arguments)
    assert code == 0, err
    assert [json.loads(line)["step"] for line in output.splitlines()] == steps[1:]
    assert f"step {steps[0]} is left out" in err and "index is missing" in err


@pytest.mark.parametrize(
    ("module", "flag", "message"),
    [
        ("trainer.translate", "--checkpoint=", "--checkpoint= is empty; give best"),
        ("trainer.translate", "--temperature=nan", "--temperature=nan: give a finite number"),
        ("trainer.translate", "--seed=3", "--seed does nothing without --samples; add that, or"),
        ("trainer.translate", "--samples=3 --beam_size=2", "--beam_size does nothing beside --sam"),
        ("trainer.translate", "--diversity=1", "--diversity does nothing without --diverse_groups"),
        ("trainer.translate", "--json --n_best=9", "add --beam_size=9"),
        ("trainer.generate", "--length=9", "for translation, and this command needs one for langu"),
        ("trainer.evaluate", "--model_dir=", " is not a model directory"),
        pytest.param("trainer.serve", "--host=a..b", "--host=a..b", marks=pytest.mark.export),
        pytest.param(
            "trainer.serve", "--max_queue=9", "has no room for a", marks=pytest.mark.export
        ),
    ],
)
def test_flags_that_cannot_work(model_dir, module, flag, message):
    code, output, err = run_command(module, f"--model_dir={model_dir}", *flag.split())
    assert (code, output) == (2, "")
    _assert_one_error_line(err, message)


_BAD_LINES = [
    (b"Today is Monday.", True),
    (b"", False),
    (b"word " * 10_000, True),
    ("a\u2028b".encode(), True),
    (b"   ", False),
    ("\u4f60\u597d \U0001f600".encode(), True),
    (b"nul\x00 and bell\x07 and \x1b[31m", True),
    (b"\xff\xfe", False),
    (b"M\xfcnchen", False),
    (b"The last one, without a line feed", True),
]
"""Lines, and whether there is something to translate in them."""


def test_bad_lines_keep_their_places(model_dir, tmp_path):
    """From standard input and from a file, the same; what is wrong is counted."""
    (tmp_path / "in.txt").write_bytes(b"\n".join(line for line, _ in _BAD_LINES))
    flags = [f"--model_dir={model_dir}", "--beam_size=1"]
    with open(tmp_path / "in.txt", "rb") as file:
        done = _run("trainer.translate", *flags, stdin=file)
    files = [f"--input={tmp_path / 'in.txt'}", f"--output={tmp_path / 'out.txt'}"]
    code, out, err = run_command("trainer.translate", *flags, *files, "--json")
    assert code == 0 and out == "", err
    *written, end = done.stdout.decode().split("\n")
    content = (tmp_path / "out.txt").read_text("utf-8")
    values = [json.loads(line) for line in content.removesuffix("\n").split("\n")]
    assert end == "" and len(written) == len(values) == len(_BAD_LINES)
    for line, value, (content, is_text) in zip(written, values, _BAD_LINES, strict=True):
        assert line == value["translation"] and "\n" not in line
        assert ("score" in value) == is_text
        assert value["source"].encode() == (content if is_text or not content.strip() else b"")
        assert line == "" or is_text
    assert values[2]["cut"]
    for said in (done.stderr.decode(), err):
        assert "10 lines" in said
        assert "warning: 1 lines are longer than 1,023 tokens and were cut" in said
        assert "warning: 2 of 10 lines are not UTF-8" in said
    assert os.listdir(tmp_path) == ["in.txt", "out.txt"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--input={0}/no.txt"], ["--input", "no.txt cannot be read: No such file"]),
        (["--input={0}"], ["--input", "cannot be read: Is a directory"]),
        (["--output={0}"], ["--output", "is a directory; name a file"]),
        (["--output={0}/no/out.txt"], ["--output", "its directory does not exist"]),
        (["--interactive", "--output={0}/out.txt"], ["--interactive is for a terminal"]),
    ],
)
def test_files_that_translate_refuses(model_dir, tmp_path, flags, words):
    flags = [flag.format(tmp_path) for flag in flags]
    code, out, err = run_command("trainer.translate", f"--model_dir={model_dir}", *flags)
    assert code == 2 and out == ""
    _assert_one_error_line(err, *words)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_two_replicas_and_two_workers_give_the_losses_of_one(data_dir, tmp_path):
    """The whole command, with evaluation; two virtual devices with XLA, two processes without."""
    losses = []
    for name, module, flags in (
        ("one", "trainer.main", []),
        ("replicas", "trainer.main", ["--num_virtual_devices=2", "--jit_compile=on"]),
        ("workers", "launch.local", ["--workers=2", "--max_restarts=0", "--"]),
    ):
        flags += [f"--data_dir={data_dir}", f"--model_dir={tmp_path / name}", *_SMALL[:-1]]
        _run(module, *flags, "--config.model.dropout=0.0", "--config.train.steps=4")
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line).get("loss") for line in lines])
    assert len(losses[0]) == 5  # after 1, 2 and 4 steps, validation, and the test's, which is None
    np.testing.assert_allclose(losses[1][:4], losses[0][:4], rtol=1e-5)
    np.testing.assert_allclose(losses[2][:4], losses[0][:4], rtol=1e-5)


@pytest.mark.slow
def test_sigterm_stops_both_workers_with_everything_saved(data_dir, tmp_path):
    arguments = ["--workers=2", "--", f"--data_dir={data_dir}", f"--model_dir={tmp_path}", *_SMALL]
    arguments += ["--config.train.steps=100000", "--config.train.evaluate_every=100000"]
    launcher = subprocess.Popen(
        _command("launch.local", *arguments),
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = []
    for line in launcher.stdout:
        output.append(line)
        if line.startswith("[worker 0] step"):
            launcher.terminate()
            break
    output += launcher.stdout.readlines()
    assert launcher.wait() == 42, "".join(output)
    (saved,) = [line for line in output if ": saved at step" in line]
    step = int(saved.split("saved at step ")[1].split(";")[0].replace(",", ""))
    assert find(str(tmp_path), "latest").step == step > 0


def _lines(model_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]


def _assert_one_error_line(stderr: str, *words: str) -> None:
    errors = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "Traceback" not in stderr
    for word in words:
        assert word in errors[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.train.stepz=5"], ["stepz", "configs/schema.py"]),
        (["--config.train.steps=many"], ["steps", "many"]),
        (["--config.model.norm=both"], ["model.norm", "post, pre"]),
        (["--config=configs/absent.py"], ["configs/absent.py", "no such file"]),
        (["--strategy=warp"], ["--strategy=warp", "mirrored"]),
        (["--data_dir=nowhere"], ["nowhere", "data_pipeline.main"]),
        (["--data_dir="], ["--data_dir= is empty; name a path, or leave the flag out"]),
        (["--no_such_flag"], ["no_such_flag"]),
    ],
)
def test_bad_usage_of_the_trainer(flags, words, tmp_path):
    code, _, err = run_command("trainer.main", f"--model_dir={tmp_path / 'model'}", *flags)
    assert code == 2
    _assert_one_error_line(err, *words)
    assert not (tmp_path / "model").exists()


def test_translate_by_sentence(model_dir, tmp_path):
    """As if each sentence had a line."""

    def translated(text: str, *flags: str) -> list[str]:
        (tmp_path / "in.txt").write_text(text)
        flags = (*flags, f"--model_dir={model_dir}", f"--input={tmp_path / 'in.txt'}")
        code, out, err = run_command("trainer.translate", *flags)
        assert code == 0, err
        return out.split("\n")

    first, second, third, end = translated("A man.\nTwo run.\nA boy.\n")
    joined = translated("A man. Two run.\nA boy.\n", "--split_sentences")
    assert joined == [" ".join(filter(None, [first, second])), third, end]


def test_bad_input_of_evaluate(model_dir, tmp_path):
    code, _, err = run_command("trainer.evaluate", f"--model_dir={tmp_path}")
    assert code == 2
    _assert_one_error_line(err, str(tmp_path), "config.json")
    code, _, err = run_command("trainer.evaluate", f"--model_dir={model_dir}", "--split=dev")
    assert code == 2
    _assert_one_error_line(err, "--split=dev", "test, valid")


def test_other_settings_for_the_same_model_directory_are_refused(data_dir, model_dir):
    config = (model_dir / "config.json").read_bytes()
    flags = [*_SMALL, "--config.model.width=32", f"--model_dir={model_dir}"]
    done = _run("trainer.main", f"--data_dir={data_dir}", *flags, code=2)
    _assert_one_error_line(done.stderr.decode(), "model.width 16 -> 32")
    assert (model_dir / "config.json").read_bytes() == config
    assert os.listdir(model_dir / "checkpoints")
