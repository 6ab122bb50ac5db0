import io
import math
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sentencepiece

from common.errors import UsageError
from data_pipeline.dataset import tokenizer
from data_pipeline.dataset.normalization import normalize_text
from data_pipeline.dataset.tokenizer import Tokenizer, check_model, load_tokenizer

VOCAB_SIZE = 305
UNIGRAM_SIZE = 320


@pytest.fixture(scope="module")
def texts(sentences) -> list[str]:
    """Both sides of 300 pairs."""
    return [side for pair in sentences(300) for side in pair]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def trained(request, texts) -> Tokenizer:
    """A tokenizer of each kind."""
    return Tokenizer(tokenizer.train(texts, VOCAB_SIZE, request.param))


HARD_TEXTS = [
    "",
    "the dog sees the old house.",
    "  the \u00a0 dog\u2028sees\tit ",
    "Grüße: Ångström, naïve, Αθήνα, Москва",
    "e\u0301 A\u030a ﬁ Ⅳ ①",
    "日本語のテキスト 한국어 العربية עברית ไทย",
    "👩‍👩‍👧 🇩🇪 😀 \U0001f9d1\U0001f3fd",
    "<s> </s> <unk> <pad> <0x41> ▁ a▁b",
    "a\x00b \u200b \ufeff \ufffd",
    "1,234.56 € \u2013 „so“ “so” …",
]


@pytest.mark.parametrize("raw", HARD_TEXTS)
def test_decode_inverts_encode(trained, raw):
    assert trained.decode(trained.encode([raw])) == [normalize_text(raw)]


def test_decode_inverts_encode_for_random_unicode(trained):
    rng = random.Random(3)
    points = [c for c in range(1, 0x11000) if not 0xD800 <= c < 0xE000]
    raw = ["".join(map(chr, rng.choices(points, k=20))) for _ in range(500)]
    assert trained.decode(trained.encode(raw)) == [normalize_text(each) for each in raw]


def test_ids_have_no_specials_and_rare_characters_are_bytes(trained):
    assert trained.vocab_size == VOCAB_SIZE
    (ids,) = trained.encode(["the dog sees 😀 <s> </s>"])
    assert min(ids) > 3
    mask = trained.byte_mask()
    assert mask.shape == (VOCAB_SIZE,) and mask.sum() == 256
    in_bytes = [piece for piece, byte in zip(trained.pieces(ids), mask[ids], strict=True) if byte]
    assert in_bytes[:4] == ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    assert trained.pieces([0, 1, 2, 3]) == ["<pad>", "<unk>", "<s>", "</s>"]


def test_decode_takes_arrays_and_skips_specials(trained):
    (ids,) = trained.encode(["the dog"])
    assert trained.decode([np.array([2, *ids, 3, 0, 0], np.int32)]) == ["the dog"]


def test_encode_normalized_takes_the_text_as_it_is(trained):
    """It is what `encode` does last, and composes nothing."""
    clean = [normalize_text(text) for text in HARD_TEXTS]
    assert trained.encode_normalized(clean) == trained.encode(HARD_TEXTS)
    assert trained.decode(trained.encode_normalized(["e\u0301"])) == ["e\u0301"]


def test_training_is_deterministic(texts):
    assert tokenizer.train(texts, VOCAB_SIZE) == tokenizer.train(iter(texts), VOCAB_SIZE)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_vocabulary_too_large_tells_the_largest(texts, model_type):
    with pytest.raises(
        UsageError, match=r"--vocab_size=9000 .* largest possible is (\d+)"
    ) as caught:
        tokenizer.train(texts[:100], 9000, model_type)
    largest = int(str(caught.value).rsplit(" ", 1)[1])
    assert VOCAB_SIZE < largest < 9000
    assert Tokenizer(tokenizer.train(texts[:100], largest, model_type)).vocab_size == largest


def test_vocabulary_too_small_tells_the_least(texts):
    with pytest.raises(UsageError, match=r"--vocab_size=265 is less than the \d+ that single"):
        tokenizer.train(texts[:100], 265)


