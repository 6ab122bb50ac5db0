"""The built-in corpus: reproducible, disjoint splits, one right translation a sentence."""

import collections
import datetime
import itertools
import os
import pathlib
import subprocess
import sys

import pytest

from common.errors import UsageError
from data_pipeline.builtin import corpus as builtin_corpus
from data_pipeline.builtin import frames as builtin_frames
from data_pipeline.builtin.corpus import (
    Frame,
    Generator,
    generate,
    generate_labelled,
    generate_paragraphs,
)
from data_pipeline.builtin.phrases import Dice, Forms, Side, distinct, long_date
from data_pipeline.builtin.words import noun_phrase, sentence_slots, territory_forms

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def sample() -> list[tuple[str, str]]:
    return list(generate("train", 20_000, seed=3))


def translate(english: str, german: str, **said: tuple) -> tuple[str, str]:
    """Fills a frame with given things instead of drawn ones."""
    slots = {gap: lambda dice, it=it: it for gap, it in said.items()}
    frame = Frame.of(english, german, slots, "fact")
    return frame.fill(Dice("any"))


def test_another_process_generates_the_same_bytes():
    code = (
        "from data_pipeline.builtin.corpus import generate; import sys;"
        "sys.stdout.buffer.write(repr(list(generate('valid', 300, seed=5))).encode())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=dict(os.environ, PYTHONHASHSEED=hash_seed),
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0] == repr(list(generate("valid", 300, seed=5))).encode()


def test_a_larger_size_begins_with_the_smaller_one():
    assert list(generate("train", 200)) == list(itertools.islice(generate("train", 3000), 200))


def test_seeds_differ():
    assert list(generate("train", 50, seed=1)) != list(generate("train", 50, seed=2))


def test_splits_are_disjoint_by_source_whatever_the_seed():
    sizes = {"train": 5000, "valid": 500, "test": 500}
    sources = {split: set() for split in sizes}
    for seed, (split, size) in itertools.product((1, 9), sizes.items()):
        pairs = list(generate(split, size, seed))
        assert len(pairs) == size
        assert len({source for source, _ in pairs}) == size
        sources[split] |= {source for source, _ in pairs}
    for one, other in itertools.combinations(sources.values(), 2):
        assert not one & other


@pytest.mark.parametrize(
    ("source_locale", "target_locale", "size"),
    [("en", "de", 15_000), ("de", "en", 15_000), ("en", "fr", 3000), ("fr", "pt", 3000)],
)
def test_the_target_is_a_function_of_the_source(source_locale, target_locale, size):
    targets: dict[str, str] = {}
    for seed in (1, 2):
        for source, target in generate("train", size, seed, source_locale, target_locale):
            assert targets.setdefault(source, target) == target
    assert len(targets) < 2 * size, "no source came twice: this test saw nothing"


def test_no_two_frames_share_a_side():
    combined, alone = builtin_frames.sentence_frames()
    assert len(combined) > 1000
    frames = {frame[:2] for frame in combined + alone}
    assert len({english for english, _ in frames}) == len(frames)
    assert len({german for _, german in frames}) == len(frames)


def test_every_frame_can_be_filled():
    generator, dice = Generator("en", "de"), Dice("every frame")
    for frame in itertools.chain(*generator.groups, generator.phrases):
        for text in frame.fill(dice):
            assert text and not set("{}[]=|") & set(text)


def test_text_is_clean(sample):
    for text in itertools.chain(*sample):
        assert text and text == " ".join(text.split())  # single plain spaces, no line breaks
        assert not set("\u00a0\u202f\u2009\u200e") & set(text)
        assert ".." not in text and " ." not in text and " ," not in text and ",," not in text


def test_sentences_begin_with_a_capital_and_end_alike(sample):
    sentences = [pair for pair in sample if pair[0][-1] in ".?!"]
    assert len(sentences) > len(sample) / 2
    for source, target in sentences:
        assert source[0] == source[0].upper() and target[0] == target[0].upper()
        assert source[-1] == target[-1]


def test_sentences_are_short_and_words_are_many(sample):
    for side in (0, 1):
        lengths = [len(pair[side].split()) for pair in sample]
        assert 6 < sum(lengths) / len(lengths) < 12
        assert max(lengths) <= 30
        assert len({word for pair in sample for word in pair[side].split()}) > 2000


