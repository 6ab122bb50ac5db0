"""Exported models answer as the model they come from; run with -m export."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from common.errors import UsageError
from configs.schema import ModelConfig
from data_pipeline.dataset.examples import load_tokenizers
from data_pipeline.dataset.tokenizer import Tokenizer, train
from tests.commands import run_command
from trainer.decoding.classifying import TextClassifier
from trainer.decoding.forced import ForcedDecoder
from trainer.decoding.generation import TextGenerator
from trainer.decoding.options import SamplingOptions, SearchOptions
from trainer.decoding.scoring import translate_lines
from trainer.decoding.search import Decoder
from trainer.model.decoder_only import DecoderOnly
from trainer.model.encoder_classifier import EncoderClassifier

pytestmark = pytest.mark.export

LINES = [
    "red dog",
    "",
    "the man sees  an old cat",
    "\u4f60\u597d \U0001f600",
    "Hu\u0308nd\u200b e\u0301\u2028x",
]
OPTIONS = SearchOptions(beam_size=3, max_length_offset=9, max_length_ratio=0.5)
FACTS = {"languages": {"source": "en", "target": "de"}, "step": 7}


@pytest.fixture(scope="module")
def tokenizers(manifest):
    both = load_tokenizers(manifest)
    return both["source"], both["target"]


LENGTH = {"normalization": "length", "length_penalty": 1.0}
GREEDY = {"beam_size": 1, "min_length": 3}


def test_what_ctranslate2_searches_in_another_way_is_left_out():
    from trainer.exporting import ctranslate2_engine

    wanted = {"coverage_penalty": 0.2, "min_length": 5, "no_repeat_ngram": 3, "beam_size": 7}
    options, left = ctranslate2_engine.supported(SearchOptions(**wanted))
    assert options == SearchOptions(beam_size=7, min_length=1)
    assert left == ["coverage_penalty=0.2", "min_length=5", "no_repeat_ngram=3"]
    assert ctranslate2_engine.supported(options) == (options, [])


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({"norm": "post", "activation": "relu"}, {}),
        ({"norm": "pre", "activation": "swiglu"}, LENGTH),
        ({"norm": "post", "activation": "gelu"}, GREEDY),
    ],
    ids=["gnmt", "length", "greedy"],
)
def test_ctranslate2_translates_alike(make_model, tokenizers, tmp_path, fields, changes):
    """In float32 every translation and score, by the settings that travel with the export."""
    from trainer.exporting import ctranslate2_engine, ctranslate2_model

    sizes = {"encoder_layers": 2, "decoder_layers": 2, "heads": 4, "tied_embeddings": "none"}
    model = make_model(vocab=280, scale=2.0, **sizes, **fields)
    options = dataclasses.replace(OPTIONS, **changes)
    ctranslate2_model.save(model, tokenizers, str(tmp_path), "float32", options, FACTS)
    engine = ctranslate2_engine.Engine(str(tmp_path), threads=1)
    assert engine.options == options and engine.languages == FACTS["languages"]
    expected = translate_lines(LINES, tokenizers, Decoder(model, options))
    found = engine.translate(LINES)
    assert [one.text for one in found] == [one.text for one in expected]
    assert len({one.text for one in expected}) > 2
    scores = [one.hypotheses[0].score if one.hypotheses else 0.0 for one in expected]
    # CTranslate2 gives the share of the special tokens to the others: 3 of 280 in a random model.
    # One token more or less in the length would be 4 % or more.
    np.testing.assert_allclose([one.score for one in found], scores, rtol=0.01)
    assert [one.cut for one in found] == [one.cut for one in expected]
    alone = [engine.translate([line])[0] for line in LINES]
    assert [one.text for one in alone] == [one.text for one in found]
    (long,) = engine.translate(["dog " * 5000])
    assert long.source_cut and len(long.pieces[0]) == 1023


@pytest.mark.parametrize(("least", "limits"), [(30, [4, 6]), (5000, [4, 1540])])
def test_longest_lengths_that_ctranslate2_has_no_room_for(
    make_model, tokenizers, tmp_path, monkeypatch, least, limits
):
    """A minimum above a line's own longest length, and a longest length beyond the positions."""
    from trainer.exporting import ctranslate2_engine, ctranslate2_model

    model = make_model(vocab=280, scale=2.0, heads=4)
    ratio = 0.5 if least == 30 else 3.0
    options = SearchOptions(
        beam_size=1, min_length=least, max_length_ratio=ratio, max_length_offset=4
    )
    ctranslate2_model.save(model, tokenizers, str(tmp_path), "float32", options, FACTS)
    engine = ctranslate2_engine.Engine(str(tmp_path), threads=1)
    short, long = engine.translate(["", "dog" if least == 30 else "\u4f60" * 400])
    assert not short.pieces[1] and long.cut
    assert len(long.pieces[1]) == (
        ctranslate2_engine.POSITIONS if least == 5000 else options.longest(len(long.pieces[0]) + 1)
    )


