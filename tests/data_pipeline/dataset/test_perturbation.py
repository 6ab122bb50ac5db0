"""Perturbed text."""

import random

import pytest

from data_pipeline.dataset.perturbation import KINDS, perturb

PAIR = ("The old dog sees a house.", "Der alte Hund sieht ein Haus.")


@pytest.mark.parametrize(
    ("kind", "source", "target"),
    [
        ("upper", "THE OLD DOG SEES A HOUSE.", "DER ALTE HUND SIEHT EIN HAUS."),
        ("title", "The Old Dog Sees A House.", "Der Alte Hund Sieht Ein Haus."),
        ("no_final_punctuation", "The old dog sees a house", "Der alte Hund sieht ein Haus"),
    ],
)
def test_forms(kind, source, target):
    assert perturb(PAIR, kind, "1") == [source, target]


def test_a_text_of_marks_alone_stays():
    assert perturb(("...", "?"), "no_final_punctuation", "1") == ["...", "?"]


def test_symbols_stay():
    """Those of a tokenizer, which nobody types."""
    pair = ("<2de> The dog. <b>", "Der Hund. <b>")
    symbols = ("<b>", "<2de>")
    assert perturb(pair, "upper", "1", symbols) == ["<2de> THE DOG. <b>", "DER HUND. <b>"]
    assert perturb(pair, "no_final_punctuation", "1", symbols) == list(pair)
    last = ("<2de> The dog.", "Der Hund.")
    assert perturb(last, "no_final_punctuation", "1", symbols) == ["<2de> The dog", "Der Hund"]


def test_typos():
    """One word or more changes by one inner letter, the same one for the same seed."""
    words = ["trouble", "market", "garden", "the", "a"]
    lines = [" ".join(random.Random(i).choices(words, k=30)) for i in range(200)]
    slips = {-1: 0, 0: 0, 1: 0}
    for line in lines:
        found, target = perturb((line, "x"), "typos", "1")
        assert target == "x" and found != line
        assert [found, "x"] == perturb((line, "x"), "typos", "1")
        for one, other in zip(line.split(), found.split(), strict=True):
            if one != other:
                slips[len(other) - len(one)] += 1
                assert (one[0], one[-1]) == (other[0], other[-1])
    changed = sum(slips.values()) / sum(len(word) >= 4 for line in lines for word in line.split())
    assert 0.08 < changed < 0.13
    assert min(slips.values()) > 0.25 * sum(slips.values())
    assert perturb(("a b c", "x"), "typos", "1") == ["a b c", "x"]
    assert len({perturb(("trouble.", "x"), "typos", "1")[0]}) == 1  # no word of letters alone
    assert len({perturb(("trouble", "x"), "typos", str(seed))[0] for seed in range(40)}) > 5


def test_kinds():
    assert list(KINDS) == ["upper", "title", "typos", "no_final_punctuation"]
