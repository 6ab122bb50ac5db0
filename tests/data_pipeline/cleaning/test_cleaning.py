# ruff: noqa: RUF001 (letters of many scripts)
import pickle
import unicodedata

import numpy as np
import pytest

from data_pipeline.builtin.corpus import generate
from data_pipeline.cleaning.cleaner import DEFAULT_FILTERS, FILTERS, Cleaner
from data_pipeline.cleaning.code_points import CodePointTable, Lines
from data_pipeline.cleaning.filters import CleaningRules
from data_pipeline.cleaning.folding import fold
from data_pipeline.cleaning.mojibake import find_mojibake, is_mojibake
from data_pipeline.cleaning.normalization import unescape_entities
from data_pipeline.dataset.normalization import normalize_text

NAMES = tuple(FILTERS)


def rules(source_lang="en", target_lang="de", filters=DEFAULT_FILTERS, **limits):
    limits = {"max_tokens": 250, "max_length_ratio": 9.0, **limits}
    return CleaningRules((source_lang, target_lang), filters=filters, **limits)


def reasons(source, target, held_out=frozenset(), **settings):
    """Returns the name of the filter that drops each pair, None for a kept one."""
    cleaned = Cleaner(rules(**settings), held_out).clean(source, target)
    assert cleaned.reason.dtype == np.int8
    return [None if index < 0 else NAMES[index] for index in cleaned.reason]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \t\r ", ""),
        ("a  b", "a b"),
        ("\ta\u00a0b\u2028c\u2029d\u0085e\x0bf\x0cg\u3000h ", "a b c d e f g h"),
        ("e\u0301", "é"),
        ("A\u030angstro\u0308m", "Ångström"),
        ("e\u200b\u0301", "é"),  # what is invisible goes before composition
        ("ﬁ Ⅳ ①", "ﬁ Ⅳ ①"),  # NFC, not NFKC: what looks different stays different
        ("a\u2581b", "a_b"),
        ("👩‍👩‍👧 日本", "👩‍👩‍👧 日本"),
        ("\x00a\x07\x7f\x9fb", "ab"),
        ("Ko\u00adry\u00adphäe \u200b\u200bund\u2060 \ufeffzu", "Koryphäe und zu"),
        ("\u200fשלום\u200e \u202babc\u202c", "שלום abc"),
        ("می\u200cخواهم क\u094d\u200dष", "می\u200cخواهم क\u094d\u200dष"),  # joiners are spelling
        ("AT&amp;T", "AT&amp;T"),  # entities are a matter of training data
    ],
)
def test_normalize_text(text, expected):
    assert normalize_text(text) == expected
    assert normalize_text(expected) == expected
    assert unicodedata.is_normalized("NFC", expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Q&amp;A &quot;x&quot; &#39;s&#x27; &apos;", "Q&A \"x\" 's' '"),
        ("don&amp;#39;t &amp;lt;b&amp;gt;", "don't <b>"),
        ("a&nbsp;b", "a\u00a0b"),
        ("AT&T R&D; &copy=1 &amp", "AT&T R&D; &copy=1 &amp"),
        ("&nonsense; &notit; & amp;", "&nonsense; &notit; & amp;"),
        ("&#146;", "\u2019"),
    ],
)
def test_entities(text, expected):
    assert unescape_entities(text) == expected