def test_the_command_translates_with_an_export(make_model, tokenizers, tmp_path):
    """As its engine does, and without TensorFlow; what only a model directory can do is refused."""
    from trainer.exporting import ctranslate2_engine, ctranslate2_model

    directory = str(tmp_path / "out" / "int8")
    model = make_model(vocab=280, scale=2.0, heads=4)
    ctranslate2_model.save(model, tokenizers, directory, "int8", OPTIONS, FACTS)
    found = ctranslate2_engine.Engine(directory).translate(LINES, beam_size=2, attention=True)
    flags = [f"--model_dir={tmp_path / 'out'}", "--beam_size=2"]
    script = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module('trainer.translate', run_name='__main__')\n"
        "finally:\n"
        "    print('tensorflow' in sys.modules, file=sys.stderr)\n"
    )
    text = "".join(f"{line}\n" for line in LINES)
    (tmp_path / "in.txt").write_text(text, "utf-8")
    for file in ([], [f"--input={tmp_path / 'in.txt'}"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *flags, *file],
            input=None if file else text,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )
        assert done.returncode == 0 and done.stderr.endswith("False\n"), done.stderr
        assert done.stdout.split("\n") == [*(one.text for one in found), ""]
    flags += file
    code, out, err = run_command("trainer.translate", *flags, "--json", "--alignments")
    assert code == 0, err
    for line, value, one in zip(LINES, out.split("\n")[:-1], found, strict=True):
        value = json.loads(value)
        assert value["source"] == line and value["translation"] == one.text
        assert value.get("score", 0.0) == pytest.approx(one.score)
        assert [target for _, target in value["alignment"]] == list(range(len(value["alignment"])))
        words = sum(piece.startswith("\u2581") for piece in one.pieces[0])
        assert all(source < words for source, _ in value["alignment"])
        assert bool(value["alignment"]) == bool(one.pieces[1])
    code, _, err = run_command("trainer.translate", flags[0], "--samples=4")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: --samples is for a model directory; ")


def test_precisions_and_what_does_not_fit(make_model, tokenizers, tmp_path):
    """int8 is smaller; a file or version that does not fit is refused in one line."""
    from trainer.exporting import ctranslate2_engine, ctranslate2_model

    model = make_model(vocab=280, heads=4)
    sizes = {
        name: ctranslate2_model.save(model, tokenizers, str(tmp_path / name), name, OPTIONS, FACTS)
        for name in ctranslate2_model.QUANTIZATIONS
    }
    assert sizes["int8"] < 0.9 * sizes["float32"] and sizes["float16"] < 0.9 * sizes["float32"]
    good = tmp_path / "int8"
    facts = json.loads((good / "translation.json").read_text())
    other = train(["another text of another model"] * 9, vocab_size=280, model_type="char")
    for name, content, message in (
        ("translation.json", None, r"has no translation\.json"),
        ("translation.json", b"{", "cannot be read"),
        ("translation.json", json.dumps({**facts, "format": 2}).encode(), "has the format 2"),
        ("translation.json", json.dumps({**facts, "decode": {"x": 1}}).encode(), "argument 'x'"),
        ("target.model", other, "target.model belongs to another model"),
        ("source.model", None, "No such file"),
        ("model.bin", (good / "model.bin").read_bytes()[:1000], "cannot be used"),
        ("model.bin", b"not a model", "cannot be used"),
    ):
        bad = tmp_path / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
        (bad / name).unlink() if content is None else (bad / name).write_bytes(content)
        with pytest.raises(UsageError, match=message):
            ctranslate2_engine.Engine(str(bad))


