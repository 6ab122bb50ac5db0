"""Decoding with a cache against full forward passes, and beam search against exhaustive search."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from configs.schema import DecodeConfig
from trainer.decoding import devices, search
from trainer.decoding.beam import BeamSearch, Found
from trainer.decoding.options import SearchOptions, search_options
from trainer.decoding.predictor import TranslationPredictor
from trainer.decoding.search import Decoder
from trainer.model.layers import write_position

BOS, EOS = 2, 3
NEVER = (0, 1, BOS)


def sources(vocab: int, count: int, length: int, seed: int = 0) -> np.ndarray:
    """Random source rows of different lengths, each with its end token, then padding."""
    rng = np.random.default_rng(seed)
    rows = np.zeros([count, length], np.int32)
    for row in rows:
        size = rng.integers(1, length)
        row[:size], row[size] = rng.integers(4, vocab, size), EOS
    return rows


def logits_of(model, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The whole model at once, without a cache."""
    segments = np.ones_like(target)
    return model(source, (source > 0).astype(np.int32), target, segments).numpy()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize(
    ("norm", "tied", "source_vocab"),
    [("post", "all", None), ("pre", "none", None), ("post", "target", 50), ("pre", "none", 20)],
)
def test_cached_equals_uncached(make_model, norm, tied, source_vocab):
    """Position by position, the cached step gives the logits of the whole model."""
    model = make_model(source_vocab=source_vocab, norm=norm, tied_embeddings=tied, decoder_layers=2)
    source = sources(source_vocab or 30, 3, 6)
    target = np.random.default_rng(1).integers(4, 30, [3, 7]).astype(np.int32)
    expected = logits_of(model, source, target)
    segments = (source > 0).astype(np.int32)
    cache = model.start_cache(model.encode(source, segments), 9)
    step = tf.function(model.decode_step)
    token = tf.fill([3, 1], BOS)
    for position in range(7):
        logits, cache = step(token, cache, tf.constant(position), segments)
        np.testing.assert_allclose(logits[:, 0], expected[:, position], rtol=2e-5, atol=2e-5)
        token = tf.constant(target[:, position : position + 1])


@pytest.mark.parametrize(("size", "dtype"), [(4, "float32"), (3, "float32"), (8, "bfloat16")])
def test_a_cache_is_written_at_one_position(size, dtype):
    """Sizes of a head that are whole words of 16 bytes, and one that is not."""
    cache = np.random.default_rng(0).integers(0, 99, [2, 3, 5 * 2, size])
    new = np.random.default_rng(1).integers(100, 199, [2, 3, 2, size])
    written = write_position(tf.cast(cache, dtype), tf.cast(new, dtype), tf.constant(3))
    cache[:, :, 6:8] = new
    np.testing.assert_array_equal(tf.cast(written, tf.int64), cache)


def search_graph(model, length: int, shape=(None, None), **options):
    """The whole search in one graph, for any shape, as an exported model has it."""
    search = BeamSearch(TranslationPredictor([model]), SearchOptions(**options))

    def run(source) -> Found:
        return search.run(source, tf.fill([tf.shape(source)[0]], length), length)

    signature = [tf.TensorSpec(shape, tf.int32)]
    return tf.function(run, input_signature=signature, autograph=False)


def naive_greedy(model, source: np.ndarray, max_length: int) -> np.ndarray:
    """A full forward pass for every token."""
    forward = tf.function(model)
    segments = (source > 0).astype(np.int32)
    written = np.zeros([len(source), max_length], np.int32)
    finished = np.zeros(len(source), bool)
    for position in range(max_length):
        logits = forward(source, segments, written, np.ones_like(written)).numpy()[:, position]
        logits[:, NEVER] = -np.inf
        written[:, position] = np.where(finished, 0, logits.argmax(-1))
        finished |= written[:, position] == EOS
    return written


@pytest.fixture(scope="module")
def model(make_model):
    """30 tokens, with logits far enough apart that rounding decides nothing."""
    return make_model(scale=2.0, seed=3, norm="pre", tied_embeddings="none")


