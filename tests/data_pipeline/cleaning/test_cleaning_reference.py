# ruff: noqa: RUF001 (letters of many scripts)
"""The cleaner computes on arrays; here each pair is computed alone, in plain Python."""

import html
import random
import re
import unicodedata
from html.entities import html5

import pytest

from data_pipeline.builtin.corpus import generate
from data_pipeline.cleaning.cleaner import DEFAULT_FILTERS, FILTERS, Cleaner
from data_pipeline.cleaning.filters import CleaningRules
from data_pipeline.cleaning.folding import fold
from data_pipeline.cleaning.mojibake import is_mojibake
from data_pipeline.dataset.normalization import normalize_text

SCRIPTS = {
    "en": {"LATIN"},
    "ru": {"CYRILLIC"},
    "ja": {"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK", "IDEOGRAPHIC"},
    "hi": {"DEVANAGARI"},
}
BIDI_CONTROLS = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
PIECES = [
    *"aeszßÄöéÉñ .,!?-–—“”»«…0123456789&;#%$€°²½",
    *["the", "Hund", "dog", " ", " ", " ", "  ", "house", "über", "12:30", "...", "IV"],
    *["привет", "мир", "नमस्ते", "कि", "ありがとう", "カタカナー", "日本", "々", "한국", "שלום"],
    *["مرحبا", "می\u200cخواهم", "ｗｉｄｅ", "ﬁ", "ŉ", "İ", "ǰ", "ς", "K", "Å", "\uf900", "\u0344"],
    *["\t", "\r", "\x0b", "\x1c", "\x85", "\u00a0", "\u2028", "\u2029", "\u3000", "\u202f"],
    *["\x00", "\x07", "\x7f", "\x80", "\x9f", "\u00ad", "\u200b", "\u2060", "\ufeff", "\u200e"],
    *["\u202b", "\u2066", "\u061c", "\u200d", "👩\u200d👧", "❤\ufe0f", "😀", "\u2581", "\ufffd"],
    *[
        "e\u0301",
        "\u0301",
        "\u030a",
        "\u1112\u1161\u11ab",
        "\u0323\u0307",
        "\u09c7\u09be",
        "\u034f",
    ],
    *["&amp;", "&#39;", "&amp;quot;", "&nbsp;", "&shy;", "&nope;", "&notit;", "&#x1F600;", "&#10;"],
    *["Ã¼", "Ã\x9f", "â€™", "Ã", "Â ", "Å‚", "Ñ\u0080Ð¸", "Ä…", "ðŸ˜€", "ª", "µ", "ʰ", "〇", "١٢"],
]


def random_text(dice):
    kind = dice.random()
    if kind < 0.1:
        return ""
    if kind < 0.2:
        return "The same short sentence."
    if kind < 0.3:
        return "".join(dice.choices("0123456789.,- a", k=dice.randrange(60)))
    pieces = PIECES if kind < 0.7 else dice.sample(PIECES, 6)
    return "".join(dice.choices(pieces, k=dice.choice([1, 2, 5, 20, 60])))


def unescape(text):
    def replace(match):
        known = match[1].startswith("#") or match[1] + ";" in html5
        return html.unescape(match[0]) if known else match[0]

    entity = r"&(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});"
    for _ in range(2):
        text = re.sub(entity, replace, text)
    return text


def is_invisible(character):
    if character.isspace():
        return False
    if unicodedata.category(character) == "Cc":
        return True
    return character in "\u00ad\u200b\u2060\ufeff" or (
        unicodedata.bidirectional(character) in BIDI_CONTROLS or character in "\u200e\u200f\u061c"
    )


def normalize(text, entities=False):
    if entities:
        text = unescape(text)
    text = "".join(c for c in text if not is_invisible(c))
    text = unicodedata.normalize("NFC", text).replace("\u2581", "_")
    return " ".join(text.split())


def fold_reference(text):
    kept, composed = "", unicodedata.normalize("NFC", text)
    for character, following in zip(composed, composed[1:] + " ", strict=False):
        mark = unicodedata.normalize("NFKC", character)
        if following.isdigit() and mark in list(".,:-/"):
            kept += mark.replace("/", "\N{FRACTION SLASH}")
            continue
        for _ in range(2):
            character = unicodedata.normalize("NFKC", character).casefold()
        for c in character:
            ignored = c == "\u034f" or "VARIATION SELECTOR" in unicodedata.name(c, "")
            if re.match("[LMN]|S[^k]", unicodedata.category(c)) and not ignored:
                kept += c
    return kept or unicodedata.normalize("NFC", text).strip()


