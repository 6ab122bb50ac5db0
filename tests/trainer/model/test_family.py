"""Every variant of the models against NumPy in float64, packed, cached and in half precision."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.model.decoder_only import DecoderOnly
from trainer.model.encoder_classifier import EncoderClassifier
from trainer.model.encodings import alibi_slopes, t5_buckets
from trainer.model.norms import deepnorm_scales
from trainer.model.transformer import Transformer

VOCAB, CLASSES, BOS = 30, 3, 2
TEXTS = [[5, 6, 7, 8, 9, 10, 3], [12, 13, 14, 3]]
SOURCES = [[4, 5, 6, 3], [11, 12, 13, 14, 15, 3]]

VARIANTS = {
    "learned": {"positions": "learned", "max_positions": 16},
    "t5": {"positions": "t5"},
    "rotary": {"positions": "rotary"},
    "alibi": {"positions": "alibi"},
    "none": {"positions": "none"},
    "rms": {"norm": "pre", "norm_kind": "rms"},
    "deepnorm": {"norm": "deepnorm"},
    "gelu": {"activation": "gelu"},
    "swiglu": {"activation": "swiglu"},
    "grouped": {"kv_heads": 2, "positions": "rotary"},
    "multi-query": {"kv_heads": 1},
    "qk_norm": {"qk_norm": True, "positions": "rotary", "norm_kind": "rms"},
    "window": {"attention_window": 2, "positions": "alibi"},
    "blocks": {"attention_block": 4, "kv_heads": 2, "positions": "rotary"},
    "window in blocks": {"attention_window": 2, "attention_block": 3},
    "shared": {"share_layers": True},
    "free": {"tied_embeddings": "none", "norm": "pre"},
}
ALL = pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())


@pytest.fixture(scope="module")
def make(tiny_config):
    """Return a model of one of the three kinds, of 2 layers and 4 heads, with random weights."""

    def make(kind, **fields):
        sizes = {"heads": 4, "width": 16, "encoder_layers": 2, "decoder_layers": 2}
        config = tiny_config(model={**sizes, **fields}).model
        if kind is Transformer:
            model = Transformer(config, VOCAB, VOCAB, joint=True)
        elif kind is DecoderOnly:
            model = DecoderOnly(config, VOCAB)
        else:
            model = EncoderClassifier(config, VOCAB, CLASSES)
        rng = np.random.default_rng(0)
        for variable in model.trainable_variables:
            spread = 0.1 if len(variable.shape) == 1 else variable.shape[-1] ** -0.5
            is_scale = variable.name in ("gamma", "scale")
            variable.assign(rng.normal(0, spread, variable.shape) + is_scale)
        return model

    return make


def packed(texts, length: int = 14):
    """One row that holds all texts, and its segments; the rest is padding."""
    tokens, segments = np.zeros([2, 1, length], np.int32)
    start = 0
    for number, text in enumerate(texts, 1):
        tokens[0, start : start + len(text)] = text
        segments[0, start : start + len(text)] = number
        start += len(text)
    return tokens, segments


def wide(variable) -> np.ndarray:
    return variable.numpy().astype(np.float64)


def dense(layer, x):
    return x @ wide(layer.kernel) + (wide(layer.bias) if layer.use_bias else 0.0)


def norm(layer, x):
    if isinstance(layer, keras.layers.RMSNormalization):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * wide(layer.scale)
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * wide(layer.gamma) + wide(layer.beta)


def sines(places, width: int) -> np.ndarray:
    angle = np.asarray(places)[:, None] / 10_000.0 ** (np.arange(width // 2) / (width // 2))
    return np.concatenate([np.sin(angle), np.cos(angle)], -1)


def turned(x: np.ndarray) -> np.ndarray:
    """Rotary: complex numbers of modulus 1 times pairs (i, i + H/2); x is [heads, L, H]."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] / 10_000.0 ** (np.arange(half) / half)
    product = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([product.real, product.imag], -1)


def bucket_by_hand(distance: int, causal: bool) -> int:
    """T5's buckets, one distance at a time."""
    offset, buckets, away = 0, 32, max(0, -distance)
    if not causal:
        offset, buckets, away = (16 if distance > 0 else 0), 16, abs(distance)
    exact = buckets // 2
    if away < exact:
        return offset + away
    share = np.log(away / exact) / np.log(128 / exact) * (buckets - exact)
    return offset + min(buckets - 1, exact + int(share + 1e-9))