def test_greedy_equals_a_naive_loop(model):
    """Some sentences end before others, and stay as they are."""
    source = sources(30, 12, 6)
    result = search_graph(model, 8, beam_size=1)(source).tokens[:, 0].numpy()
    np.testing.assert_array_equal(result, naive_greedy(model, source, 8))
    ends = [row.tolist().index(EOS) if EOS in row else 8 for row in result]
    assert len(set(ends)) > 2
    assert all((row[end + 1 :] == 0).all() for row, end in zip(result, ends, strict=True))
    assert not np.isin(result[result > 0], NEVER).any()


def test_a_beam_of_one_is_greedy(model):
    source = sources(30, 64, 6, seed=1)
    beams = search_graph(model, 8, beam_size=1)(source)
    np.testing.assert_array_equal(beams.tokens[:, 0], naive_greedy(model, source, 8))


SMALL, WORDS, LONGEST = 7, (4, 5, 6), 4


@pytest.fixture(scope="module")
def small_model(make_model):
    """3 words: few enough translations to look at all of them."""
    return make_model(vocab=SMALL, scale=1.5, seed=3)


def prefix_table(model, source: np.ndarray) -> dict[tuple[int, ...], np.ndarray]:
    """Log probabilities of the next token after every prefix of less than `LONGEST` words."""
    full = np.array(list(itertools.product(WORDS, repeat=LONGEST)), np.int32)
    repeated = np.repeat(source[np.newaxis], len(full), axis=0)
    log_p = log_softmax(logits_of(model, repeated, full))
    return {
        tuple(row[:length].tolist()): log_p[index, length]
        for index, row in enumerate(full)
        for length in range(LONGEST)
    }


def penalty(length: int, alpha: float) -> float:
    return ((5 + length) / 6) ** alpha


def padded(ids) -> list[int]:
    return [*ids, *[0] * (LONGEST - len(ids))]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_wide_beam_is_exhaustive(small_model, alpha):
    """With room for every hypothesis, the finished ones come in the order of their scores."""
    source = sources(SMALL, 3, 4)
    search = search_graph(small_model, LONGEST, beam_size=120, length_penalty=alpha)
    beams, scores, _, ended = (x.numpy() for x in search(source))
    for row in range(len(source)):
        table = prefix_table(small_model, source[row])
        finished = []
        for length in range(LONGEST):
            for words in itertools.product(WORDS, repeat=length):
                ids = (*words, EOS)
                total = sum(table[words[:i]][token] for i, token in enumerate(ids))
                finished.append((total / penalty(length + 1, alpha), padded(ids)))
        finished.sort(reverse=True)
        assert len(finished) == 1 + 3 + 9 + 27
        np.testing.assert_allclose(scores[row, :40], [s for s, _ in finished], rtol=1e-5)
        assert beams[row, :40].tolist() == [ids for _, ids in finished]
        # Then what did not end, with the likeliest first.
        assert ended[row, :40].all() and not ended[row, 40:].any()
        unfinished = [
            (sum(table[words[:i]][word] for i, word in enumerate(words)), list(words))
            for words in itertools.product(WORDS, repeat=LONGEST)
        ]
        best = sorted(unfinished, reverse=True)[:10]
        assert beams[row, 40:50].tolist() == [ids for _, ids in best]


def numpy_beam(table, beams: int, alpha: float) -> list[list[int]]:
    """Beam search as plainly as possible."""
    alive: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    done: list[tuple[float, tuple[int, ...]]] = []
    for position in range(LONGEST):
        candidates = sorted(
            (
                (score + table[ids][token], (*ids, token))
                for score, ids in alive
                for token in (*WORDS, EOS)
            ),
            reverse=True,
        )[: 2 * beams]
        ended = [c for c in candidates[:beams] if c[1][-1] == EOS]
        done += [(score / penalty(position + 1, alpha), ids) for score, ids in ended]
        done = sorted(done, reverse=True)[:beams]
        alive = [c for c in candidates if c[1][-1] != EOS][:beams]
        if len(done) == beams:
            break
    return [padded(ids) for _, ids in [*done, *alive][:beams]]


