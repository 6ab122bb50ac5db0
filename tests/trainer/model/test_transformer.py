"""The Transformer against NumPy, and what must not change its logits."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from configs.schema import ModelConfig
from data_pipeline.dataset.tokenizer import BOS_ID
from trainer.model.dropout import step_rng
from trainer.model.layers import write_position
from trainer.model.transformer import Transformer
from trainer.tasks.translation import FEATURES, Translation

VOCAB = 30
PAIRS = [([5, 6, 7], [8, 9, 10, 11]), ([12, 13, 14, 15, 16], [17, 18])]
NORMS = pytest.mark.parametrize("norm", ["post", "pre"])


def logits_of(model, batch, rng=None):
    return model(*(batch[name] for name in FEATURES), rng=rng)


def parameters(config: ModelConfig, vocab: int) -> int:
    """The number of weights, from the shapes in the paper."""
    width, inner = config.width, config.feed_forward
    attention = 4 * (width * width + width)
    feed_forward = width * inner + inner + inner * width + width
    norm = 2 * width
    encoder = config.encoder_layers * (attention + feed_forward + 2 * norm)
    decoder = config.decoder_layers * (2 * attention + feed_forward + 3 * norm)
    matrices = {"all": 1, "target": 2, "none": 3}[config.tied_embeddings]
    final_norms = 2 * norm if config.norm == "pre" else 0
    return encoder + decoder + matrices * vocab * width + final_norms


def count(model) -> int:
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


@NORMS
@pytest.mark.parametrize(
    ("tied", "by_hand"), [("all", 4_896), ("target", 4_896 + 480), ("none", 4_896 + 960)]
)
def test_number_of_parameters(make_model, norm, tied, by_hand):
    """By hand: attention 1088, feed-forward 808, norm 32; 480 the embedding of 30 tokens."""
    model = make_model(norm=norm, tied_embeddings=tied)
    assert count(model) == parameters(model.config, VOCAB)
    encoder, decoder = 1088 + 808 + 2 * 32, 2 * 1088 + 808 + 3 * 32
    assert by_hand - 4_896 + encoder + decoder + 480 + (64 if norm == "pre" else 0) == count(model)


def test_number_of_parameters_of_the_base_model():
    """Table 3 of the paper says 65 million; with 37,000 tokens it is 63,082,496."""
    with tf.device("/CPU:0"):
        model = Transformer(ModelConfig(), 37_000, 37_000, joint=True)
    assert count(model) == parameters(ModelConfig(), 37_000) == 63_082_496


def test_two_vocabularies_have_two_embeddings(make_model):
    """Of 20 and 30 tokens, and the softmax is the second one transposed, or a third matrix."""
    tied, free = (make_model(source_vocab=20, tied_embeddings=tied) for tied in ("target", "none"))
    layers = count(make_model()) - VOCAB * 16
    assert count(tied) == layers + (20 + VOCAB) * 16
    assert count(free) == layers + (20 + 2 * VOCAB) * 16
    assert tied.source_embedding.embeddings.shape == (20, 16)
    assert tied.target_embedding.embeddings.shape == (VOCAB, 16)
    assert tied.softmax is None


def test_one_vocabulary_keeps_its_variables(make_model):
    """Checkpoints find the shared embedding under the target's name."""
    paths = [variable.path for variable in make_model().variables]
    assert [path for path in paths if "embedding" in path] == ["target_embedding/embeddings"]


def test_two_vocabularies_cannot_share_an_embedding(make_model, tiny_config):
    with pytest.raises(UsageError, match=r"tied_embeddings is 'all', .* set it to 'target' or"):
        make_model(source_vocab=VOCAB)
    for sizes, joint in (((20, 30), True), ((30, 30), False)):
        with pytest.raises(ValueError, match="two vocabularies cannot share one embedding"):
            Transformer(tiny_config().model, *sizes, joint=joint)


