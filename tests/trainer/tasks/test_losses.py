"""Token sums and R-Drop against the distributions written out in NumPy."""

import itertools
import json
import math

import numpy as np
import pytest
import tensorflow as tf

from trainer.model.positions import positions_in_segments
from trainer.tasks import losses
from trainer.tasks.losses import symmetric_divergence, token_metrics
from trainer.tasks.translation import FEATURES, Translation

B, T, V = 3, 5, 11


@pytest.fixture(params=["plain", "compiled"])
def token_sums(request):
    """The function under test, without and with XLA, for which it is written differently."""
    if request.param == "plain":
        return losses.token_sums
    return tf.function(losses.token_sums, jit_compile=True)


@pytest.fixture
def batch():
    """float32 logits, targets, and weights that leave out the end of two rows."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, [B, T, V]).astype(np.float32)
    targets = rng.integers(0, V, [B, T]).astype(np.int32)
    targets[0, 0], targets[2, 4] = logits[0, 0].argmax(), logits[2, 4].argmax()
    weights = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], np.float32)
    return logits, targets, weights


def log_softmax(logits) -> np.ndarray:
    """In float64."""
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def expected(logits, targets, weights, smoothing):
    """The four sums, from explicit target distributions, in float64."""
    log_p = log_softmax(logits)
    one_hot = np.eye(logits.shape[-1])[targets]
    smooth = (1 - smoothing) * one_hot + smoothing / logits.shape[-1]
    return {
        "loss": -((smooth * log_p).sum(-1) * weights).sum(),
        "nll": -((one_hot * log_p).sum(-1) * weights).sum(),
        "correct": ((logits.argmax(-1) == targets) * weights).sum(),
        "tokens": weights.sum(),
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_equals_the_written_out_sums(token_sums, batch, smoothing):
    result = token_sums(*batch, smoothing)
    wanted = expected(*batch, smoothing)
    assert result.keys() == wanted.keys()
    for key, value in wanted.items():
        assert result[key].dtype == tf.float32 and result[key].shape == ()
        np.testing.assert_allclose(result[key], value, rtol=1e-6, err_msg=key)
    assert wanted["correct"] >= 2


def test_a_tie_counts_as_the_argmax_does(token_sums):
    """Of equal logits the first is the guess, as NumPy's and TensorFlow's argmax have it."""
    logits = np.array([[[1, 3, 3, 0], [3, 1, 3, 3], [2, 2, 2, 2], [0, 1, 2, 3]]], np.float32)
    for target in range(4):
        targets = np.full([1, 4], target, np.int32)
        sums = token_sums(logits, targets, np.ones([1, 4], np.float32), 0.0)
        assert float(sums["correct"]) == (logits.argmax(-1) == target).sum()
    by_position = [
        float(token_sums(logits, np.full([1, 4], 0, np.int32), weights, 0.0)["correct"])
        for weights in np.eye(4, dtype=np.float32)[:, np.newaxis]
    ]
    assert by_position == [0, 1, 1, 0]


def test_no_guess_is_right_where_logits_are_not_numbers(token_sums):
    sums = token_sums(
        np.full([1, 2, 4], np.nan, np.float32),
        np.array([[0, 3]], np.int32),
        np.ones([1, 2], np.float32),
        0.0,
    )
    assert float(sums["correct"]) == 0


def test_no_smoothing_is_sparse_cross_entropy(token_sums, batch):
    logits, targets, weights = batch
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    result = token_sums(*batch, 0.0)
    np.testing.assert_allclose(result["loss"], tf.reduce_sum(losses * weights), rtol=1e-6)
    np.testing.assert_array_equal(result["loss"], result["nll"])


def test_padding_counts_for_nothing(token_sums, batch):
    """Logits and targets under a weight of 0 change no sum and get no gradient."""
    logits, targets, weights = batch
    padding = weights == 0
    other_logits, other_targets = logits.copy(), targets.copy()
    other_logits[padding] = 1e4
    other_targets[padding] = 0
    for key, value in token_sums(logits, targets, weights, 0.1).items():
        np.testing.assert_array_equal(
            token_sums(other_logits, other_targets, weights, 0.1)[key], value
        )
    variable = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss = token_sums(variable, targets, weights, 0.1)["loss"]
    gradient = tape.gradient(loss, variable).numpy()
    assert (gradient[padding] == 0).all() and (gradient[~padding] != 0).any(-1).all()


def test_gradient_is_the_softmax_minus_the_smoothed_target(token_sums, batch):
    logits, targets, weights = batch
    variable = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss = token_sums(variable, targets, weights, 0.1)["loss"]
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = (softmax - 0.9 * np.eye(V)[targets] - 0.1 / V) * weights[..., np.newaxis]
    np.testing.assert_allclose(tape.gradient(loss, variable), wanted, atol=1e-6)


def test_empty_batch(token_sums, batch):
    logits, targets, _ = batch
    sums = token_sums(logits, targets, np.zeros([B, T], np.float32), 0.1)
    assert {key: float(value) for key, value in sums.items()} == dict.fromkeys(sums, 0.0)


def divergence(logits, others, weights) -> float:
    """KL(p || q) + KL(q || p), each from its definition, in float64."""
    log_p, log_q = log_softmax(logits), log_softmax(others)
    forward = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    backward = (np.exp(log_q) * (log_q - log_p)).sum(-1)
    return float(((forward + backward) * weights).sum())


@pytest.fixture
def others(batch):
    """Logits of a second pass."""
    logits, *_ = batch
    return logits + np.random.default_rng(1).normal(0, 0.5, logits.shape).astype(np.float32)


def test_symmetric_divergence(batch, others):
    logits, _, weights = batch
    result = symmetric_divergence(tf.constant(logits), tf.constant(others), weights)
    assert result.dtype == tf.float32 and result.shape == ()
    wanted = divergence(logits, others, weights)
    assert wanted > 1
    np.testing.assert_allclose(result, wanted, rtol=1e-5)
    np.testing.assert_allclose(symmetric_divergence(others, logits, weights), result, rtol=1e-6)
    # By hand: the logits ln 3 and 0 are 3/4 and 1/4; against 1/2 and 1/2 it is ln(3) / 4.
    first, second = tf.constant([[[np.log(3.0), 0.0]]], tf.float32), tf.zeros([1, 1, 2])
    by_hand = symmetric_divergence(first, second, tf.ones([1, 1]))
    np.testing.assert_allclose(by_hand, np.log(3) / 4, rtol=1e-6)


def test_no_divergence_between_equals(batch):
    """Nor where logits differ by a constant, which the softmax does not see."""
    logits, _, weights = batch
    assert float(symmetric_divergence(logits, logits, weights)) == 0.0
    assert abs(float(symmetric_divergence(logits, logits + 2.0, weights))) < 1e-5


def test_padding_does_not_diverge(batch, others):
    logits, _, weights = batch
    changed = others.copy()
    changed[weights == 0] = np.random.default_rng(2).normal(0, 50, changed[weights == 0].shape)
    np.testing.assert_array_equal(
        symmetric_divergence(logits, changed, weights),
        symmetric_divergence(logits, others, weights),
    )
    assert float(symmetric_divergence(logits, others, np.zeros_like(weights))) == 0.0


def test_gradient_of_the_divergence(batch, others):
    """Into both passes, equal to central differences in float64."""
    logits, _, weights = batch
    first, second = tf.constant(logits), tf.constant(others)
    with tf.GradientTape() as tape:
        tape.watch([first, second])
        value = symmetric_divergence(first, second, weights)
    gradients = tape.gradient(value, [first, second])
    for position in ((0, 0, 1), (1, 0, 4), (2, 4, 10)):
        step = np.zeros(logits.shape)
        step[position] = 1e-4
        differences = (
            divergence(logits + step, others, weights) - divergence(logits - step, others, weights),
            divergence(logits, others + step, weights) - divergence(logits, others - step, weights),
        )
        for gradient, difference in zip(gradients, differences, strict=True):
            np.testing.assert_allclose(gradient[position], difference / 2e-4, rtol=1e-3, atol=1e-6)


@pytest.fixture
def sentences(rows_of) -> dict[str, np.ndarray]:
    """Two rows of 10 positions: 8 source and 11 target tokens, ends included."""
    return rows_of([[([5, 6, 7], [8, 9]), ([4], [10, 11, 12])], [([13], [14, 15, 16])]], 10)


def sums_of(tiny_config, model, batch, training: bool = True, rng=(7, 0), **train):
    config = tiny_config(train={"label_smoothing": 0.1, **train})
    task = Translation(config, 30, 30, joint=True)
    sums = task.sums(model, batch, tf.constant(rng), training=training)
    assert set(sums) == set(Translation.SUMS)
    return {key: float(value) for key, value in sums.items()}


def rdrop_sums(first, second, batch, alpha: float) -> dict[str, float]:
    """Half of the paper's loss (Liang et al. 2021, equation 4), from the logits of two passes."""
    weights = batch["target_segments"] > 0
    passes = [expected(logits.numpy(), batch["target"], weights, 0.1) for logits in (first, second)]
    sums = {key: (passes[0][key] + passes[1][key]) / 2 for key in passes[0]}
    # The paper's own halves: 1/2 of both divergences, next to the sum of both losses.
    sums["loss"] += alpha * (divergence(first, second, weights) / 2) / 2
    return sums | {"source_tokens": 8, "tokens": 11, "positions": 20}