_ODD = [
    "",
    " \t ",
    "a\x00b\x07c\x1bd",
    "no\u00a0break\u2003and\u3000wide\u2028line\u2029end\x85x",
    "\u202bright to left\u202c \u200fx\ufeff soft\u00adhyphen",
    "e\u0301 Hu\u0308nd \u1112\u1161\u11ab",
    "\u2581 under \u2581score",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u4f60\u597d \u0441\u0435\u0433\u043e",
    "two\r\nlines\rand\n\n more\x0b\x0c",
    "  leading and trailing  ",
    "dog " * 2000,
]


@pytest.mark.parametrize("keep_lines", [False, True])
def test_a_tokenizer_in_the_graph_is_the_tokenizer(keep_lines):
    import tensorflow as tf

    from trainer.exporting.graph_text import GraphTokenizer

    lines = ["the red dog", "a line\nand another" if keep_lines else "a line", "an old man"] * 20
    tokenizer = Tokenizer(train(lines, vocab_size=275, keep_lines=keep_lines))
    graph = GraphTokenizer(tokenizer)
    expected = tokenizer.encode(_ODD)
    ids = graph.encode(tf.constant(_ODD))
    assert ids.to_list() == expected and max(map(len, expected)) > 2000
    decoded = [text.decode("utf-8") for text in graph.decode(ids).numpy()]
    assert decoded == tokenizer.decode(expected)
    broken = graph.encode(tf.constant([b"\xff dog", b"dog"])).to_list()
    assert broken == tokenizer.encode(["\ufffd dog", "dog"])


def test_what_ctranslate2_cannot_express_is_refused():
    """Every field with another value than its default, and one that nobody has thought of."""
    from trainer.exporting import ctranslate2_model

    fine = {"width": 64, "heads": 4, "norm": "pre", "activation": "swiglu", "kv_heads": 4}
    ctranslate2_model.check(ModelConfig(**fine, attention_block=64))
    with pytest.raises(UsageError, match=r"no model\.kv_heads=2, model\.positions=rotary;"):
        ctranslate2_model.check(ModelConfig(positions="rotary", kv_heads=2))

    @dataclasses.dataclass
    class Newer(ModelConfig):
        new_attention: str = "usual"

    ctranslate2_model.check(Newer())
    with pytest.raises(UsageError, match=r"no model\.new_attention=better;"):
        ctranslate2_model.check(Newer(new_attention="better"))


_CLIENT = """
import json, sys
import tensorflow as tf, tensorflow_text
folder, arguments = sys.argv[1], json.loads(sys.argv[2])
answers = {}
for name, calls in arguments.items():
    model = tf.saved_model.load(f"{folder}/{name}")
    for signature, inputs in calls.items():
        inputs = {k: tf.constant(v[0], v[1]) for k, v in inputs.items()}
        for key, value in model.signatures[signature](**inputs).items():
            value = value.numpy()
            if value.dtype == object:
                value = [[x.decode() for x in row] if value.ndim > 1 else row.decode()
                         for row in value]
            answers[f"{signature}.{key}"] = value if isinstance(value, list) else value.tolist()
assert not any(name in sys.modules for name in ("trainer", "data_pipeline", "common"))
print("\\n" + json.dumps(answers))
"""
_PROMPTS = ["the red", "", "a line\r\nand  another\tone", "x" * 40]
_TEXTS = [*LINES, "man " * 30]


@pytest.fixture(scope="module")
def small_models(tiny_config):
    """A language model and a classifier of three classes, with random weights; their tokenizer."""
    lines = ["the red dog", "a line\nand another", "the old man sees"] * 20
    tokenizer = Tokenizer(train(lines, vocab_size=278, model_type="unigram", keep_lines=True))
    config = tiny_config(model={"norm": "pre"}).model
    language = DecoderOnly(config, tokenizer.vocab_size)
    classifier = EncoderClassifier(config, tokenizer.vocab_size, 3)
    rng = np.random.default_rng(3)
    for variable in language.trainable_variables + classifier.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(0, 0.3, variable.shape))
    return language, classifier, tokenizer