def numpy_transformer(model, batch) -> list[np.ndarray]:
    """The whole model in float64, one unpacked sentence pair a row, from its weights."""
    config = model.config

    def weights(variable):
        return variable.numpy().astype(np.float64)

    def dense(layer, x):
        return x @ weights(layer.kernel) + weights(layer.bias)

    def norm(layer, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * weights(layer.gamma) + weights(layer.beta)

    def attention(layer, x, memory):
        def heads(y):
            return y.reshape(len(y), config.heads, -1).swapaxes(0, 1)

        query = heads(dense(layer.query, x))
        key, value = heads(dense(layer.key, memory)), heads(dense(layer.value, memory))
        scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        return dense(layer.output_projection, (scores @ value).swapaxes(0, 1).reshape(len(x), -1))

    def feed_forward(layer, x):
        return dense(layer.outer, np.maximum(dense(layer.inner, x), 0))

    def residual(layer, x, function):
        if config.norm == "pre":
            return x + function(norm(layer.norm, x))
        return norm(layer.norm, x + function(x))

    def embed(layer, tokens):
        half = config.width // 2
        angle = np.arange(len(tokens))[:, None] / 10_000.0 ** (np.arange(half) / half)
        encoding = np.concatenate([np.sin(angle), np.cos(angle)], -1)
        return weights(layer.embeddings)[tokens] * np.sqrt(config.width) + encoding

    def causal(layer, y):
        length = len(y)
        rows = [attention(layer, y[: i + 1], y[: i + 1])[i] for i in range(length)]
        return np.stack(rows)  # each position on its own: no mask that could be wrong

    results = []
    for source, target in zip(batch["source"], batch["target"], strict=True):
        source, target = source[source > 0], target[target > 0]
        x = embed(model.source_embedding, source)
        for layer in model.encoder.layers:
            attend = layer.attention
            x = residual(layer.around_attention, x, lambda y, a=attend: attention(a, y, y))
            ff = layer.feed_forward
            x = residual(layer.around_feed_forward, x, lambda y, f=ff: feed_forward(f, y))
        memory = norm(model.encoder_norm, x) if config.norm == "pre" else x
        x = embed(model.target_embedding, np.array([BOS_ID, *target[:-1]]))
        for layer in model.decoder.layers:
            x = residual(layer.around_attention, x, lambda y, a=layer.attention: causal(a, y))
            cross = layer.cross_attention
            x = residual(layer.around_cross, x, lambda y, a=cross, m=memory: attention(a, y, m))
            ff = layer.feed_forward
            x = residual(layer.around_feed_forward, x, lambda y, f=ff: feed_forward(f, y))
        x = norm(model.decoder_norm, x) if config.norm == "pre" else x
        tied = config.tied_embeddings != "none"
        table = weights(model.target_embedding.embeddings).T if tied else None
        results.append(x @ (table if tied else weights(model.softmax.kernel)))
    return results


@pytest.mark.parametrize(
    ("norm", "tied", "source_vocab"),
    [
        ("post", "all", None),
        ("pre", "target", None),
        ("pre", "none", None),
        ("post", "target", 17),
        ("pre", "none", 40),
    ],
)
def test_equals_numpy(make_model, rows_of, norm, tied, source_vocab):
    """Logits of every token of two padded rows, two layers deep."""
    layers = {"encoder_layers": 2, "decoder_layers": 2}
    model = make_model(source_vocab=source_vocab, norm=norm, tied_embeddings=tied, **layers)
    batch = rows_of([[pair] for pair in PAIRS], 8)
    logits = logits_of(model, batch)
    assert logits.dtype == tf.float32 and logits.shape == (2, 8, VOCAB)
    for row, expected in enumerate(numpy_transformer(model, batch)):
        np.testing.assert_allclose(logits[row, : len(expected)], expected, rtol=2e-5, atol=2e-5)


@NORMS
def test_later_target_tokens_do_not_change_earlier_logits(make_model, rows_of, norm):
    """Row i differs from the last row in its i-th target token alone."""
    model = make_model(norm=norm, decoder_layers=2)
    batch = rows_of([[PAIRS[0]]] * 5, 8)
    for position in range(4):
        batch["target"][position, position] = 20
    logits = logits_of(model, batch).numpy()
    for position in range(4):
        # The token at `position` is an input from the next position on.
        same, first_other = logits[position, : position + 1], logits[position, position + 1]
        np.testing.assert_allclose(same, logits[4, : position + 1], rtol=1e-6, atol=1e-6)
        assert np.abs(first_other - logits[4, position + 1]).max() > 1e-2


def test_padding_changes_nothing(make_model, rows_of):
    """Neither more of it on either side, nor what stands in it."""
    model = make_model()
    short = logits_of(model, rows_of([[PAIRS[0]]], 5)).numpy()
    batch = rows_of([[PAIRS[0]]], 12)
    np.testing.assert_allclose(logits_of(model, batch)[:, :5], short, rtol=1e-5, atol=1e-5)
    batch["source"][0, 4:] = 20
    np.testing.assert_allclose(logits_of(model, batch)[:, :5], short, rtol=1e-5, atol=1e-5)


def losses_and_gradients(model, task, batch):
    with tf.GradientTape() as tape:
        sums = task.sums(model, batch, None, training=True)
    variables = [variable.value for variable in model.trainable_variables]
    gradients = [tf.convert_to_tensor(g) for g in tape.gradient(sums["loss"], variables)]
    return sums, gradients


@pytest.mark.parametrize(("norm", "tied"), [("post", "all"), ("pre", "none")])
def test_packed_equals_unpacked(make_model, rows_of, tiny_config, norm, tied):
    """Two sentences in one row give the logits, the loss and the gradients of two rows."""
    model = make_model(norm=norm, tied_embeddings=tied)
    task = Translation(tiny_config(), VOCAB, VOCAB, joint=True)
    packed, unpacked = rows_of([PAIRS], 11), rows_of([[pair] for pair in PAIRS], 11)
    together = logits_of(model, packed).numpy()[0]
    apart = logits_of(model, unpacked).numpy()
    np.testing.assert_allclose(together[:5], apart[0, :5], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(together[5:8], apart[1, :3], rtol=1e-5, atol=1e-5)

    packed_sums, packed_gradients = losses_and_gradients(model, task, packed)
    sums, gradients = losses_and_gradients(model, task, unpacked)
    for key in ("loss", "nll", "correct", "tokens", "source_tokens"):
        np.testing.assert_allclose(packed_sums[key], sums[key], rtol=1e-6, err_msg=key)
    assert (float(sums["tokens"]), float(sums["source_tokens"])) == (8, 10)
    assert (float(packed_sums["positions"]), float(sums["positions"])) == (11, 22)
    assert len(gradients) == len(model.trainable_variables)
    for variable, one, other in zip(
        model.trainable_variables, packed_gradients, gradients, strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5, err_msg=variable.path)


def test_evaluation_is_not_smoothed(make_model, rows_of, tiny_config):
    config = tiny_config(train={"label_smoothing": 0.3})
    task = Translation(config, VOCAB, VOCAB, joint=True)
    model, batch = make_model(), rows_of([PAIRS], 11)
    sums = task.sums(model, batch, None, training=False)
    assert float(sums["loss"]) == float(sums["nll"])
    smoothed = task.sums(model, batch, None, training=True)
    assert float(smoothed["nll"]) == float(sums["nll"]) != float(smoothed["loss"])


def test_dropout_needs_a_seed(make_model, rows_of):
    """Without one the model is exact; with one, the same seed gives the same logits."""
    batch = rows_of([[pair] for pair in PAIRS], 8)
    rates = {"dropout": 0.2, "attention_dropout": 0.2, "activation_dropout": 0.2}
    dropping, plain = make_model(**rates), make_model()
    np.testing.assert_array_equal(logits_of(dropping, batch), logits_of(plain, batch))
    one, same, other = (
        logits_of(dropping, batch, step_rng(1, step, 0)).numpy() for step in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01 and np.abs(one - logits_of(plain, batch)).max() > 0.01


def test_mixed_bfloat16(make_model, rows_of):
    """float32 weights and logits, close to those of the float32 model."""
    batch = rows_of([[pair] for pair in PAIRS], 8)
    expected = logits_of(make_model(), batch).numpy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = make_model()
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    logits = logits_of(model, batch)
    assert logits.dtype == tf.float32
    held = batch["target_segments"] > 0
    assert np.abs(logits.numpy() - expected)[held].max() < 0.05 * np.abs(expected[held]).max()


def test_write_position():
    cache = tf.reshape(tf.range(12.0), [1, 2, 3, 2])
    new = tf.constant([[[[-1.0, -2.0]], [[-3.0, -4.0]]]])
    expected = cache.numpy()
    expected[0, :, 1] = [[-1, -2], [-3, -4]]
    np.testing.assert_array_equal(write_position(cache, new, tf.constant(1)), expected)