@pytest.mark.parametrize(("beams", "alpha"), [(2, 0.6), (3, 0.0), (4, 1.0)])
def test_a_narrow_beam(small_model, beams, alpha):
    """All hypotheses of 16 sentences, in one batch, which end at different times."""
    source = sources(SMALL, 16, 5, seed=2)
    search = search_graph(small_model, LONGEST, beam_size=beams, length_penalty=alpha)
    result, scores, _, ended = (x.numpy() for x in search(source))
    for row in range(len(source)):
        expected = numpy_beam(prefix_table(small_model, source[row]), beams, alpha)
        assert result[row].tolist() == expected, row
        assert (np.diff(scores[row][ended[row]]) <= 0).all()
        assert (np.diff(ended[row].astype(int)) <= 0).all()


def test_a_batch_of_a_static_shape(small_model):
    """As a SavedModel for one shape would have it."""
    source = tf.constant(sources(SMALL, 3, 4))
    static = search_graph(small_model, LONGEST, (3, 4), beam_size=2)(source)
    dynamic = search_graph(small_model, LONGEST, beam_size=2)(source)
    np.testing.assert_array_equal(static.tokens, dynamic.tokens)


def sentences(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 30, rng.integers(1, longest)).tolist() for _ in range(count)]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_translations_do_not_depend_on_the_batch(model, beam_size):
    """One at a time, or together with others, longer and shorter ones: all the same."""
    lines = sentences(8, 30)
    config = DecodeConfig(batch_tokens=256, max_length_ratio=0.1, length_penalty=3.0)
    decoder = Decoder(model, search_options(config, beam_size))
    together = decoder.translate(lines)
    assert together == [decoder.translate([line])[0] for line in lines]
    assert together == decoder.translate(lines[::-1])[::-1]
    assert len({tuple(ids) for ids in together}) > 2
    assert not np.isin(np.concatenate(together), (*NEVER, EOS)).any()


def test_decoder_is_greedy_search_in_order(model):
    """Empty sentences stay empty."""
    lines = sentences(6, 15)
    lines[2:2] = [[]]
    lines.append([])
    config = DecodeConfig(batch_tokens=32, max_length_ratio=0.2, min_length=0)
    result = Decoder(model, search_options(config, 1)).translate(lines)
    source = np.zeros([len(lines), 16], np.int32)
    for row, line in zip(source, lines, strict=True):
        row[: len(line) + 1] = [*line, EOS]
    options = search_options(config)
    expected = naive_greedy(model, source, options.longest(16)).tolist()
    for line, ids, tokens in zip(lines, result, expected, strict=True):
        tokens = tokens[: options.longest(len(line) + 1)]
        wanted = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
        assert ids == (wanted if line else [])


def test_decoding_follows_the_weights(model, monkeypatch):
    """Of a training on virtual CPU devices beside a GPU, whose compiler it does not use either."""
    for place, there in (("CPU:1", True), ("GPU:0", True), ("TPU:0", False)):
        device = f"/job:worker/replica:0/task:0/device:{place}"
        placed = SimpleNamespace(
            trainable_variables=[SimpleNamespace(value=SimpleNamespace(device=device))]
        )
        assert devices.decoding_device(placed) == (device if there else None)
        assert devices.decoding_devices(placed) == [device if there else "/device:CPU:0"]
    compiled = {}
    for place in ("CPU:0", "GPU:0"):
        monkeypatch.setattr(search, "decoding_devices", lambda model, place=place: [place])
        compiled[place] = Decoder(model, SearchOptions())._static
    assert compiled == {"CPU:0": False, "GPU:0": True}


@pytest.mark.parametrize("jit_compile", [False, True])
def test_decoding_on_several_devices(make_model, two_replicas, jit_compile):
    """Each takes a batch; the translations are those of one device."""
    lines, done = sentences(40, 14, seed=3), []
    options = SearchOptions(beam_size=3, batch_tokens=128, max_length_ratio=0.5)
    model = make_model()
    expected = Decoder(model, options, jit_compile=jit_compile).search(lines)
    assert len({len(best.ids) for best, *_ in expected}) > 2
    with two_replicas.scope():
        mirrored = make_model()
    decoder = Decoder(mirrored, options, jit_compile=jit_compile)
    assert [device[-5:] for device in decoder._devices] == ["CPU:0", "CPU:1"]
    assert decoder.search(lines, between=done.append) == expected
    assert sum(done) == 40 and len(done) > 4


