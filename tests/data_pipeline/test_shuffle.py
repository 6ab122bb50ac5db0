"""The shuffle through files: every line once, in one order, whatever the ranges."""

import numpy as np
import pytest

from data_pipeline import shuffle


def test_keys_depend_on_seed_copy_and_text():
    keys = shuffle.make_keys(1, 0, ["a", "b", "a"])
    assert keys.dtype == np.uint64 and keys[0] == keys[2] != keys[1]
    # BLAKE2b-64 of "1\t0\ta", big-endian: an order that is written down in datasets.
    assert hex(int(keys[0])) == "0xb9844ef09d70ba6a"
    assert keys[0] not in shuffle.make_keys(2, 0, ["a"])
    assert keys[0] not in shuffle.make_keys(1, 1, ["a"])


def test_keys_are_uniform():
    keys = shuffle.make_keys(1, 0, map(str, range(8000)))
    counts = np.bincount((keys >> np.uint64(61)).astype(int))
    assert len(counts) == 8 and abs(counts - 1000).max() < 120  # four standard deviations


@pytest.mark.parametrize("parts", [1, 2, 7, 1000])
def test_ranges_hold_every_line_once_in_order(tmp_path, parts):
    lines = [f"line {i}\n".encode() for i in range(300)]
    keys = shuffle.make_keys(3, 0, (line.decode() for line in lines))
    path = str(tmp_path / "block")
    shuffle.write_block(path, keys, lines)
    ranges = [shuffle.read_range(path, part, parts) for part in range(parts)]
    found = np.concatenate([keys for keys, _ in ranges])
    assert (found == np.sort(keys)).all()
    expected = [lines[i] for i in np.argsort(keys)]
    assert [line for _, of_range in ranges for line in of_range] == expected
    for part, (of_range, _) in enumerate(ranges):
        assert all(part << 64 <= int(key) * parts < (part + 1) << 64 for key in of_range)


def test_limits_and_nothing(tmp_path):
    path = str(tmp_path / "block")
    keys = np.array([2**64 - 1, 0, 2**63], np.uint64)
    shuffle.write_block(path, keys, [b"last\n", b"first\n", b"middle\n"])
    assert shuffle.read_range(path, 0, 2)[1] == [b"first\n"]
    assert shuffle.read_range(path, 1, 2)[1] == [b"middle\n", b"last\n"]
    shuffle.write_block(path, keys[:0], [])
    assert shuffle.read_range(path, 0, 1)[1] == []
