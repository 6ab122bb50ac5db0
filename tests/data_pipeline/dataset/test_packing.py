"""Packing: nothing lost, nothing split, hardly any padding."""

import numpy as np
import pytest

from data_pipeline.dataset import packing
from data_pipeline.dataset.examples import Examples

EOS = 3


def make_pairs(lengths, seed: int = 0) -> Examples:
    """Examples of random tokens of the given (source, target) lengths, without end tokens."""
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths, np.int64).reshape(-1, 2)
    tokens, offsets = {}, {}
    for side, name in enumerate(("source", "target")):
        offsets[name] = np.concatenate([[0], np.cumsum(lengths[:, side])])
        tokens[name] = rng.integers(4, 1000, offsets[name][-1]).astype(np.int32)
    return Examples(tokens, offsets)


def sentences(rows: packing.Rows) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The pairs in the rows, by segment; checks that segments are 1, 2, ... and then padding."""
    found = []
    for row in range(len(rows)):
        arrays = {name: array[row] for name, array in rows.arrays.items()}
        for name in ("source", "target"):
            ids, segments = arrays[name], arrays[f"{name}_segments"]
            held = segments[segments > 0]
            assert (np.diff(held) >= 0).all() and (np.diff(held) <= 1).all() and held[0] == 1
            assert (segments[len(held) :] == 0).all() and (ids[len(held) :] == 0).all()
        count = arrays["source_segments"].max()
        assert count == arrays["target_segments"].max()
        for segment in range(1, count + 1):
            found.append(
                tuple(
                    tuple(arrays[name][arrays[f"{name}_segments"] == segment].tolist())
                    for name in ("source", "target")
                )
            )
    return found


def expected(pairs: Examples, longest: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every pair that fits, each side with its end token."""
    result = []
    for i in range(len(pairs)):
        source, target = ((*side.tolist(), EOS) for side in pairs.example(i).values())
        if max(len(source), len(target)) <= longest:
            result.append((source, target))
    return result


def test_worked_example():
    """Rows of 8 and lengths (3, 4), (5, 3), (4, 4), end tokens included.

    The 12 source tokens need two rows. Longest first: (5, 3) takes one of two empty rows; (3, 4)
    makes either row equally uneven and goes to the emptier; (4, 4) fits only beside it.
    """
    row_of, rows = packing.assign_rows(np.array([[3, 5, 4], [4, 3, 4]]), 8)
    assert row_of.tolist() == [0, 1, 0] and rows == 2
    result = packing.pack(make_pairs([(2, 3), (4, 2), (3, 3)]), 8, EOS)
    assert result.arrays["source_segments"].tolist() == [
        [1, 1, 1, 2, 2, 2, 2, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
    ]
    assert result.arrays["target_segments"].tolist() == [
        [1, 1, 1, 1, 2, 2, 2, 2],
        [1, 1, 1, 0, 0, 0, 0, 0],
    ]
    assert result.fill_rate() == pytest.approx(23 / 32)
    assert (len(result), result.length, result.left_out) == (2, 8, 0)


@pytest.mark.parametrize("seed", range(3))
def test_every_sentence_once_and_whole(seed):
    """More sentences than one window holds, some too long, some empty on a side."""
    rng = np.random.default_rng(seed)
    pairs = make_pairs(rng.integers(0, 45, [5000, 2]), seed)
    rows = packing.pack(pairs, 40, EOS)
    wanted = expected(pairs, 40)
    assert sorted(sentences(rows)) == sorted(wanted)
    assert rows.left_out == len(pairs) - len(wanted) > 0
    assert rows.arrays["source"].shape == rows.arrays["target"].shape == (len(rows), 40)
    assert {array.dtype for array in (rows.arrays["source"], rows.arrays["target_segments"])} == {
        np.dtype(np.int32)
    }


@pytest.mark.parametrize("row_length", [30, 64])
def test_capacity_is_never_exceeded(row_length):
    rng = np.random.default_rng(0)
    source, target = rng.integers(1, 31, 3000), rng.integers(1, 31, 3000)
    row_of, rows = packing.assign_rows(np.stack([source, target]), row_length)
    assert (row_of >= 0).all() and row_of.max() == rows - 1
    for lengths in (source, target):
        held = np.bincount(row_of, lengths, rows)
        assert held.max() <= row_length and held.min() >= 1


def test_rows_are_full():
    """Lengths of 5 to 30 in rows of 256: less than 3 % is padding."""
    rng = np.random.default_rng(0)
    source = rng.integers(5, 31, 5000)
    target = np.clip(source + rng.integers(-3, 4, 5000), 5, 30)
    rows = packing.pack(make_pairs(np.stack([source, target], 1)), 256, EOS)
    assert rows.fill_rate() > 0.97
    held = (rows.arrays["source"] > 0).sum() + (rows.arrays["target"] > 0).sum()
    assert rows.fill_rate() == held / (rows.arrays["source"].size + rows.arrays["target"].size)


def test_truncate_cuts_the_tail():
    """Only the side that is too long, and its end token stays."""
    pairs = make_pairs([(12, 2), (3, 20), (7, 7)])
    rows = packing.pack(pairs, 8, EOS, truncate=True)
    wanted = []
    for i in range(3):
        wanted.append(tuple((*side[:7].tolist(), EOS) for side in pairs.example(i).values()))
    assert sorted(sentences(rows)) == sorted(wanted) and rows.left_out == 0


def test_exactly_a_row():
    """A sentence as long as the row fits; one token more does not."""
    rows = packing.pack(make_pairs([(7, 1), (8, 1), (1, 8)]), 8, EOS)
    assert (len(rows), rows.left_out) == (1, 2)


def test_nothing_to_pack():
    rows = packing.pack(make_pairs([(9, 9)]), 8, EOS)
    assert (len(rows), rows.left_out, rows.fill_rate()) == (0, 1, 0.0)
    assert len(packing.pack(make_pairs(np.zeros([0, 2])), 8, EOS)) == 0


def test_one_per_row():
    """Each pair in the shortest row that holds both its sides, in order."""
    pairs = make_pairs([(3, 1), (1, 4), (7, 7), (2, 8), (16, 1), (0, 0)])
    short, middle, long = packing.one_per_row(pairs, (4, 8, 16), EOS)
    everything = expected(pairs, 99)
    assert sentences(short) == [everything[0], everything[5]] and short.length == 4
    assert sentences(middle) == [everything[1], everything[2]] and middle.length == 8
    assert sentences(long) == [everything[3]] and long.length == 16
    assert [rows.left_out for rows in (short, middle, long)] == [0, 0, 1]