def test_known_translations():
    slots = sentence_slots(Side.of("en"), Side.of("de"))
    said = {slots["cardinal"](dice) for dice in [Dice("numbers")] for _ in range(20_000)}
    assert ("three hundred and twenty-one", "dreihunderteinundzwanzig") in said
    assert ("seventeen", "siebzehn") in said
    day = datetime.date(2025, 3, 3)
    assert [long_date(Side.of(name).locale, day) for name in ("en", "de")] == [
        "March 3, 2025",
        "3. März 2025",
    ]
    said = {slots["sum"](dice) for dice in [Dice("sums")] for _ in range(20_000)}
    assert ("1,200 euros", "1.200 Euro") in said
    assert ("50 Swedish kronor", "50 schwedische Kronen") in said
    said = {slots["time"](dice) for dice in [Dice("times")] for _ in range(10_000)}
    assert {("3:45 PM", "15:45"), ("12:00 AM", "00:00"), ("9:05 AM", "09:05")} <= said


def test_prices_swap_point_and_comma(sample):
    pairs = [pair for pair in sample if pair[0].startswith("€") and "," in pair[0]]
    assert pairs
    for source, target in pairs:
        assert target == source[1:].translate(str.maketrans(",.", ".,")) + " €"


def test_full_dates_take_an_article_in_german_sentences():
    assert translate(
        "Today is {fulldate}.",
        "heute ist {fulldate:nom}.",
        fulldate=("Monday, March 3, 2025", Forms({"nom": "Montag, der 3. März 2025"})),
    ) == ("Today is Monday, March 3, 2025.", "Heute ist Montag, der 3. März 2025.")
    fulldate = sentence_slots(Side.of("en"), Side.of("de"))["fulldate"](Dice("a day"))[1]
    weekday, rest = f"{fulldate:}".split(", ")
    assert f"{fulldate:dat}" == f"{weekday}, dem {rest}"


@pytest.mark.parametrize(
    ("determiner", "noun", "adjective", "english", "forms"),
    [
        ("the", ("coat", "Mantel", "m"), (), "the coat", "der Mantel, den Mantel, dem Mantel"),
        (
            "a",
            ("coat", "Mantel", "m"),
            ("old", "alt"),
            "an old coat",
            "ein alter Mantel, einen alten Mantel, einem alten Mantel",
        ),
        (
            "this",
            ("car", "Auto", "n"),
            ("red", "rot"),
            "this red car",
            "dieses rote Auto, dieses rote Auto, diesem roten Auto",
        ),
        (
            "her",
            ("invoice", "Rechnung", "f"),
            ("new", "neu"),
            "her new invoice",
            "ihre neue Rechnung, ihre neue Rechnung, ihrer neuen Rechnung",
        ),
        (
            "our",
            ("neighbor", "Nachbar/Nachbarn", "m"),
            (),
            "our neighbor",
            "unser Nachbar, unseren Nachbarn, unserem Nachbarn",
        ),
        ("a", ("email", "E-Mail", "f"), (), "an email", "eine E-Mail, eine E-Mail, einer E-Mail"),
    ],
)
def test_noun_phrases_agree(determiner, noun, adjective, english, forms):
    said = noun_phrase(determiner, noun, adjective)
    assert said[0] == english
    assert ", ".join(said[1][case] for case in ("", "acc", "dat")) == forms


def test_territories_with_an_article():
    english, german = territory_forms("CH", "Switzerland", "Schweiz")
    assert english == "Switzerland"
    assert (f"{german:in}", f"{german:to}") == ("in der Schweiz", "in die Schweiz")
    english, german = territory_forms("US", "United States", "Vereinigte Staaten")
    assert english == "the United States"
    assert (f"{german:to}", f"{german:from}") == (
        "in die Vereinigten Staaten",
        "aus den Vereinigten Staaten",
    )
    _, german = territory_forms("IR", "Iran", "Iran")
    assert (f"{german:in}", f"{german:from}") == ("im Iran", "aus dem Iran")
    _, german = territory_forms("FR", "France", "Frankreich")
    assert (f"{german:in}", f"{german:to}") == ("in Frankreich", "nach Frankreich")


def test_german_word_order(sample):
    frames = {
        english: german for english, german, _ in itertools.chain(*builtin_frames.sentence_frames())
    }
    call = frames["Please call {person} {future}."]
    assert call == "Bitte rufen Sie {future} {person:acc} an."
    because = frames["I think that {who} bought {good} {past}."]
    assert because == "Ich glaube, dass {who} {past} {good:acc} gekauft {who:hat}."
    assert frames["{who} forgot to call {person}."].endswith("{person:acc} anzurufen.")
    assert any(target.endswith("gekauft hat.") for _, target in sample)