@pytest.fixture(scope="module")
def answers(make_model, tokenizers, small_models, tmp_path_factory):
    """What a process elsewhere gets from SavedModels of all tasks, and the models."""
    from trainer.exporting import saved_model

    folder = tmp_path_factory.mktemp("saved")
    translator = make_model(vocab=280, scale=2.0, tied_embeddings="none")
    language, classifier, tokenizer = small_models
    for name, module in {
        "translation": saved_model.TranslationModule(translator, tokenizers, OPTIONS),
        "language": saved_model.LanguageModule(language, tokenizer, 32),
        "classifier": saved_model.ClassifierModule(classifier, tokenizer, ["a", "b", "c"], 16),
    }.items():
        saved_model.save(module, str(folder / name))
    generate = {
        "prompt": (_PROMPTS, "string"),
        "length": (12, "int32"),
        "temperature": (0.0, "float32"),
        "seed": (1, "int32"),
    }
    calls = {
        "translation": {
            "translate": {"text": (LINES, "string")},
            "score": {"text": (["red dog"], "string"), "translation": (["alte Katze"], "string")},
        },
        "language": {"generate": generate},
        "classifier": {"classify": {"text": (_TEXTS, "string")}},
    }
    done = subprocess.run(
        [sys.executable, "-c", _CLIENT, str(folder), json.dumps(calls)],
        cwd=folder,
        capture_output=True,
        timeout=300,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, translator, json.loads(done.stdout.splitlines()[-1])


def test_a_saved_translation_model_needs_nothing_of_this_project(answers, tokenizers):
    """Strings in and strings out, in a process elsewhere: the translations of our own decoder."""
    _, model, found = answers
    expected = translate_lines(LINES, tokenizers, Decoder(model, OPTIONS))
    assert found["translate.translation"] == [one.text for one in expected]
    scores = [one.hypotheses[0].score if one.hypotheses else 0.0 for one in expected]
    np.testing.assert_allclose(found["translate.score"], scores, rtol=1e-4)
    pair = [
        one.encode([text]) for one, text in zip(tokenizers, ("red dog", "alte Katze"), strict=True)
    ]
    (forced,) = ForcedDecoder([model]).score(*pair)
    np.testing.assert_allclose(found["score.log_probability"], [forced.log_probability], rtol=1e-4)
    assert found["score.tokens"] == [len(pair[1][0]) + 1]


def test_a_saved_language_model_goes_on_as_ours(answers, small_models):
    """Prompts of any length in one request, as one after the other; a long one from its end."""
    _, _, found = answers
    model, _, tokenizer = small_models
    generator = TextGenerator(model, SamplingOptions(top_k=1), 32)
    texts, tokens = [], []
    for ids in tokenizer.encode(_PROMPTS):
        new = generator.generate(np.array([ids], np.int32).reshape(1, -1), 12)[0]
        texts += tokenizer.decode([[*ids, *new[new > 0]]])
        tokens.append(int(np.sum(new > 0)))
    assert len(tokenizer.encode(_PROMPTS)[3]) >= 32
    assert found["generate.text"] == texts
    assert found["generate.tokens"] == tokens and max(tokens) == 12


def test_a_saved_classifier_gives_labels_and_probabilities(answers, small_models):
    _, _, found = answers
    _, model, tokenizer = small_models
    expected, cut = TextClassifier(model, tokenizer, 16).probabilities(_TEXTS)
    assert cut == 2
    np.testing.assert_allclose(found["classify.probabilities"], expected, atol=1e-5)
    assert found["classify.label"] == ["abc"[row.argmax()] for row in expected]
    assert found["classify.classes"] == [["a", "b", "c"]] * len(_TEXTS)


def _attend(weights, prefix, queries, keys, mask, heads):
    """Attention by the weights under `prefix`, float32 [T, D]; `mask` is [T, S]."""
    parts = []
    for name, x in (("query", queries), ("key", keys), ("value", keys)):
        x = x @ weights[f"{prefix}.{name}.kernel"] + weights[f"{prefix}.{name}.bias"]
        parts.append(x.reshape(len(x), heads, -1).swapaxes(0, 1))  # [heads, tokens, depth]
    query, key, value = parts
    scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
    scores = np.exp(np.where(mask, scores, -np.inf))
    x = (scores / scores.sum(-1, keepdims=True)) @ value
    x = x.swapaxes(0, 1).reshape(len(queries), -1)
    prefix += ".output_projection"
    return x @ weights[f"{prefix}.kernel"] + weights[f"{prefix}.bias"]


def _layers(weights, side, x, mask, memory=None):
    """The post-norm layers of one side, float32 [T, D]."""

    def add_and_norm(prefix, x, y):
        x = x + y
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * weights[f"{prefix}.norm.gamma"] + weights[f"{prefix}.norm.beta"]

    for number in range(2):
        at = f"{side}_{number}"
        x = add_and_norm(
            f"{at}.around_attention", x, _attend(weights, f"{at}.attention", x, x, mask, 2)
        )
        if memory is not None:
            cross = _attend(weights, f"{at}.cross_attention", x, memory, True, 2)
            x = add_and_norm(f"{at}.around_cross", x, cross)
        inner, outer = f"{at}.feed_forward.inner", f"{at}.feed_forward.outer"
        y = np.maximum(0, x @ weights[f"{inner}.kernel"] + weights[f"{inner}.bias"])
        y = y @ weights[f"{outer}.kernel"] + weights[f"{outer}.bias"]
        x = add_and_norm(f"{at}.around_feed_forward", x, y)
    return x


def test_the_names_of_safetensors_say_what_the_weights_are(make_model, tmp_path):
    """The paper's Transformer in NumPy, on the file alone, gives the logits of the model."""
    from safetensors.numpy import load_file

    from trainer.exporting import weights as exported
    from trainer.model.encodings import sinusoidal_positions

    model = make_model(source_vocab=20, encoder_layers=2, decoder_layers=2, tied_embeddings="none")
    exported.save(model, str(tmp_path), {})
    weights = load_file(tmp_path / "model.safetensors")
    assert sum(value.size for value in weights.values()) == model.count_params()
    source, target = np.array([5, 9, 7, 3]), np.array([8, 6, 3])

    def embed(name, ids):
        rows = weights[f"{name}_embedding.embeddings"][ids]
        positions = sinusoidal_positions(np.arange(len(ids))[np.newaxis], rows.shape[1])[0]
        return rows * np.sqrt(rows.shape[1]) + positions.numpy()

    memory = _layers(weights, "encoder", embed("source", source), True)
    shifted = np.concatenate([[2], target[:-1]])
    causal = np.tri(3, dtype=bool)
    logits = _layers(weights, "decoder", embed("target", shifted), causal, memory)
    logits = logits @ weights["softmax.kernel"]
    expected = model(source[None], np.ones([1, 4]), target[None], np.ones([1, 3]))
    np.testing.assert_allclose(logits, expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {"norm": "pre", "activation": "swiglu", "kv_heads": 1, "qk_norm": True},
        {"positions": "t5", "share_layers": True, "norm_kind": "rms"},
        {"positions": "learned", "tied_embeddings": "target"},
    ],
)
def test_every_weight_of_a_variant_has_a_name(make_model, fields):
    from trainer.exporting.weights import named_variables

    model = make_model(source_vocab=20, **{"tied_embeddings": "none", **fields})
    assert len(named_variables(model)) == len(model.trainable_variables)


