"""Scores of detokenised text, and translations in the order of the lines."""

import pytest

from configs.schema import DecodeConfig
from data_pipeline.dataset.examples import load_tokenizers, read_raw_text
from trainer.decoding.options import search_options
from trainer.decoding.scoring import bleu_tokenizer, score, score_split, translate_lines
from trainer.decoding.search import Decoder, Hypothesis

LINES = ["A man sees the red house.", "The old dog sleeps in the garden, as always."]


def test_perfect_and_hopeless_translations():
    perfect, hopeless = score(LINES, LINES), score(["xyz", "qqq"], LINES)
    assert (perfect["bleu"], perfect["chrf"]) == (100.0, 100.0)
    assert hopeless["bleu"] < 1 and hopeless["chrf"] < 5
    assert "case:mixed" in perfect["signature"] and "tok:13a" in perfect["signature"]


def test_bleu_by_hand():
    """5 of 6, 3 of 5, 2 of 4 and 1 of 3 n-grams right, with no brevity penalty."""
    result = score(["the cat sat on the rug"], ["the cat sat in the rug"])
    expected = 100 * (5 / 6 * 3 / 5 * 1 / 4 * (1 / 2) / 3) ** 0.25
    assert result["bleu"] == pytest.approx(expected, abs=0.01)


@pytest.fixture(scope="module")
def decoder(make_model):
    model = make_model(vocab=280, scale=2.0)
    return Decoder(model, search_options(DecodeConfig(max_length_ratio=0.1), 1))


def test_lines_keep_their_order(manifest, decoder):
    tokenizers = tuple(load_tokenizers(manifest).values())
    lines = ["red dog", "", "man sees cat", "Hund"]
    result = translate_lines(lines, tokenizers, decoder)
    assert len(result) == 4 and result[1].text == "" and result[0].text
    for line, translation in zip(lines, result, strict=True):
        assert translate_lines([line], tokenizers, decoder)[0].text == translation.text


def test_score_split(manifest, decoder):
    """The raw text is scored, all of it or the first lines."""
    tokenizers = tuple(load_tokenizers(manifest).values())
    sources, references = read_raw_text(manifest, "valid").values()
    _, rows = score_split(manifest, "valid", tokenizers, decoder)
    assert [row[:2] for row in rows] == list(zip(sources, references, strict=True))
    result, first = score_split(manifest, "valid", tokenizers, decoder, limit=3)
    assert first == rows[:3]
    expected = score([row[2] for row in first], references[:3])
    assert result == {**expected, "cut_translations": result["cut_translations"]}
    assert 0 <= result["cut_translations"] <= 3


def test_source_and_target_have_their_own_vocabulary(manifest_of_two):
    """Lines are encoded by the one and decoded by the other."""
    source, target = load_tokenizers(manifest_of_two).values()
    assert (source.vocab_size, target.vocab_size) == (288, 281)
    assert source.encode(["red dog"]) != target.encode(["red dog"])
    seen = []

    class Fake:
        def search(self, sentences, prefixes=None, between=None):
            seen.extend(sentences)
            return [[Hypothesis(target.encode(["alte Katze"])[0], -1.0, -2.0, True)]]

    (translated,) = translate_lines(["red dog"], (source, target), Fake())
    assert translated.text == "alte Katze" and not translated.cut
    assert seen == source.encode(["red dog"])


def test_a_line_feed_in_a_translation_makes_no_second_line(manifest):
    """Single bytes are pieces, so a model can spell any character."""
    tokenizer, _ = tuple(load_tokenizers(manifest).values())
    (red, dog) = tokenizer.encode(["red", "dog"])
    line_feed = next(i for i in range(tokenizer.vocab_size) if tokenizer.decode([[i]]) == ["\n"])

    class SpellsLineFeeds:
        def search(self, sentences, prefixes=None, between=None):
            ids = [*red, line_feed, line_feed, *dog]
            return [[Hypothesis(ids, -1.0, -2.0, True)] for _ in sentences]

    translated = translate_lines(["a", "b"], (tokenizer, tokenizer), SpellsLineFeeds())
    assert [one.text for one in translated] == ["red dog", "red dog"]


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [("de", "13a"), ("zh", "zh"), ("zh_TW", "zh"), ("yue", "zh"), ("th", "char"), ("km", "char")],
)
def test_the_tokenizer_of_the_target_language(language, tokenizer):
    assert bleu_tokenizer(language) == tokenizer


def test_a_missing_tokenizer_is_replaced_with_a_warning(monkeypatch, capsys):
    """Japanese without MeCab is scored in characters, which still tells translations apart."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert bleu_tokenizer("ja") == "char"
    (line,) = capsys.readouterr().err.splitlines()
    assert "ja-mecab" in line and "[mecab]" in line


def test_chinese_is_scored_in_its_own_words():
    """13a takes a sentence without spaces for a single word and gives 0."""
    translation = "\u4eca\u5929\u662f\u661f\u671f\u4e00\u3002"
    reference = "\u4eca\u5929\u662f\u661f\u671f\u4e94\u3002"
    assert score([translation], [reference])["bleu"] == 0.0
    chinese = score([translation], [reference], "zh")
    # 6 of 7 characters, 4 of 6 pairs, 3 of 5 triples and 2 of 4 quadruples are right.
    expected = 100 * (6 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25
    assert chinese["bleu"] == pytest.approx(expected, abs=0.01)
    assert "tok:zh" in chinese["signature"]
