import random
from collections import Counter

import numpy as np
import pytest

from data_pipeline.builtin.corpus import generate
from data_pipeline.cleaning.alignment import (
    alignment_counts,
    alignment_warning,
    length_correlation,
    number_agreement,
    numbers,
)


@pytest.fixture(scope="module")
def corpus():
    source, target = zip(*generate("train", 2000), strict=True)
    return list(source), list(target)


def test_counts():
    source = ["abc", "", "at 07:30", "no digits", "x" * 2000]
    target = ["ab", "z", "um 7 Uhr 30", "2 digits", "y" * 1500]
    counts = alignment_counts(source, target)
    x, y = [3, 0, 8, 9, 1000], [2, 1, 11, 8, 1000]
    assert counts == {
        "pairs": 5,
        "x": sum(x),
        "y": sum(y),
        "xx": sum(a * a for a in x),
        "yy": sum(b * b for b in y),
        "xy": sum(a * b for a, b in zip(x, y, strict=True)),
        "xy_next": sum(a * b for a, b in zip(x, y[1:] + y[:1], strict=True)),
        "with_numbers": 2,
        "same_numbers": 1,
    }
    assert all(type(value) is int for value in counts.values())


def test_counts_of_nothing():
    assert set(alignment_counts([], []).values()) == {0}
    assert alignment_warning(alignment_counts([], []), "train") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("1,000.50 and 07", [0, 1, 7, 50]),
        ("3 x 3", [3, 3]),
        ("\u0661\u0662 \u096a", [4, 12]),  # Arabic and Devanagari digits
        ("x²", []),
        ("9" * 19, [9, int("9" * 18)]),
    ],
)
def test_numbers(text, expected):
    assert numbers(text) == expected


def test_chunks_add_up_to_the_figures_of_the_whole(corpus):
    source, target = corpus
    total = Counter()
    for start in range(0, 2000, 300):
        end = start + 300
        total.update(alignment_counts(source[start:end], target[start:end]))
    whole = alignment_counts(source, target)
    assert {**total, "xy_next": 0} == {**whole, "xy_next": 0}
    lengths = [list(map(len, side)) for side in corpus]
    assert length_correlation(total) == pytest.approx(np.corrcoef(*lengths)[0, 1])
    lengths[1] = lengths[1][1:] + lengths[1][:1]
    assert length_correlation(whole, "xy_next") == pytest.approx(np.corrcoef(*lengths)[0, 1])
    assert 0.8 < number_agreement(whole) < 1


@pytest.mark.parametrize("size", [100, 300, 2000])
def test_right_pairs_are_believed(corpus, size):
    source, target = corpus
    for start in range(0, 2001 - size, 100):
        part = source[start : start + size], target[start : start + size]
        assert alignment_warning(alignment_counts(*part), "train") is None


@pytest.mark.parametrize("size", [101, 300, 2000])
def test_one_missing_line_is_noticed(corpus, size):
    source, target = corpus
    for start in range(0, 2001 - size, 100):
        part = source[start : start + size - 1], target[start + 1 : start + size]
        warning = alignment_warning(alignment_counts(*part), "train")
        assert warning is not None and "\n" not in warning


def test_a_line_missing_in_the_middle_and_shuffled_sides_are_noticed(corpus):
    source, target = corpus
    missing = target[:900] + target[901:]
    assert alignment_warning(alignment_counts(source[:-1], missing), "train") is not None
    shuffled = random.Random(1).sample(target, len(target))
    warning = alignment_warning(alignment_counts(source, shuffled), "valid")
    counts = alignment_counts(source, shuffled)
    assert warning.startswith("valid: ") and "MISALIGNED" in warning
    assert f"{length_correlation(counts):.2f}" in warning
    assert f"{counts['same_numbers']:,} of {counts['with_numbers']:,}" in warning


def test_too_few_pairs_say_nothing(corpus):
    source, target = corpus
    assert alignment_warning(alignment_counts(source[:99], target[1:100]), "test") is None


def test_sorted_by_length_numbers_decide(corpus):
    pairs = sorted(zip(*corpus, strict=True), key=lambda pair: (len(pair[0]), len(pair[1])))
    source, target = map(list, zip(*pairs, strict=True))
    counts = alignment_counts(source[1:], target[:-1])
    assert length_correlation(counts) > 0.8
    assert alignment_warning(counts, "train") is not None
    assert alignment_warning(alignment_counts(source, target), "train") is None


def test_equal_lengths_and_numbers_in_words_are_no_evidence(corpus):
    source, target = ["four words are here"] * 200, ["vier Worte sind hier"] * 200
    assert alignment_warning(alignment_counts(source, target), "train") is None
    # All numbers of a side in words: the lengths prove that the pairs are right.
    words = str.maketrans({digit: "N" for digit in "0123456789"})
    source, target = corpus[0], [text.translate(words) for text in corpus[1]]
    counts = alignment_counts(source, target)
    assert number_agreement(counts) == 0
    assert alignment_warning(counts, "train") is None


def test_one_enormous_line_does_not_decide(corpus):
    source, target = corpus
    counts = alignment_counts([*source, "x" * 1_000_000], [*target, "y"])
    assert alignment_warning(counts, "train") is None
    counts = alignment_counts([*source[1:], "x" * 100_000], [*target[:-1], "y" * 100_000])
    assert alignment_warning(counts, "train") is not None


def test_lengths_that_hardly_differ_are_no_evidence():
    dice = random.Random(3)
    source, target = [["z" * (100 + dice.randrange(20)) for _ in range(1000)] for _ in range(2)]
    counts = alignment_counts(source, target)
    assert abs(length_correlation(counts)) < 0.2
    assert alignment_warning(counts, "train") is None
