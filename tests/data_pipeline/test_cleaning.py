import time
import unicodedata

import pytest

from data_pipeline.cleaning import (
    FILTERS,
    REASONS,
    CleaningRules,
    normalize_text,
    reject_reason,
)

RULES = CleaningRules(max_tokens=250, max_length_ratio=9.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \t\r ", ""),
        ("a  b", "a b"),
        ("\ta\u00a0b\u2028c\u2029d\u0085e\x0bf\x0cg\u3000h ", "a b c d e f g h"),
        ("e\u0301", "é"),
        ("A\u030angstro\u0308m", "Ångström"),
        ("ﬁ Ⅳ ①", "ﬁ Ⅳ ①"),  # NFC, not NFKC: what looks different stays different
        ("a\u2581b", "a_b"),
        ("👩‍👩‍👧 日本", "👩‍👩‍👧 日本"),
    ],
)
def test_normalize_text(text, expected):
    assert normalize_text(text) == expected
    assert normalize_text(expected) == expected
    assert unicodedata.is_normalized("NFC", expected)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("A dog.", "Ein Hund.", None),
        ("", "Ein Hund.", "empty"),
        ("A dog.", "", "empty"),
        ("", "", "empty"),
        ("a" * 4000, "b" * 4000, None),
        ("a" * 4001, "b" * 4000, "too_many_characters"),
        ("b" * 4000, "a" * 4001, "too_many_characters"),
        ("a", "b" * 29, None),
        ("a", "b" * 30, "length_ratio"),
        ("b" * 30, "a", "length_ratio"),
        ("a" * 10, "b" * 110, None),
        ("a" * 10, "b" * 111, "length_ratio"),
        # Pairs of real corpora that must not be dropped.
        ("No.", "Das kommt überhaupt nicht in Frage.", None),
        ("你好世界,今天天气很好。", "Hello world, the weather is very nice today, isn't it?", None),
    ],
)
def test_reject_reason(source, target, reason):
    assert reject_reason(source, target, RULES) == reason


def test_reasons_are_complete_and_filters_documented():
    assert REASONS == (
        "empty",
        "too_many_characters",
        "length_ratio",
        "duplicate",
        "too_many_tokens",
    )
    assert all(test.__doc__ for test in FILTERS.values())


def test_character_limit_is_never_stricter_than_the_token_limit():
    # 16 characters are the longest piece, so this text may have exactly 2 tokens.
    assert reject_reason("a" * 32, "b" * 32, CleaningRules(2, 9.0)) is None


def test_megabyte_line_is_fast():
    started = time.monotonic()
    text = normalize_text("wörd " * 200_000)
    assert reject_reason(text, "kurz", RULES) == "too_many_characters"
    assert time.monotonic() - started < 1