def attention(layer, config, x, memory, causal=None, encoding=None) -> np.ndarray:
    """One head at a time; `causal` None for attention to a memory."""
    keys_of, queries_of = len(memory), len(x)
    size, share = config.width // config.heads, config.heads // layer.kv_heads

    def heads(y):
        return y.reshape(len(y), -1, size).swapaxes(0, 1)

    query, key = heads(dense(layer.query, x)), heads(dense(layer.key, memory))
    value = heads(dense(layer.value, memory))
    if config.qk_norm:
        query, key = norm(layer.query_norm, query), norm(layer.key_norm, key)
    if causal is not None and config.positions == "rotary":
        query, key = turned(query), turned(key)
    outputs = []
    for head in range(config.heads):
        scores = query[head] @ key[head // share].T / np.sqrt(size)
        for i in range(queries_of if causal is not None else 0):
            for j in range(keys_of):
                if config.positions == "t5":
                    scores[i, j] += wide(encoding.biases)[bucket_by_hand(j - i, causal), head]
                if config.positions == "alibi":
                    scores[i, j] -= 2.0 ** (-2 * (head + 1)) * abs(i - j)  # 8 / 4 heads
                beyond = config.attention_window and abs(i - j) > config.attention_window
                if (causal and j > i) or beyond:
                    scores[i, j] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        outputs.append(weights / weights.sum(-1, keepdims=True) @ value[head // share])
    return dense(layer.output_projection, np.concatenate(outputs, -1))


def activation(config, layer, x):
    inner = dense(layer.inner, x.astype(np.float64))
    if config.activation == "relu":
        return np.maximum(inner, 0)
    if config.activation == "gelu":
        return inner * (1 + np.vectorize(math.erf)(inner / np.sqrt(2))) / 2
    return dense(layer.gated, x) * inner / (1 + np.exp(-inner))


def run(stack, encoding, config, x, causal: bool, memory=None, scale: float = 1.0):
    """A stack on one text, whose embeddings are scaled already; x is [L, D]."""
    if config.positions == "sinusoidal":
        x = x + sines(range(len(x)), config.width)
    if config.positions == "learned":
        x = x + 4 * wide(encoding.table)[: len(x)]  # the root of the width

    def residual(layer, x, function):
        if config.norm == "pre":
            return x + function(norm(layer.norm, x))
        return norm(layer.norm, scale * x + function(x))

    for depth, layer in enumerate(stack.layers):
        if config.share_layers:
            x = x + sines([depth], config.width)

        def attend(y, attend=layer.attention):
            return attention(attend, config, y, y, causal, encoding)

        x = residual(layer.around_attention, x, attend)
        if memory is not None:
            cross = layer.cross_attention
            x = residual(layer.around_cross, x, lambda y, c=cross: attention(c, config, y, memory))
        ff = layer.feed_forward
        x = residual(
            layer.around_feed_forward,
            x,
            lambda y, f=ff: dense(f.outer, activation(config, f, y)),
        )
    return x


def logits_of(model, x):
    x = norm(model.decoder_norm, x) if model.config.norm == "pre" else x
    if model.softmax is not None:
        return x @ wide(model.softmax.kernel)
    embedding = model.embedding if isinstance(model, DecoderOnly) else model.target_embedding
    return x @ wide(embedding.embeddings).T


def language_model(model, text) -> np.ndarray:
    x = 4 * wide(model.embedding.embeddings)[[BOS, *text[:-1]]]
    scale = (2 * 2) ** 0.25 if model.config.norm == "deepnorm" else 1.0
    return logits_of(model, run(model.decoder, model.positions, model.config, x, True, scale=scale))


def translation(model, source, target) -> np.ndarray:
    config = model.config
    deep = config.norm == "deepnorm"  # with 2 layers each: 0.81 (2^4 * 2)^(1/16), (3 * 2)^(1/4)
    x = 4 * wide(model.source_embedding.embeddings)[source]
    scale = 0.81 * 32 ** (1 / 16) if deep else 1.0
    memory = run(model.encoder, model.encoder_positions, config, x, False, scale=scale)
    memory = norm(model.encoder_norm, memory) if config.norm == "pre" else memory
    x = 4 * wide(model.target_embedding.embeddings)[[BOS, *target[:-1]]]
    scale = 6**0.25 if deep else 1.0
    x = run(model.decoder, model.decoder_positions, config, x, True, memory, scale)
    return logits_of(model, x)


def classification(model, text) -> np.ndarray:
    x = 4 * wide(model.embedding.embeddings)[text]
    scale = (2 * 2) ** 0.25 if model.config.norm == "deepnorm" else 1.0
    x = run(model.encoder, model.positions, model.config, x, False, scale=scale)
    x = norm(model.encoder_norm, x) if model.config.norm == "pre" else x
    pooled = {"mean": x.mean(0), "max": x.max(0), "first": x[0]}[model.config.pooling]
    return dense(model.classes, pooled)


def assert_near(result, expected, tolerance: float = 3e-5) -> None:
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def steps(model, tokens, cache, *arguments) -> np.ndarray:
    """The logits of a text, one position after the other."""
    results = []
    for position, token in enumerate([BOS, *tokens[:-1]]):
        logits, cache = model.decode_step(
            tf.constant([[token]]), cache, tf.constant(position), *arguments
        )
        results.append(logits[0, 0].numpy())
    return np.stack(results)


@ALL
def test_language_model(make, fields):
    """Two texts packed into a row, and one decoded with the cache."""
    model = make(DecoderOnly, **fields)
    logits = model(*packed(TEXTS))[0]
    first, second = (language_model(model, text) for text in TEXTS)
    assert logits.dtype == tf.float32 and logits.shape == (14, VOCAB)
    assert_near(logits[:7], first)
    assert_near(logits[7:11], second)
    assert_near(steps(model, TEXTS[0], model.start_cache(1, 9)), first)


@pytest.mark.parametrize("name", ["t5", "grouped", "window", "shared"])
def test_two_continuations_share_a_cache(make, name):
    """They have the first two tokens in common, which the second one wrote, and then part."""
    model = make(DecoderOnly, **VARIANTS[name])
    texts = [[5, 6, 7, 8, 9], [5, 6, 20, 21, 22]]
    cache = model.start_cache(1, 6, 2)
    inputs = np.array([[BOS, *text[:-1]] for text in texts], np.int32)  # [K, T]
    for position in range(5):
        ancestors = np.full([1, 2, 6], -1, np.int32)
        ancestors[0, :, : position + 1] = [[0], [1]]
        ancestors[0, :, : min(position + 1, 2)] = 1
        logits, cache = model.decode_step(
            tf.constant(inputs[np.newaxis, :, position]), cache, tf.constant(position), ancestors
        )
        for k, text in enumerate(texts):
            assert_near(logits[0, k], language_model(model, text)[position])


@ALL
def test_translation(make, fields):
    """Two pairs packed into a row, and one decoded with the cache."""
    model = make(Transformer, **fields)
    logits = model(*packed(SOURCES), *packed(TEXTS))[0]
    first, second = (translation(model, *pair) for pair in zip(SOURCES, TEXTS, strict=True))
    assert_near(logits[:7], first)
    assert_near(logits[7:11], second)
    source, segments = packed(SOURCES[:1], 6)
    cache = model.start_cache(model.encode(source, segments), 9)
    assert_near(steps(model, TEXTS[0], cache, segments), first)


@ALL
def test_classification(make, fields):
    """The classes of two texts in a row stand at their first tokens."""
    model = make(EncoderClassifier, **fields)
    logits = model(*packed(TEXTS))[0]
    assert logits.dtype == tf.float32 and logits.shape == (14, CLASSES)
    assert_near(logits[0], classification(model, TEXTS[0]))
    assert_near(logits[7], classification(model, TEXTS[1]))


@pytest.mark.parametrize("pooling", ["mean", "max", "first"])
def test_pooling(make, pooling):
    """In graphs that XLA compiles, too, and with gradients that are numbers."""
    model = make(EncoderClassifier, pooling=pooling)
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function(jit_compile=True, autograph=False)
    def compute(text, segments):
        with tf.GradientTape() as tape:
            logits = model(text, segments)
            loss = tf.reduce_sum(logits[0, 0] ** 2 + logits[0, 7] ** 2)
        return logits, tape.gradient(loss, variables)

    logits, gradients = compute(*packed(TEXTS))
    assert_near(logits[0, 0], classification(model, TEXTS[0]))
    assert_near(logits[0, 7], classification(model, TEXTS[1]))
    assert all(np.isfinite(tf.convert_to_tensor(gradient)).all() for gradient in gradients)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", ["t5", "qk_norm", "grouped", "swiglu", "learned", "shared"])
def test_half_precision(make, name, policy):
    """float32 logits near the exact ones, from float32 weights."""
    keras.config.set_dtype_policy(policy)
    model = make(DecoderOnly, **VARIANTS[name])
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    expected = language_model(model, TEXTS[0])
    logits = model(*packed(TEXTS))[0, :7]
    assert logits.dtype == tf.float32
    assert np.abs(logits - expected).max() < 0.06 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["t5", "qk_norm", "window"])
def test_half_precision_of_the_other_models(make, name):
    """Of the decoding cache too."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    classifier, translator = (
        make(kind, **VARIANTS[name]) for kind in (EncoderClassifier, Transformer)
    )
    source, segments = packed(SOURCES[:1], 6)
    cache = translator.start_cache(translator.encode(source, segments), 9)
    expected = translation(translator, SOURCES[0], TEXTS[0])
    for found, exact in (
        (classifier(*packed(TEXTS))[0, 0], classification(classifier, TEXTS[0])),
        (translator(*packed(SOURCES), *packed(TEXTS))[0, :7], expected),
        (steps(translator, TEXTS[0], cache, segments), expected),
    ):
        assert found.dtype == np.float32
        assert np.abs(found - exact).max() < 0.06 * np.abs(exact).max()


def test_t5_buckets():
    distances = range(-300, 301)
    for causal in (True, False):
        expected = [bucket_by_hand(distance, causal) for distance in distances]
        result = t5_buckets(tf.constant(list(distances)), two_sided=not causal)
        np.testing.assert_array_equal(result, expected)
    # By hand: 16 exact buckets before a decoder's token, then 16 up to a distance of 128.
    result = t5_buckets(
        tf.constant([5, 0, -1, -15, -16, -32, -64, -127, -128, -999]), two_sided=False
    )
    np.testing.assert_array_equal(result, [0, 0, 1, 15, 16, 21, 26, 31, 31, 31])


def test_alibi_slopes():
    """The paper's 8 heads, and for 6 the 4 of the next smaller power and 2 from between."""
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(6) == [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]
    assert alibi_slopes(1) == [2.0**-8]


def test_deepnorm_scales(make):
    """Table of the paper, and the initial weights of the layers it names."""
    encoder, decoder = deepnorm_scales(6, 6)
    assert encoder.shortcut == pytest.approx(0.81 * 6**0.3125)
    assert encoder.gain == pytest.approx(0.87 * 6**-0.3125)
    assert (decoder.shortcut, decoder.gain) == pytest.approx((18**0.25, 72**-0.25))
    assert deepnorm_scales(0, 12)[1].gain == pytest.approx(96**-0.25)
    config = make(DecoderOnly, norm="deepnorm", width=64, heads=2).config
    layer = DecoderOnly(config, VOCAB).decoder.layers[0]
    limit = np.sqrt(6 / 128)  # Glorot's, of 64 and 64
    gain = (8 * 2) ** -0.25
    for projection, factor in (("query", 1), ("key", 1), ("value", gain)):
        largest = np.abs(getattr(layer.attention, projection).kernel.numpy()).max()
        assert 0.95 * factor * limit < largest <= factor * limit


def test_shared_layers_have_the_weights_of_one(make):
    shared, free = (make(DecoderOnly, share_layers=share) for share in (True, False))
    layer = sum(np.prod(w.shape) for w in shared.decoder.layers[0].trainable_variables)
    sizes = [sum(np.prod(w.shape) for w in m.trainable_variables) for m in (shared, free)]
    assert sizes[1] - sizes[0] == layer
    assert len(shared.decoder.layers) == 2


def test_later_learned_positions_are_the_last(make):
    """Decoding may go on beyond the table."""
    model = make(DecoderOnly, positions="learned", max_positions=16)
    x = model.positions.add_to(tf.zeros([1, 3, 16]), tf.constant([[15, 16, 99]]))
    np.testing.assert_array_equal(x[0, 1:], [x[0, 0], x[0, 0]])