def test_rdrop_is_two_passes(tiny_config, make_model, sentences, monkeypatch):
    """The loss and all other sums from two separate passes, whose dropout differs."""
    model = make_model(dropout=0.3)
    seeds, hidden = [tf.constant([1, 2]), tf.constant([3, 4])], model.hidden

    def one_after_the_other(*features, rng, kept):
        assert rng is not None and kept == (None, None)
        halves = zip(*(tf.split(feature, 2) for feature in features), strict=True)
        passes = zip(halves, seeds, strict=True)
        return tf.concat([hidden(*half, rng=seed) for half, seed in passes], axis=0)

    features = [sentences[name] for name in FEATURES]
    first, second = (model(*features, rng=seed) for seed in seeds)
    wanted = rdrop_sums(first, second, sentences, alpha=5.0)
    monkeypatch.setattr(model, "hidden", one_after_the_other)
    result = sums_of(tiny_config, model, sentences, rdrop_alpha=5.0)
    assert result == pytest.approx(wanted, rel=1e-5)
    without = rdrop_sums(first, second, sentences, alpha=0.0)
    assert wanted["loss"] > without["loss"] + 1


def test_rdrop_draws_two_masks(tiny_config, make_model, sentences):
    """One call of the model on every sentence twice; its halves have other masks."""
    model = make_model(dropout=0.3)
    twice = [np.concatenate([sentences[name]] * 2) for name in FEATURES]
    first, second = tf.split(model(*twice, rng=tf.constant([7, 0])), 2)
    weights = sentences["target_segments"] > 0
    assert divergence(first, second, weights) > 1
    for alpha in (0.5, 5.0):
        result = sums_of(tiny_config, model, sentences, rdrop_alpha=alpha)
        assert result == pytest.approx(rdrop_sums(first, second, sentences, alpha), rel=1e-5)