def test_changed_pairs_are_counted_once_and_steps_can_be_switched_off():
    source = ["a &amp; b", "\u200bclean", "e\u0301 x", "two  spaces", "plain"]
    target = ["a &amp; b", "text", "e\u0301 x", "one space", "plain"]
    cleaned = Cleaner(rules()).clean(source, target)
    assert cleaned.texts[0] == ["a & b", "clean", "é x", "two spaces", "plain"]
    assert cleaned.texts[1] == ["a & b", "text", "é x", "one space", "plain"]
    assert cleaned.changed == {
        "html_entities": 1,
        "control_characters": 1,
        "nfc": 1,
        "white_space": 1,
    }
    cleaned = Cleaner(rules(filters=())).clean(source, target)
    assert cleaned.texts[0] == ["a &amp; b", "\u200bclean", "é x", "two spaces", "plain"]
    assert cleaned.changed == {"nfc": 1, "white_space": 1}


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("A dog.", "Ein Hund.", None),
        ("", "Ein Hund.", "empty"),
        ("A dog.", "", "empty"),
        ("\u200b \ufeff", "Ein Hund.", "empty"),
        ("a" * 4000, "b" * 4000, None),
        ("a" * 4001, "b" * 4000, "too_many_characters"),
        ("b" * 4000, "a" * 4001, "too_many_characters"),
        ("a", "b" * 29, None),
        ("a", "b" * 30, "length_ratio"),
        ("b" * 30, "a", "length_ratio"),
        ("a" * 10, "b" * 110, None),
        ("a" * 10, "b" * 111, "length_ratio"),
        ("No.", "Das kommt überhaupt nicht in Frage.", None),
        ("Click here to continue", "Click here to continue", "identical"),
        ("Click here to continue", "Click here to continua", None),
        ("Red Hot Chili Peppe", "Red Hot Chili Peppe", None),  # 19 characters
        ("Johann Sebastian Bachs", "Johann Sebastian Bachs", None),  # three words
        ("a \ufffd b", "a b", "replacement_character"),
        ("It's 9:15.", "Es ist 9.15 Uhr.", None),
        ("March 28, 2018, 7:25 PM", "28. März 2018, 19:25", None),
        ("0.1 0.2 0.3 0.4 0.5 0.6 abc", "nulleins", "non_letters"),
        ("Привет, как дела?", "Hallo, wie geht es?", "wrong_script"),
        ("How are you?", "Как дела у вас?", "wrong_script"),
        ("The letter Щ is Russian", "Щ ist russisch", None),
        ("\u03c0", "\u03c0", None),  # fewer than three letters
        ("Γειά", "Hallo", "wrong_script"),
        ("For you", "FÃ¼r dich", "mojibake"),
    ],
)
def test_filters(source, target, reason):
    assert reasons([source], [target]) == [reason]
    # The same among other pairs, which are kept.
    good = "This is one thing"
    among = reasons([good, source, good], ["Das ist", target, "Das ist"])
    assert among == [None, reason, None]


def test_a_filter_that_is_off_does_nothing():
    dirty = [("", "x"), ("a" * 9000, "b"), ("1" * 30, "2" * 30), ("FÃ¼r", "\ufffd")]
    assert reasons(*map(list, zip(*dirty, strict=True)), filters=()) == [None] * 4
    for name in ("empty", "too_many_characters", "length_ratio", "non_letters", "mojibake"):
        found = reasons(*map(list, zip(*dirty, strict=True)), filters=(name, "duplicate"))
        assert set(found) == {None, name}


def test_the_first_filter_gives_the_reason():
    assert reasons(["", "\ufffdÃ¼"], ["a" * 5000, "x"]) == ["empty", "replacement_character"]


def test_character_limit_is_never_stricter_than_the_token_limit():
    # 16 characters are the longest piece, so this text may have exactly 2 tokens.
    assert reasons(["a" * 32], ["b" * 32], max_tokens=2) == [None]
    assert reasons(["a" * 33], ["b" * 32], max_tokens=2) == ["too_many_characters"]


def test_contaminated():
    held_out = frozenset(fold(["It's a Test!", "?!"]))
    found = reasons(
        ["its a TEST", "It was a test", "?!", "!?", "Its  a\u200b test…"],
        ["a", "b", "c", "d", "e"],
        held_out=held_out,
    )
    assert found == ["contaminated", None, "contaminated", None, "contaminated"]


def test_chunks_of_no_and_one_pair():
    cleaned = Cleaner(rules()).clean([], [])
    assert (cleaned.texts, cleaned.forms) == ([[], []], [[], []])
    assert len(cleaned.reason) == 0
    assert reasons(["a"], ["b"]) == [None]
    assert reasons([""], [""]) == ["empty"]


def test_newlines_are_refused():
    with pytest.raises(ValueError, match="newline"):
        Cleaner(rules()).clean(["a\nb"], ["c"])


def test_cleaner_can_be_pickled_with_filters_and_documentation():
    assert pickle.loads(pickle.dumps(rules())) == rules()
    assert all(text and "\n" not in text for text in FILTERS.values())
    assert set(DEFAULT_FILTERS) == set(FILTERS) - {"language"}