def test_an_abbreviation_at_the_end_keeps_one_full_stop():
    pair = translate("it ends at {time}.", "sie endet um {time}.", time=("3:45 p.m.", "15:45"))
    assert pair == ("It ends at 3:45 p.m.", "Sie endet um 15:45.")


def test_german_to_english_swaps_the_sides():
    pairs = list(generate("train", 300, source_locale="de", target_locale="en"))
    assert any(" weil " in source and " because " in target for source, target in pairs)


@pytest.mark.parametrize(
    ("source_locale", "target_locale"), [("en", "fr"), ("en", "ja"), ("pt-BR", "nb"), ("ar", "ru")]
)
def test_other_locales_give_phrases(source_locale, target_locale):
    pairs = list(generate("test", 100, 1, source_locale, target_locale))
    assert len({source for source, _ in pairs}) == 100
    assert all(source and target for source, target in pairs)


def test_phrases_in_french():
    pairs = dict(generate("train", 3000, 1, "en", "fr"))
    assert pairs["Germany"] == "Allemagne"
    assert all("\u202f" not in target for target in pairs.values())


def test_distinct_drops_a_name_that_two_things_share():
    names = {1: ("yen", "Yen"), 2: ("yuan", "Yuan"), 3: ("yen", "Neuer Yen"), 4: ("", "nichts")}
    assert distinct(names, lambda k: names[k][0], lambda k: names[k][1]) == [1, 2]


@pytest.mark.parametrize("split", ["dev", "", "Train"])
def test_unknown_split(split):
    with pytest.raises(UsageError, match="train, valid or test"):
        generate(split, 10)


@pytest.mark.parametrize("name", ["xx", "fil", "zh", "not a locale", ""])
def test_unknown_locale_is_told_at_once_and_in_one_line(name):
    with pytest.raises(UsageError, match="use ") as caught:
        generate("train", 10, target_locale=name)
    assert "\n" not in str(caught.value)


def test_a_language_that_num2words_does_not_finish():
    with pytest.raises(
        UsageError, match=r"num2words has no .* number .* for 'ca'; use another lan"
    ):
        list(generate("train", 150, 1, "en", "ca"))


@pytest.mark.parametrize(
    ("split", "size"), [("train", -1), ("train", 1_000_001), ("valid", 50_001), ("test", 10**9)]
)
def test_impossible_sizes(split, size):
    with pytest.raises(UsageError, match="ask for"):
        generate(split, size)


def test_size_zero():
    assert list(generate("test", 0)) == []


def test_an_exhausted_corpus_ends_with_an_error(monkeypatch):
    monkeypatch.setattr(builtin_corpus, "PHRASES", ["territory"])
    monkeypatch.setattr(builtin_corpus, "PATIENCE", 5000)
    pairs = generate("train", 500, 1, "en", "fr")
    found = list(itertools.islice(pairs, 40))
    assert ("Spain", "Espagne") in found
    with pytest.raises(UsageError, match="different pairs found for train, not 500"):
        list(pairs)


def test_everyday_sentences_are_in_training(sample):
    """What the demo invites to translate, and the like; none of them is held out."""
    pairs = dict(sample)
    assert pairs["Today is Monday."] == "Heute ist Montag."
    assert pairs["Tomorrow is Friday."] == "Morgen ist Freitag."
    assert pairs["My name is Max."] == "Ich heiße Max."
    assert pairs["Where is the station?"] == "Wo ist der Bahnhof?"


def test_kinds_of_statements():
    pairs = dict(generate_labelled("train", 4000))
    kinds = collections.Counter(pairs.values())
    assert sorted(kinds) == ["fact", "phrase", "plan", "question", "report", "request"]
    assert min(kinds.values()) > 150
    for text, kind in pairs.items():
        assert (kind == "question") == (text[-1] == "?" and not text.startswith("Could you "))
        if text.startswith(("Please ", "Let's ", "Could you ")):
            assert kind == "request"
        if " will " in text and text[-1] == "." and not text.startswith("If "):
            assert kind == "plan"
    assert list(pairs) == [source for source, _ in generate("train", 4000)]
    german = dict(generate_labelled("valid", 200, locale="de"))
    assert set(german.values()) == set(kinds) and any("ä" in text for text in german)


def test_paragraphs_are_the_sentences_in_order():
    sentences = [source for source, _ in generate("valid", 95)]
    paragraphs = [text for (text,) in generate_paragraphs("valid", 95)]
    assert len(paragraphs) == 10
    assert " ".join(paragraphs).replace("\v", " ") == " ".join(sentences)