def test_warmup_requests_are_prediction_logs(tmp_path):
    """Read back by the fields of TensorFlow Serving's .proto files, in a pool of their own."""
    import tensorflow as tf
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    from trainer.exporting import warmup

    file = descriptor_pb2.FileDescriptorProto(name="serving_fields.proto")
    messages = {
        "Log": [("predict_log", 6, "PredictLog")],
        "PredictLog": [("request", 1, "Request")],
        "Request": [("model_spec", 1, "ModelSpec"), ("inputs", 2, "Entry")],
        "ModelSpec": [("signature_name", 3, "")],
        "Entry": [("key", 1, ""), ("value", 2, "bytes")],
    }
    field = descriptor_pb2.FieldDescriptorProto
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for key, number, kind in fields:
            label = field.LABEL_REPEATED if key == "inputs" else field.LABEL_OPTIONAL
            kinds = {"": field.TYPE_STRING, "bytes": field.TYPE_BYTES}
            own = {"type": kinds[kind]} if kind in kinds else {"type_name": f".{kind}"}
            own.setdefault("type", field.TYPE_MESSAGE)
            message.field.add(name=key, number=number, label=label, **own)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    log_class = message_factory.GetMessageClass(pool.FindMessageTypeByName("Log"))

    texts = ["a" * 200, "b"]
    warmup.write(str(tmp_path), {"translate": {"text": texts, "length": np.int32(7)}})
    path = str(tmp_path / "assets.extra" / "tf_serving_warmup_requests")
    (record,) = tf.data.TFRecordDataset(path).as_numpy_iterator()
    request = log_class.FromString(record).predict_log.request
    assert request.model_spec.signature_name == "translate"
    inputs = {
        entry.key: tf.io.parse_tensor(entry.value, kind).numpy()
        for entry, kind in zip(request.inputs, (tf.string, tf.int32), strict=True)
    }
    assert inputs["text"].tolist() == [text.encode() for text in texts] and inputs["length"] == 7