def test_each_device_reads_its_own_copy(make_model, two_replicas):
    """And computes where it is."""
    with two_replicas.scope():
        model = make_model()
    first = model.trainable_variables[0]
    for number, copy in enumerate(first.value.values):
        copy.assign(tf.fill(copy.shape, float(number)))
    decoder = Decoder(model, SearchOptions(beam_size=2))
    for number, device in enumerate(decoder._devices):
        weights = devices.weights_on(device, decoder._variables)
        assert {one.device for one in weights} == {device}
        assert np.unique(weights[0]) == [number]
        with tf.device(device):
            state = decoder._trace()[0](weights, *map(tf.constant, ([[5, 3]], [4], [[0] * 4])))
        assert {part.device for part in tf.nest.flatten(state)} == {device}


def test_decoding_sees_new_weights(make_model):
    """Training changes them between two evaluations."""
    model, other, lines = make_model(), make_model(seed=7), sentences(6, 12)
    decoder = Decoder(model, SearchOptions(beam_size=2))
    before = decoder.search(lines)
    for variable, value in zip(model.weights, other.weights, strict=True):
        variable.assign(value)
    after = decoder.search(lines)
    assert after == Decoder(other, SearchOptions(beam_size=2)).search(lines) != before


def test_an_error_between_batches_ends_decoding(make_model, two_replicas):
    """On all devices, without waiting for the batches that are left."""
    with two_replicas.scope():
        decoder = Decoder(make_model(), SearchOptions(beam_size=2, batch_tokens=32))
    searched = []
    search = decoder._search_batch
    decoder._search_batch = lambda batch, weights: searched.append(1) or search(batch, weights)

    def stop(count):
        raise InterruptedError("stop")

    with pytest.raises(InterruptedError, match="stop"):
        decoder.search(sentences(60, 14), between=stop)
    assert 1 <= len(searched) < 10 < len(list(decoder._batches(sentences(60, 14), None)))


def test_nothing_to_translate(model):
    decoder = Decoder(model, SearchOptions(beam_size=1))
    assert decoder.translate([]) == [] and decoder.translate([[], []]) == [[], []]


def test_an_over_long_source_is_cut(model):
    """At 1,023 tokens and the end token."""
    line = np.random.default_rng(0).integers(4, 30, 1500).tolist()
    options = SearchOptions(beam_size=1, max_length_ratio=0.001, max_length_offset=10)
    long, cut = Decoder(model, options).translate([line, line[:1023]])
    assert long == cut and 0 < len(long) <= 11


@pytest.mark.parametrize(
    ("length", "ratio", "offset", "longest"), [(16, 1.5, 10, 34), (9, 1.2, 0, 10), (3, 0.1, 0, 1)]
)
def test_longest_translation(length, ratio, offset, longest):
    """max = a * source + b, and at least the end token."""
    options = SearchOptions(max_length_ratio=ratio, max_length_offset=offset)
    assert options.longest(length) == longest


def test_the_length_limit_is_the_sentence_s_own(model):
    """Not that of the longer ones it shares a batch with; what is cut there says so."""
    lines = sentences(20, 14, seed=5)
    options = SearchOptions(beam_size=2, min_length=3, max_length_ratio=0.3, max_length_offset=1)
    found = Decoder(model, options).search(lines)
    cut = [hypotheses[0] for hypotheses in found if not hypotheses[0].ended]
    assert 3 < len(cut) < 20 and len({len(one.ids) for one in cut}) > 2
    for line, (best, *_) in zip(lines, found, strict=True):
        longest = int(0.3 * (len(line) + 1)) + 1
        assert len(best.ids) + best.ended <= longest
        assert best.ended or len(best.ids) == longest


def test_compiled_decoding_is_the_same(model):
    """With XLA, whose batches are filled up with empty rows."""
    lines = sentences(3, 15)
    config = DecodeConfig(batch_tokens=32, max_length_ratio=0.1, length_penalty=3.0)
    plain, jit = (
        Decoder(model, search_options(config, 2), jit_compile=jit_compile).translate(lines)
        for jit_compile in (False, True)
    )
    assert jit == plain and any(plain)
