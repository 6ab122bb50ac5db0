"""Rules, penalties, ensembles, sampling and forced decoding, each against a plain computation."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import sacrebleu
import tensorflow as tf

from trainer.decoding.constraints import repeated_ngrams, token_mask
from trainer.decoding.forced import ForcedDecoder
from trainer.decoding.options import NEVER, SamplingOptions, SearchOptions
from trainer.decoding.risk import expected_chrf, least_risk
from trainer.decoding.sampling import draw_tokens, token_probabilities
from trainer.decoding.scoring import Translated
from trainer.decoding.search import Decoder, Hypothesis
from trainer.decoding.words import word_alignment

EOS = 3
SHORT = {"max_length_ratio": 0.0, "max_length_offset": 8}


class Toy:
    """A predictor whose next token depends on the source's first token and the last two tokens.

    Its probabilities are a table, so that a search can be repeated in plain Python.
    """

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        logits = rng.normal(0.0, 1.5, [7, 7, 7, 7])
        self.table = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)

    def start(self, source, length, beams):
        batch = tf.shape(source)[0]
        empty = tf.zeros([batch, length * beams], tf.int32)
        return {"first": source[:, 0], "written": empty}

    def step(self, tokens, state, position, ancestors):
        beams = tokens.shape[1]
        table = tf.reshape(state["written"], [tf.shape(tokens)[0], -1, beams])  # [B, T, K]
        here = (tf.range(tf.shape(table)[1]) == position)[:, tf.newaxis]
        table = tf.where(here, tokens[:, tf.newaxis], table)
        before = tf.maximum(position - 1, 0)
        if ancestors is None:
            earlier = table[:, before]
        else:  # what the hypothesis's ancestor wrote one position earlier
            earlier = tf.gather(table[:, before], ancestors[:, :, before], batch_dims=1)
        first = tf.broadcast_to(state["first"][:, tf.newaxis], tf.shape(tokens))
        places = tf.stack([first, tf.where(position > 0, earlier, 0), tokens], axis=-1)
        log_p = tf.ensure_shape(tf.gather_nd(self.table, places), [None, beams, 7])
        written = tf.reshape(table, tf.shape(state["written"]))
        return log_p, {**state, "written": tf.ensure_shape(written, [None, None])}

    def grow(self, state, positions, beams):
        padding = [[0, 0], [0, positions * beams]]
        return {**state, "written": tf.pad(state["written"], padding)}

    def log_p(self, first: int, ids, suppressed=()) -> np.ndarray:
        """float32 [7], of the token after `ids`."""
        history = [0, 2, *ids] if ids else [0, 2]
        row = self.table[first, history[-2], history[-1]].copy()
        row[[0, 1, 2, *suppressed]] = -np.inf
        return row


def plain_beam(toy, first, beams, length, rule, groups=1, diversity=0.0, score=None):
    """Beam search as plainly as possible; returns the finished (score, ids), best first.

    `rule` changes the log probabilities of the token after the ids; `score` of (log_p, ids).
    """
    score = score or (lambda log_p, ids: log_p / ((5 + len(ids)) / 6) ** 0.6)
    members = beams // groups
    alive = [[(0.0, ())] for _ in range(groups)]
    done: list[list] = [[] for _ in range(groups)]
    for _ in range(length):
        chosen: Counter = Counter()
        for group in range(groups):
            candidates = []
            for total, ids in alive[group]:
                row = rule(toy.log_p(first, ids), ids)
                for token in np.flatnonzero(np.isfinite(row)):
                    log_p = total + float(row[token])
                    rank = log_p - diversity * chosen[token]
                    candidates.append((rank, log_p, (*ids, int(token))))
            candidates = sorted(candidates, reverse=True)[: 2 * members]
            chosen.update(ids[-1] for _, _, ids in candidates[:members])
            for _, log_p, ids in candidates[:members]:
                if ids[-1] == EOS and not all(len(part) == members for part in done):
                    done[group].append((score(log_p, ids), ids))
            done[group] = sorted(done[group], reverse=True)[:members]
            alive[group] = [c[1:] for c in candidates if c[2][-1] != EOS][:members]
        if all(len(part) == members for part in done):
            break
    return sorted(itertools.chain(*done), reverse=True)


def no_rule(row, ids):
    return row


def at_least_three(row, ids):
    return np.where((np.arange(7) == EOS) & (len(ids) < 3), -np.inf, row)


def no_bigram_twice(row, ids):
    pairs = {(a, b) for a, b in itertools.pairwise(ids)}
    return np.array([-np.inf if ids and (ids[-1], t) in pairs else row[t] for t in range(7)])


def penalised(row, ids):
    return np.array([row[t] * 1.7 if t in ids else row[t] for t in range(7)])


def without_five(row, ids):
    return np.where(np.arange(7) == 5, -np.inf, row)


@pytest.mark.parametrize(
    ("options", "rule", "score"),
    [
        ({}, no_rule, None),
        ({"min_length": 3}, at_least_three, None),
        ({"no_repeat_ngram": 2}, no_bigram_twice, None),
        ({"repetition_penalty": 1.7}, penalised, None),
        ({"suppressed": (5,)}, without_five, None),
        (
            {"normalization": "length", "length_penalty": 1.0},
            no_rule,
            lambda log_p, ids: log_p / len(ids),
        ),
        ({"groups": 2, "diversity": 0.8}, no_rule, None),
    ],
    ids=["plain", "min_length", "ngram", "repetition", "suppressed", "length", "diverse"],
)
def test_beam_search_equals_a_plain_one(options, rule, score):
    """Ids and scores of all finished hypotheses, for every first token, in one batch."""
    toy = Toy()
    decoder = Decoder(toy, SearchOptions(beam_size=4, **SHORT, **options))
    found = decoder.search([[first] for first in (4, 5, 6)] * 3)
    diverse = {key: options[key] for key in ("groups", "diversity") if key in options}
    for first, hypotheses in zip((4, 5, 6) * 3, found, strict=True):
        ended = [one for one in hypotheses if one.ended]
        expected = plain_beam(toy, first, 4, 8, rule, score=score, **diverse)
        assert len(expected) > 1
        assert [one.ids for one in ended] == [list(ids[:-1]) for _, ids in expected]
        np.testing.assert_allclose([one.score for one in ended], [s for s, _ in expected], 1e-5)


def test_a_prefix_is_kept_and_counts(make_model):
    """The translation begins with it, and its score is that of the whole."""
    toy = Toy()
    options = SearchOptions(beam_size=3, **SHORT)
    (free, forced) = Decoder(toy, options).search([[4], [4]], [[], [6, 5]])
    assert free[0].ids[:2] != [6, 5]
    assert all(one.ids[:2] == [6, 5] for one in forced) and len(forced) == 3
    for one in forced:
        ids = [*one.ids, EOS] if one.ended else one.ids
        total = sum(toy.log_p(4, ids[:i])[token] for i, token in enumerate(ids))
        assert one.log_probability == pytest.approx(total, rel=1e-5)


def test_masks_of_tokens():
    written = tf.constant([[[4, 5, 4, 5, 6, 0]]])
    assert np.flatnonzero(token_mask(written, written > 0, 7)).tolist() == [4, 5, 6]
    # After 4 5 4 a bigram that begins with 4 may not end in 5; after 4 5 none ends yet.
    assert np.flatnonzero(repeated_ngrams(written, tf.constant(3), 2, 7)).tolist() == [5]
    assert np.flatnonzero(repeated_ngrams(written, tf.constant(2), 2, 7)).tolist() == []
    assert np.flatnonzero(repeated_ngrams(written, tf.constant(2), 1, 7)).tolist() == [4, 5]


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(scale=2.0, seed=3, norm="pre", tied_embeddings="none", decoder_layers=2)


@pytest.fixture(scope="module")
def sentences() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(4, 30, rng.integers(1, 12)).tolist() for _ in range(12)]


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_the_score_of_a_search_is_that_of_forced_decoding(make_model, sentences, precision):
    """Log probabilities, from the cache and from the whole model at once."""
    import keras

    keras.config.set_dtype_policy(precision)
    try:
        model = make_model(scale=2.0, seed=3, norm="pre", tied_embeddings="none")
    finally:
        keras.config.set_dtype_policy("float32")
    found = Decoder(model, SearchOptions(beam_size=3, length_penalty=2.0)).search(sentences)
    ended = [
        (source, one)
        for source, hypotheses in zip(sentences, found, strict=True)
        for one in hypotheses
        if one.ended
    ]
    assert len(ended) > 12
    forced = ForcedDecoder([model]).score([s for s, _ in ended], [one.ids for _, one in ended])
    tolerance = 1e-4 if precision == "float32" else 0.05
    for (_, one), score in zip(ended, forced, strict=True):
        assert one.log_probability == pytest.approx(
            score.log_probability, rel=tolerance, abs=tolerance
        )
        assert len(score.token_log_probabilities) == len(one.ids) + 1


def test_a_very_long_source_is_cut_before_the_rows_are_made(model):
    """Rows as wide as the uncut source would need the square of its length."""
    forced = ForcedDecoder([model])
    function, shapes = forced._function, []
    forced._function = lambda *rows: shapes.append([x.shape[1] for x in rows]) or function(*rows)
    (found,) = forced.score([[5] * 5000], [[6, 7]])
    assert found.attention.shape == (3, 1024) and shapes == [[1024, 1024]]


def test_an_ensemble(make_model, model, sentences):
    """One model, twice or alone, is that model; two are scored by the mean probability."""
    options = SearchOptions(beam_size=2, length_penalty=2.0)
    alone = Decoder(model, options).translate(sentences)
    assert Decoder([model, model], options).translate(sentences) == alone
    other = make_model(scale=2.0, seed=8, norm="pre", tied_embeddings="none", decoder_layers=2)
    both = Decoder([model, other], options).search(sentences)
    assert [one[0].ids for one in both] != alone
    sources = [s for s, one in zip(sentences, both, strict=True) if one[0].ended]
    best = [one[0] for one in both if one[0].ended]
    singles = [ForcedDecoder([m]).score(sources, [b.ids for b in best]) for m in (model, other)]
    for one, first, second in zip(best, *singles, strict=True):
        mean = np.logaddexp(
            first.token_log_probabilities, second.token_log_probabilities
        ) - math.log(2)
        assert one.log_probability == pytest.approx(mean.sum(), rel=1e-4)


def test_coverage_penalty(model, sentences):
    """beta * sum of log(min(attention, 1)) is added to the score of what ends."""
    options = SearchOptions(beam_size=3, coverage_penalty=0.4, length_penalty=1.0)
    decoder, forced = Decoder(model, options), ForcedDecoder([model])
    checked = 0
    for source, hypotheses in zip(sentences, decoder.search(sentences), strict=True):
        for one in (one for one in hypotheses if one.ended):
            looks = forced.score([source], [one.ids])[0].attention.sum(axis=0)
            penalty = 0.4 * np.log(np.minimum(looks, 1.0)).sum()
            expected = one.log_probability / ((5 + len(one.ids) + 1) / 6) + penalty
            assert one.score == pytest.approx(expected, rel=1e-3, abs=1e-3)
            checked += 1
    assert checked > 10


def test_alignment_of_words():
    attention = np.array([[0.9, 0, 0.1, 0], [0.1, 0.2, 0.7, 0], [0, 0.6, 0.4, 0], [0, 0, 0, 1]])
    source, target = ["\u2581ab", "c", "\u2581d"], ["\u2581x", "\u2581y", "z"]
    # y and z look 0.1 + 0.2 + 0.6 at the first word and 0.7 + 0.4 at the second.
    assert word_alignment(attention, source, target) == [(0, 0), (1, 1)]
    assert word_alignment(attention, source, []) == []
    of_bytes = ["<0x61>", "<0x63>", "<0x20>"], ["<0x78>", "<0x20>", "<0x79>"]
    assert word_alignment(attention, *of_bytes) == [(0, 0), (1, 1)]


def test_samples_have_the_model_s_frequencies():
    """4,000 first tokens against their probabilities; the same seed gives the same samples."""
    toy = Toy(1)
    options = SearchOptions(max_length_ratio=0.0, max_length_offset=1)
    sampling = SamplingOptions(samples=4000, seed=5)
    (samples,) = Decoder(toy, options, sampling=sampling).search([[4]])
    counts = Counter(one.ids[0] if one.ids else EOS for one in samples)
    expected = np.exp(toy.log_p(4, ()))
    expected /= expected.sum()
    for token in (3, 4, 5, 6):
        deviation = math.sqrt(expected[token] * (1 - expected[token]) / 4000)
        assert abs(counts[token] / 4000 - expected[token]) < 4 * deviation
    again = Decoder(toy, options, sampling=sampling).search([[4]])
    assert [one.ids for one in again[0]] == [one.ids for one in samples]


def test_samples_do_not_depend_on_the_batch(model, sentences):
    """Nor does the score, which is that of the model without temperature."""
    options = SearchOptions(batch_tokens=4096, **SHORT)
    sampling = SamplingOptions(samples=3, temperature=0.7, top_p=0.95)
    large = Decoder(model, options, sampling=sampling).search(sentences)
    small = Decoder(model, SearchOptions(batch_tokens=100, **SHORT), sampling=sampling).search(
        sentences
    )
    assert [[one.ids for one in three] for three in large] == [
        [one.ids for one in three] for three in small
    ]
    assert len({tuple(one.ids) for three in large for one in three}) > 12
    forced = ForcedDecoder([model])
    for source, three in zip(sentences, large, strict=True):
        for one in (one for one in three if one.ended):
            score = forced.score([source], [one.ids])[0]
            assert one.log_probability == pytest.approx(score.log_probability, rel=1e-3)


def test_samples_do_not_depend_on_how_the_sentences_come(model, sentences):
    """Each sentence of a decoder has numbers of its own, in whatever pieces it is given them."""
    options, sampling = SearchOptions(**SHORT), SamplingOptions(samples=2)
    whole = Decoder(model, options, sampling=sampling).search([sentences[0]] * 4)
    decoder = Decoder(model, options, sampling=sampling)
    parts = [decoder.search([sentences[0]] * count) for count in (1, 3)]
    texts = [[one.ids for one in two] for two in whole]
    assert texts == [[one.ids for one in two] for part in parts for two in part]
    assert len({str(one) for one in texts}) > 1


def test_the_chosen_sample_is_the_translation():
    """Its end counts, not that of the first that was drawn."""
    samples = [Hypothesis([number], -1.0, -1.0, ended) for number, ended in ((5, True), (6, False))]
    found = Translated("a", samples, ["a", "b"]).led_by(1)
    assert (found.text, found.texts, found.cut) == ("b", ["b", "a"], True)
    assert [one.ids for one in found.hypotheses] == [[6], [5]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.3, 0.2]),
        ({"top_k": 2}, [0.625, 0.375]),
        ({"top_p": 0.5}, [1.0, 0, 0]),
        ({"top_p": 0.6}, [0.625, 0.375, 0]),
        ({"temperature": 0.5}, [0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38]),
    ],
)
def test_what_is_drawn_from(options, expected):
    log_p = tf.math.log(tf.constant([[0.3, 0.5, 0.2]]))
    found = token_probabilities(log_p, SamplingOptions(**options)).numpy()[0]
    np.testing.assert_allclose(found[[1, 0, 2]][: len(expected)], expected, atol=1e-6)
    assert found.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.999}])
def test_rounding_swaps_no_tokens(options):
    """What a larger batch changes in the last bit may not change what a number draws."""
    shares = np.array([[0.25, 0.25 + 1e-7, 0.5]], np.float32)
    other = shares[:, [1, 0, 2]]
    uniform = tf.constant([0.1, 0.4, 0.6, 0.999999], tf.float32)
    drawn = [
        draw_tokens(tf.math.log(tf.repeat(one, 4, axis=0)), uniform, SamplingOptions(**options))
        for one in (shares, other)
    ]
    assert drawn[0].numpy().tolist() == drawn[1].numpy().tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize("options", [{}, {"top_k": 50}, {"top_p": 0.9}])
def test_what_is_impossible_is_never_drawn(options):
    """XLA's sum over the vocabulary rises by rounding where a probability is 0."""
    rng = np.random.default_rng(0)
    log_p = rng.normal(0.0, 2.0, [8, 32_000]).astype(np.float32)
    log_p[:, rng.random(32_000) < 0.5] = NEVER
    log_p = tf.nn.log_softmax(log_p)
    chosen = SamplingOptions(**options)

    @tf.function(jit_compile=True)
    def compiled(uniform):
        probabilities = token_probabilities(log_p, chosen)
        return probabilities, tf.cumsum(probabilities, axis=1), draw_tokens(log_p, uniform, chosen)

    possible, sums, _ = (part.numpy() for part in compiled(tf.zeros([8])))
    rises = (np.diff(sums, axis=1) > 0) & (possible[:, 1:] == 0)
    assert rises.any()
    for _ in range(20):
        rows, places = np.nonzero(rises)
        uniform = rng.random(8).astype(np.float32)
        for row in set(rows):
            uniform[row] = sums[row, rng.choice(places[rows == row])]
        drawn = compiled(tf.constant(uniform))[2].numpy()
        assert (possible[np.arange(8), drawn] > 0).all()


def test_minimum_bayes_risk():
    """Against chrF of every pair, one by one."""
    candidates = ["the cat sat", "the cat sits", "a dog ran", "the cat sat", "the cats sat"]
    expected = [
        np.mean([sacrebleu.sentence_chrf(one, [other]).score for other in candidates])
        for one in candidates
    ]
    np.testing.assert_allclose(expected_chrf(candidates), expected)
    assert least_risk(candidates) == int(np.argmax(expected)) == 0


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"samples": 0}, {"top_p": 0.0}, {"top_k": -1}]
)
def test_sampling_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match="sampling takes"):
        SamplingOptions(**options)