def test_load_tokenizer(texts, tmp_path):
    path = tmp_path / "tokenizer.model"
    with pytest.raises(UsageError, match=r"tokenizer\.model: no such file"):
        load_tokenizer(str(path))
    model = tokenizer.train(texts, VOCAB_SIZE)
    path.write_bytes(model)
    assert load_tokenizer(str(path)).sha256 == Tokenizer(model).sha256
    for damaged in (b"", b"junk", model[: len(model) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="not a SentencePiece model"):
            load_tokenizer(str(path))


_SYLLABLES = ("ba", "ko", "ri", "tu", "mel", "son")
SYMBOLS = ("<2de>", "@x,y")


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_user_symbols_are_never_split(texts, model_type):
    """The first free ids are theirs, and they are found inside words too."""
    made = Tokenizer(tokenizer.train(texts, VOCAB_SIZE, model_type, user_symbols=SYMBOLS))
    assert made.pieces([4, 5, 6]) == [*SYMBOLS, "<0x00>"] and made.vocab_size == VOCAB_SIZE
    assert made.symbols == SYMBOLS
    text = "<2de> the dog<2de>s @x,y,@x,y <2d e>"
    (ids,) = made.encode([text])
    assert [i for i in ids if i in (4, 5)] == [4, 4, 5, 5]
    assert made.decode([ids]) == [text]


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        ([""], "'' is empty"),
        (["a b"], "'a b' is empty, or has spaces"),
        (["e\u0301"], "normalisation changes"),
        (["\u2581x"], "normalisation changes"),
        (["<2de>", "</s>"], "'</s>' is one of the tokenizer's own"),
        (["<0xAf>"], "'<0xAf>' is one of the tokenizer's own"),
        (["<x>", "<y>", "<x>"], "'<x>' is there twice"),
    ],
)
def test_bad_user_symbols(texts, symbols, message):
    with pytest.raises(UsageError, match=rf"^--user_symbols: .*{message}"):
        tokenizer.train(texts, VOCAB_SIZE, user_symbols=symbols)


def test_too_many_user_symbols(texts):
    with pytest.raises(UsageError, match=r"--vocab_size=305 is less than the \d+ that .* symbols"):
        tokenizer.train(texts, VOCAB_SIZE, user_symbols=[f"@{i}" for i in range(60)])


def test_without_byte_fallback_unknown_characters_are_lost(texts):
    made = Tokenizer(tokenizer.train(texts, 60, byte_fallback=False))
    assert not made.byte_mask().any() and made.vocab_size == 60
    (ids,) = made.encode(["the \U0001f600 dog"])
    assert ids.count(tokenizer.UNK_ID) == 1
    assert made.decode([ids]) == ["the  \u2047  dog"]
    assert made.decode(made.encode(["the dog"])) == ["the dog"]


def segmentations(pieces: dict[str, int], text: str) -> list[tuple[int, ...]]:
    """All ways to write a text in pieces."""
    if not text:
        return [()]
    return [
        (pieces[text[:end]], *rest)
        for end in range(1, len(text) + 1)
        if text[:end] in pieces
        for rest in segmentations(pieces, text[end:])
    ]


@pytest.fixture(scope="module")
def syllables() -> list[str]:
    """200 texts of words that can be taken apart: koba, batuko, ritu ..."""
    dice = random.Random(1)
    lexicon = ["".join(dice.choices(_SYLLABLES, k=2 + i % 3)) for i in range(60)]
    return [" ".join(dice.choices(lexicon, k=8)) for _ in range(200)]


@pytest.fixture(scope="module")
def unigram(syllables) -> bytes:
    return tokenizer.train(syllables, UNIGRAM_SIZE)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_samples_have_the_distribution_of_the_paper(unigram, alpha):
    """P(x) ** alpha, over all segmentations of a text, found one by one."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=unigram)
    pieces = {processor.id_to_piece(i): i for i in range(260, UNIGRAM_SIZE)}
    ways = segmentations(pieces, "\u2581melmeltu\u2581melmelson\u2581kotuson")
    assert 8 <= len(ways) <= 64
    scores = [sum(processor.get_score(i) for i in way) for way in ways]
    total = sum(math.exp(alpha * score) for score in scores)
    count = 20_000
    ((*samples,),) = Tokenizer(unigram).sample(["melmeltu melmelson kotuson"], count, alpha, seed=5)
    drawn = Counter(map(tuple, samples))
    assert set(drawn) <= set(ways)
    for way, score in zip(ways, scores, strict=True):
        share = math.exp(alpha * score) / total
        spread = math.sqrt(share * (1 - share) / count)
        assert drawn[way] / count == pytest.approx(share, abs=4 * spread)
    if alpha == 0:
        assert len(drawn) == len(ways)


def test_every_sample_decodes_to_its_text(unigram, syllables):
    made = Tokenizer(unigram)
    clean = [
        normalize_text(text) for text in [*HARD_TEXTS, *syllables[:40], " ".join(syllables[:30])]
    ]
    samples = made.sample(clean, 5, 0.1, seed=1)
    assert [len(rows) for rows in samples] == [5] * len(clean)
    for text, rows in zip(clean, samples, strict=True):
        assert made.decode(rows) == [text] * 5
    several = [len(set(map(tuple, rows))) > 1 for rows in samples]
    assert sum(several) > 0.6 * len(syllables[:40])
    # A large alpha finds the segmentation that `encode` takes.
    best = made.sample(syllables[:40], 1, 1e6, seed=1)
    assert [rows[0] for rows in best] == made.encode_normalized(syllables[:40])


def test_samples_depend_on_seed_text_and_number_alone(unigram, syllables):
    """Not on the order, the company, the thread, how many there are, or a generator's state."""
    made, some = Tokenizer(unigram), syllables
    samples = made.sample(some, 3, 0.2, seed=7)
    assert [len(rows) for rows in samples] == [3] * 200
    backwards = made.sample(some[::-1], 2, 0.2, seed=7)[::-1]
    assert [rows[:2] for rows in samples] == backwards
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda text: made.sample([text], 3, 0.2, seed=7)[0], some))
    assert samples == alone
    assert made.sample(some, 3, 0.2, seed=8) != samples