def test_the_built_in_corpus_loses_nothing():
    pairs = list(generate("train", 3000))
    source, target = map(list, zip(*pairs, strict=True))
    cleaned = Cleaner(rules()).clean(source, target)
    assert (cleaned.reason == -1).all()
    assert cleaned.changed == {
        "html_entities": 0,
        "control_characters": 0,
        "nfc": 0,
        "white_space": 0,
    }
    assert cleaned.texts[0] == source


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
@pytest.mark.parametrize(
    "text",
    [
        "Für Übermütige groß",
        "l’été à la française",
        "El niño comió mañana",
        "Zażółć gęślą jaźń",
        "Příliš žluťoučký kůň",
        "“quoted” – yes…",
        "100 €",
        "Привет, мир",
        "Γειά σου κόσμε",
        "שלום עולם",
        "مرحبا بالعالم",
        "नमस्ते दुनिया",
        "สวัสดีชาวโลก",
        "你好，世界",
        "こんにちは",
        "안녕하세요",
        "smile 😀",
        "lost \ufffd",
    ],
)
def test_mojibake_is_found(text, encoding):
    # Windows-1252 leaves five bytes undefined; decoders pass them through as controls.
    damaged = "".join(
        chr(byte) if encoding == "latin-1" or byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
        else bytes([byte]).decode(encoding)
        for byte in text.encode()
    )  # fmt: skip
    assert is_mojibake(damaged)
    assert not is_mojibake(text)
    if text != "lost \ufffd":
        assert reasons([damaged], ["Ein Text, der dazugehört"]) == ["mojibake"]


@pytest.mark.parametrize(
    "text",
    [
        "“IRMÃ” e «MAÇÃ»… AMANHÃ – NÃO",
        "CAFÉ” À «ÂGÉ» ÎLE… FORÊT—",
        "„JÄ“ … »SÄ« – Ö… SPASS ß“ groß” Spaß…",
        "12 Å² und 3 Å³, Ø 12 mm, ± 5 °C, ½ × ¼",
        "ÅÅ ÄÄ Å… Ä… Ä– Å” Ñ» Ð “ Ø»",
        "El Niño 1º, 2ª; ¿Qué? ¡Sí! “así”…",
        "Đây là tiếng Việt: Ấn Độ, Ân, Ã, Â, “Ê”",
        "það er ð og Þ. “Ð”",
        "naïve café, crème brûlée, à l’œuvre, é… è» ê”",
        "Windows® Café™ É® KÄ\u00adSE",
    ],
)
def test_good_text_is_no_mojibake(text):
    assert not is_mojibake(text)
    assert not is_mojibake(text.lower())


def test_mojibake_is_looked_for_before_controls_are_removed():
    # Read as Latin-1, "ß" becomes "Ã" and a control, which cleaning would take away.
    assert reasons(["Gro\u00c3\u009f"], ["Groß"]) == ["mojibake"]


def test_mojibake_in_many_lines():
    texts = ["gut", "fÃ¼r", "für", "", "â€™", "ascii"]
    assert find_mojibake(Lines.of(texts), texts).tolist() == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's a Test!", "itsatest"),
        ("STRASSE straße", "strassestrasse"),
        ("Ａｂｃ ﬁ ½ ²", "abcfi1\u204422"),
        ("1/2 cup, not 12 cups", "1\u20442cupnot12cups"),
        ("$1.5, -5 °C; 15:30 and x > y.", "$1.5-5°c15:30andx>y"),
        ("it`s .5", "its.5"),
        ("क्या कि", "क्याकि"),  # vowel signs are marks and stay
        ("e\u0301 É", "éé"),
        ("İ ς Σ", "i\u0307σσ"),
        ("❤\ufe0f?! ", "❤"),
        (" ... ", "..."),
        ("", ""),
    ],
)
def test_fold(text, expected):
    assert fold([text]) == [expected]
    assert fold(["first", text, "Last."]) == ["first", expected, "last"]


def test_fold_of_nothing():
    assert fold([]) == []


def test_code_point_table_computes_each_value_once():
    asked = []

    def value(character):
        asked.append(character)
        return ord(character) % 7

    table = CodePointTable(value, np.uint8)
    codes = np.array([97, 98, 97, 0x10FFFF])
    assert table(codes).tolist() == [97 % 7, 98 % 7, 97 % 7, 0x10FFFF % 7]
    assert table(codes[:2]).tolist() == [97 % 7, 98 % 7]
    assert asked == ["a", "b", chr(0x10FFFF)]


def test_lines():
    lines = Lines.of(["", "ab", "", "c😀", ""])
    assert lines.lengths.tolist() == [0, 2, 0, 2, 0]
    assert lines.count(lines.codes != 10).tolist() == [0, 2, 0, 2, 0]
    assert lines.touched(np.array([1, 2, 5])).tolist() == [1, 3]
    empty = Lines.of([])
    assert empty.lengths.tolist() == []
    assert empty.count(empty.codes == 10).tolist() == []