def test_rdrop_without_dropout_changes_nothing(tiny_config, make_model, sentences):
    """The same loss, and counts of one pass, not of two."""
    model = make_model()
    plain = sums_of(tiny_config, model, sentences)
    assert sums_of(tiny_config, model, sentences, rdrop_alpha=5.0) == pytest.approx(plain, rel=1e-6)
    assert plain["loss"] != plain["nll"]
    assert (plain["source_tokens"], plain["tokens"], plain["positions"]) == (8, 11, 20)


def test_rdrop_is_for_training(tiny_config, make_model, sentences):
    model = make_model(dropout=0.3)
    config = tiny_config(train={"rdrop_alpha": 5.0})
    task = Translation(config, 30, 30, joint=True)
    sums = task.sums(model, sentences, None, training=False)
    logits = model(*(sentences[name] for name in FEATURES)).numpy()
    wanted = expected(logits, sentences["target"], sentences["target_segments"] > 0, 0.0)
    for key, value in wanted.items():
        np.testing.assert_allclose(sums[key], value, rtol=1e-5, err_msg=key)


def test_simcut_is_two_passes(tiny_config, make_model, sentences):
    """The second pass reads, in place of each cut token, one whose embedding is 0."""
    model, options = make_model(), {"simcut_alpha": 3.0, "simcut_rate": 0.4}
    model.target_embedding.embeddings.assign(
        model.target_embedding.embeddings * (np.arange(30) != 29)[:, np.newaxis]
    )
    task = Translation(tiny_config(train=options), 30, 30, joint=True)
    kept = [side.numpy() for side in task._kept(sentences, tf.constant([7, 0]))]
    assert all(side[:2].all() for side in kept)
    source, source_segments, target, target_segments = (sentences[name] for name in FEATURES)
    cut_source, cut_input = (~side[2:] for side in kept)
    assert not cut_input[positions_in_segments(target_segments).numpy() == 0].any()
    assert cut_source[source_segments > 0].any() and cut_input[target_segments > 0].any()
    cut_target = np.roll(cut_input, -1, axis=1)  # the decoder reads each token a place later
    second = model(
        np.where(cut_source, 29, source),
        source_segments,
        np.where(cut_target, 29, target),
        target_segments,
    )
    weights = target_segments > 0
    first = model(source, source_segments, target, target_segments)
    wanted = expected(first.numpy(), target, weights, 0.1)
    p, q = log_softmax(first), log_softmax(second)
    divergence = ((np.exp(p) * (p - q)).sum(-1) * weights).sum()
    assert divergence > 0.1
    wanted["loss"] += 3.0 * divergence
    wanted |= {"source_tokens": 8, "tokens": 11, "positions": 20}
    result = sums_of(tiny_config, model, sentences, **options)
    assert result == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_simcut_cuts_a_share_of_the_tokens_anew_each_step(tiny_config, rate):
    config = tiny_config(train={"simcut_alpha": 3.0, "simcut_rate": rate})
    task = Translation(config, 30, 30, joint=True)
    segments = np.ones([20, 500], np.int32)
    batch = {"source_segments": segments, "target_segments": segments}
    masks = []
    for rng in ([7, 0], [7, 1]):
        masks += [~side.numpy()[20:] for side in task._kept(batch, tf.constant(rng))]
    for mask in masks:
        assert mask.mean() == pytest.approx(rate, abs=0.015)
    for one, other in itertools.combinations(masks, 2):
        assert (one & other).mean() == pytest.approx(rate**2, abs=0.01)


def test_token_metrics():
    sums = {"loss": 50.0, "nll": 40.0, "correct": 5.0, "tokens": 20.0, "positions": 32.0}
    assert token_metrics(sums) == {
        "loss": 2.5,
        "nll": 2.0,
        "perplexity": pytest.approx(math.e**2, rel=1e-12),
        "token_accuracy": 0.25,
        "fill_rate": 0.625,
    }


def test_perplexity_of_a_diverged_model_is_a_number():
    sums = {"loss": 5e6, "nll": 5e6, "correct": 0.0, "tokens": 1.0, "positions": 1.0}
    written = json.loads(json.dumps(token_metrics(sums)))
    assert written["perplexity"] == pytest.approx(math.exp(100))


@pytest.mark.parametrize(("name", "higher"), [("bleu", True), ("chrf", True), ("loss", False)])
def test_direction(name, higher):
    assert Translation.BEST[name] is higher
