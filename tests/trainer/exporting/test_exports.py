"""Exported models translate as the model they come from; run with -m export."""

import subprocess
import sys

import numpy as np
import pytest

from common.errors import UsageError
from configs.schema import ModelConfig
from data_pipeline.dataset.examples import load_tokenizers
from trainer.decoding.forced import ForcedDecoder
from trainer.decoding.options import SearchOptions
from trainer.decoding.scoring import translate_lines
from trainer.decoding.search import Decoder

pytestmark = pytest.mark.export

LINES = [
    "red dog",
    "",
    "the man sees  an old cat",
    "\u4f60\u597d \U0001f600",
    "Hu\u0308nd\u200b e\u0301\u2028x",
]
OPTIONS = SearchOptions(
    beam_size=3,
    max_length_offset=9,
    max_length_ratio=0.5,
    normalization="length",
    length_penalty=1.0,
)


@pytest.fixture(scope="module", params=[("post", "relu"), ("pre", "swiglu")])
def model(request, make_model):
    norm, activation = request.param
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "heads": 4, "tied_embeddings": "none"}
    return make_model(vocab=280, scale=2.0, norm=norm, activation=activation, **sizes)


def test_ctranslate2_translates_alike(model, manifest, tmp_path):
    """In float32 every translation, greedy and with a beam; int8 is smaller."""
    from trainer.exporting import ctranslate2_engine, ctranslate2_model

    tokenizers = load_tokenizers(manifest)
    tokenizers = (tokenizers["source"], tokenizers["target"])
    sizes = {
        name: ctranslate2_model.save(model, tokenizers, str(tmp_path / name), name)
        for name in ("float32", "int8")
    }
    assert sizes["int8"] < 0.9 * sizes["float32"]
    engine = ctranslate2_engine.Engine(str(tmp_path / "float32"), threads=1)
    for beam_size in (1, 3):
        fixed = {"max_length_ratio": 0.0, "max_length_offset": 12, "beam_size": beam_size}
        options = SearchOptions(normalization="length", length_penalty=1.0, **fixed)
        expected = [one.text for one in translate_lines(LINES, tokenizers, Decoder(model, options))]
        found = [one.text for one in engine.translate(LINES, beam_size, 1.0, 12)]
        assert found == expected and len(set(expected)) > 2


_CLIENT = """
import sys
import tensorflow as tf, tensorflow_text
model = tf.saved_model.load(sys.argv[1])
result = model.signatures["translate"](tf.constant(sys.argv[2:]))
for text, score in zip(result["translation"].numpy(), result["score"].numpy()):
    sys.stdout.buffer.write(text + b"\\t" + str(float(score)).encode() + b"\\n")
forced = model.signatures["score"](
    text=tf.constant(["red dog"]), translation=tf.constant(["alte Katze"]))
print(float(forced["log_probability"][0]), int(forced["tokens"][0]))
assert not any(name in sys.modules for name in ("trainer", "data_pipeline", "common"))
"""


def test_a_saved_model_needs_nothing_of_this_project(make_model, manifest, tmp_path):
    """Strings in and strings out, in a process elsewhere: the translations of our own decoder."""
    from trainer.exporting import saved_model

    model = make_model(vocab=280, scale=2.0, tied_embeddings="none")
    tokenizers = load_tokenizers(manifest)
    tokenizers = (tokenizers["source"], tokenizers["target"])
    saved_model.save(model, tokenizers, OPTIONS, str(tmp_path / "saved"))
    done = subprocess.run(
        [sys.executable, "-c", _CLIENT, str(tmp_path / "saved"), *LINES],
        cwd=tmp_path,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    *lines, last = done.stdout.decode().removesuffix("\n").split("\n")
    rows = [line.split("\t") for line in lines]
    expected = translate_lines(LINES, tokenizers, Decoder(model, OPTIONS))
    assert [text for text, _ in rows] == [one.text for one in expected]
    scores = [one.hypotheses[0].score if one.hypotheses else 0.0 for one in expected]
    np.testing.assert_allclose([float(score) for _, score in rows], scores, rtol=1e-4)
    pair = [
        one.encode([text]) for one, text in zip(tokenizers, ("red dog", "alte Katze"), strict=True)
    ]
    (forced,) = ForcedDecoder([model]).score(*pair)
    log_p, tokens = last.split()
    assert float(log_p) == pytest.approx(forced.log_probability, rel=1e-4)
    assert int(tokens) == len(pair[1][0]) + 1


def test_what_ctranslate2_cannot_express_is_refused():
    from trainer.exporting import ctranslate2_model

    ctranslate2_model.check(ModelConfig())
    with pytest.raises(UsageError, match=r"no model\.positions=rotary, model\.kv_heads=2;"):
        ctranslate2_model.check(ModelConfig(positions="rotary", kv_heads=2))