def in_wrong_script(text, expected):
    right = wrong = 0
    for character in text:
        if not character.isalpha():
            continue
        plain = unicodedata.normalize("NFKC", character)[0]
        script = unicodedata.name(plain, "MODIFIER").split()[0]
        if plain.isalpha() and script != "MODIFIER":
            right += script in expected
            wrong += script not in expected
    return right + wrong >= 3 and right < 0.5 * (right + wrong)


def has_few_letters(text):
    solid = [c for c in text if c != " "]
    letters = [c for c in solid if unicodedata.category(c)[0] in "LM"]
    return len(text) >= 25 and len(letters) < 0.3 * len(solid)


def reason_reference(raw, texts, rules, held_out):
    lengths = [len(text) for text in texts]
    languages = rules.languages
    drops = {
        "empty": not all(texts),
        "too_many_characters": max(lengths) > 16 * rules.max_tokens,
        "length_ratio": max(lengths) > 20 + rules.max_length_ratio * min(lengths),
        "identical": texts[0] == texts[1] and lengths[0] >= 20 and len(texts[0].split(" ")) >= 4,
        "replacement_character": any("\ufffd" in text for text in texts),
        "mojibake": any(map(is_mojibake, raw)),
        "non_letters": any(map(has_few_letters, texts)),
        "wrong_script": any(
            in_wrong_script(text, SCRIPTS[code])
            for text, code in zip(texts, languages, strict=True)
        ),
        "contaminated": fold_reference(texts[0]) in held_out,
    }
    return next((name for name, drop in drops.items() if drop), None)


def check(source, target, rules, held_out):
    cleaned = Cleaner(rules, held_out).clean(source, target)
    names = tuple(FILTERS)
    expected = [[normalize(text, entities=True) for text in side] for side in (source, target)]
    assert cleaned.texts[0] == expected[0]
    assert cleaned.texts[1] == expected[1]
    assert cleaned.forms[0] == [fold_reference(text) for text in expected[0]]
    assert cleaned.forms[1] == [fold_reference(text) for text in expected[1]]
    reasons = [
        reason_reference(raw, texts, rules, held_out)
        for raw, texts in zip(
            zip(source, target, strict=True), zip(*expected, strict=True), strict=True
        )
    ]
    assert [None if i < 0 else names[i] for i in cleaned.reason] == reasons
    changed = [unescape(a) != a or unescape(b) != b for a, b in zip(source, target, strict=True)]
    assert cleaned.changed["html_entities"] == sum(changed)
    return reasons


@pytest.mark.parametrize(("source_lang", "target_lang"), [("en", "en"), ("en", "ru"), ("ja", "hi")])
def test_random_dirty_text(source_lang, target_lang):
    found = set()
    rules = CleaningRules((source_lang, target_lang), 12, 3.0, DEFAULT_FILTERS)
    for seed in range(25):
        dice = random.Random(f"{seed} {source_lang} {target_lang}")
        size = dice.choice([1, 2, 50, 120])
        source = [random_text(dice) for _ in range(size)]
        target = [a if dice.random() < 0.2 else random_text(dice) for a in source]
        held_out = frozenset(map(fold_reference, dice.sample(source, size // 5)))
        found |= set(check(source, target, rules, held_out))
    # The text is dirty enough to need every filter, and some of it is good.
    assert found >= set(DEFAULT_FILTERS) - {"html_entities", "control_characters", "identical"}
    assert None in found


def test_good_text_with_a_few_dirty_lines():
    pairs = [list(pair) for pair in generate("train", 2000)]
    dice = random.Random(5)
    for pair in dice.sample(pairs, 60):
        pair[dice.randrange(2)] = random_text(dice)
    for pair in dice.sample(pairs, 5):
        pair[1] = pair[0]
    source, target = map(list, zip(*pairs, strict=True))
    held_out = frozenset(map(fold_reference, source[:10]))
    check(source, target, CleaningRules(("en", "en"), 250, 9.0, DEFAULT_FILTERS), held_out)


def test_texts_one_by_one():
    dice = random.Random(7)
    texts = [random_text(dice) for _ in range(1500)]
    normalized = [normalize_text(text) for text in texts]
    assert normalized == [normalize(text) for text in texts]
    assert [normalize_text(text) for text in normalized] == normalized
    assert fold(texts) == [fold_reference(text) for text in texts]
