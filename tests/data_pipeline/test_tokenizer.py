import random

import numpy as np
import pytest

from data_pipeline import tokenizer
from data_pipeline.cleaning import normalize_text
from data_pipeline.errors import UsageError
from data_pipeline.tokenizer import Tokenizer, load_tokenizer

VOCAB_SIZE = 305


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
