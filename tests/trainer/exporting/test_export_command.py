"""trainer.export, whole: what it writes and where, and what it refuses; run with -m export."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from common.errors import UsageError
from data_pipeline.dataset.tokenizer import Tokenizer, train
from tests.commands import run_command
from tests.services.gcs import GcsService
from trainer.checkpoints import model_dir as model_directory
from trainer.checkpoints.files import Keep
from trainer.checkpoints.saver import Checkpoints
from trainer.exporting import model_card, parity, saved_model
from trainer.optim.loss_scale import LossScale
from trainer.optim.optimizer import Optimizer

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def trained(tiny_config, manifest, tmp_path_factory) -> str:
    """A model directory with one checkpoint of random weights, scored on the test split."""
    directory = tmp_path_factory.mktemp("trained") / "model"
    facts = model_directory.facts_of(tiny_config(model={"heads": 4}), manifest, "float32")
    model_directory.start(str(directory), facts, manifest)
    model = facts.task().build_model()
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(0, 0.3, variable.shape))
    optimizer = Optimizer(facts.config.optimizer, 10, model.trainable_variables)
    optimizer.iterations.assign(5)
    kept = facts.of_checkpoint()
    checkpoints = Checkpoints(str(directory), model, optimizer, LossScale(False), Keep(), kept)
    checkpoints.save({"bleu": 1.0})
    checkpoints.wait()
    line = {"step": 5, "time": 0.0, "split": "test", "bleu": 1.25, "signature": "nrefs:1|tok:13a"}
    line |= {"goodput": 0.9, "spent": {"steps": 1.0}}
    (directory / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return str(directory)


def _export(trained: str, form: str, output: str, environ=None) -> subprocess.CompletedProcess:
    flags = {"model_dir": trained, "format": form, "output_dir": output}
    return subprocess.run(
        [sys.executable, "-m", "trainer.export", *(f"--{k}={v}" for k, v in flags.items())],
        env={**os.environ, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_an_export_to_a_bucket(trained):
    """CTranslate2, with its table; a second one to the same place is refused in one line."""
    with GcsService() as service:
        done = _export(trained, "ctranslate2", "gs://bucket/models/out", service.environ)
        assert done.returncode == 0, done.stderr
        names = {name for name in service.objects if not name.endswith("/")}
        files = ("config.json", "model.bin", "shared_vocabulary.json", "translation.json")
        files += ("source.model", "target.model")
        places = [f"{kind}/{file}" for kind in ("float32", "float16", "int8") for file in files]
        assert names == {f"bucket/models/out/{name}" for name in (*places, "README.md")}
        card = service.objects["bucket/models/out/README.md"].decode()
        for part in (
            "| float32 |",
            "tok:13a",
            "| bleu | 1.25 |",
            "| bleu | 1.0 |",  # of the checkpoint itself, on valid
            r"| signature | nrefs:1\|tok:13a |",
            "## Data",
            "| tensorflow (export)",
        ):
            assert part in card
        assert "goodput" not in card and "spent" not in card
        assert "| int8 |" in done.stdout
        again = _export(trained, "safetensors", "gs://bucket/models/out", service.environ)
    assert again.returncode == 2
    error = "error: --output_dir=gs://bucket/models/out is not empty; name another one"
    assert again.stderr.splitlines()[-1] == error


def test_a_path_that_tensorflow_cannot_read_is_refused_at_once(tmp_path):
    directory = tmp_path / "model [v1]"
    flags = ("--model_dir=unread", "--format=saved_model", f"--output_dir={directory}")
    code, _, err = run_command("trainer.export", *flags)
    assert code == 2
    message = f"error: {directory}: TensorFlow cannot read checkpoints from a path with [; "
    assert err.splitlines()[-1].startswith(message) and not directory.exists()


def test_weights_as_keras_saves_them(trained, tmp_path):
    """Loaded in the way that the model card shows, they are the model's."""
    code, out, err = run_command(
        "trainer.export", f"--model_dir={trained}", "--format=keras", f"--output_dir={tmp_path}"
    )
    assert code == 0, err
    assert f"keras in {tmp_path}, described in README.md" in out
    model = model_directory.read_facts(str(tmp_path)).task().build_model()
    model.load_weights(tmp_path / "model.weights.h5")
    expected = model_directory.load(trained, "best").model.trainable_variables
    assert len(expected) > 10
    for one, other in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_the_card_of_a_run_that_is_writing_its_metrics(trained, tmp_path):
    """Half a line at the end of metrics.jsonl, as a killed run leaves it, does not count."""
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "spl')
    found = model_card._scores(model_directory.load(str(copy), "best"), str(copy))
    assert found["test"]["bleu"] == 1.25


def test_the_beginning_of_a_text_fits_into_a_row():
    """Counted in tokens, of which a character may have several."""
    tokenizer = Tokenizer(train([], vocab_size=260, model_type="byte"))
    text = parity._beginning("\u043f\u0440\u0438\u0432\u0435\u0442, the world", tokenizer, 9)
    assert text == "\u043f\u0440\u0438\u0432" and len(tokenizer.encode([text])[0]) <= 9
    assert parity._beginning("the world of beginnings", tokenizer, 99) == "the world of beginni"


def test_an_export_that_answers_otherwise_is_refused(trained, tmp_path):
    """A SavedModel of other weights does not pass; the one of the model does."""
    loaded = model_directory.load(trained, "best")
    texts = parity.read_texts(loaded, "", 5)
    assert len(texts["source"]) == len(texts["target"]) == 5
    saved_model.save(saved_model.module_of(loaded), str(tmp_path / "good"))
    (line,) = parity.check_saved_model(loaded, str(tmp_path / "good"), texts)
    assert line == "Of 5 validation sentences, 100.0% are translated alike."
    kernel = loaded.model.target_embedding.embeddings
    kernel.assign(-kernel.numpy())
    with pytest.raises(UsageError, match="of the translations are those of this project's own"):
        parity.check_saved_model(loaded, str(tmp_path / "good"), texts)