def test_draws_differ_between_texts_samples_and_seeds():
    """And are the same in every process, whatever Python's own hash is."""
    assert tokenizer._uniform(1, 0, "koba") == 0.16370478528551757
    draws = [
        tokenizer._uniform(seed, number, text)
        for seed in range(10)
        for number in range(10)
        for text in ("koba", "batu", "", "3 koba")
    ]
    assert len(set(draws)) == 400
    assert 0.45 < np.mean(draws) < 0.55 and 0 <= min(draws) < 0.02 and 0.98 < max(draws) < 1


def test_samples_keep_user_symbols_whole(syllables):
    made = Tokenizer(tokenizer.train(syllables, 310, user_symbols=("kob", "atu")))
    (samples,) = made.sample(["batu koba kobari melko sonri"], 300, 0.0, seed=1)
    assert len(set(map(tuple, samples))) > 5
    assert all((ids.count(4), ids.count(5)) == (2, 1) for ids in samples)


def test_only_unigram_models_can_be_sampled_from(texts):
    made = Tokenizer(tokenizer.train(texts, VOCAB_SIZE, "bpe"))
    with pytest.raises(UsageError, match=r"bpe model; use .*--model_type=unigram"):
        made.sample(["the dog"], 2, 0.1, seed=1)


def foreign_model(texts, **options) -> bytes:
    """A model as SentencePiece's own command makes it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        **{"vocab_size": 45, "hard_vocab_limit": False, "minloglevel": 2, **options},
    )
    return model.getvalue()


OUR_IDS = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}


def test_check_model_takes_what_has_our_ids(texts, tmp_path):
    path = tmp_path / "given.model"
    for model_type in ("unigram", "bpe"):
        path.write_bytes(foreign_model(texts, model_type=model_type, **OUR_IDS))
        made = check_model(str(path))
        assert (made.model_type, made.vocab_size) == (model_type, 45)
        assert made.decode(made.encode(["the dog"])) == ["the dog"]
    path.write_bytes(tokenizer.train(texts, VOCAB_SIZE, user_symbols=SYMBOLS))
    assert check_model(str(path)).vocab_size == VOCAB_SIZE


def test_check_model_says_how_to_train_one(texts, tmp_path):
    path = tmp_path / "given.model"
    options = r"spm_train .*--pad_id=0 --unk_id=1 --bos_id=2 --eos_id=3"
    with pytest.raises(UsageError, match=r"--tokenizer=.*given\.model: no such file"):
        check_model(str(path))
    with pytest.raises(UsageError, match="no such file"):
        check_model(str(tmp_path))
    path.write_bytes(b"junk")
    with pytest.raises(UsageError, match=r"given\.model: not a SentencePiece model"):
        check_model(str(path))
    path.write_bytes(foreign_model(texts))
    with pytest.raises(UsageError, match=rf"unk, bos and eos are -1, 0, 1, 2; .*{options}"):
        check_model(str(path))
    path.write_bytes(foreign_model(texts, model_type="word", **OUR_IDS))
    with pytest.raises(UsageError, match=rf"it is a word model; .*{options}"):
        check_model(str(path))
