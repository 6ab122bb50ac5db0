"""The global shuffle, through files: lines sorted by a hash of their own text.

Cleaning writes a block of lines for every chunk of the input, sorted by key; merging reads one
range of keys from all blocks. So no step holds more than a chunk or a range in memory, whatever
the size of the corpus, and the order depends on nothing but the text and the seed.
"""

import hashlib
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from common import files

_KEYS = 1 << 64  # how many there are
_KEY_BYTES = 8


def make_keys(seed: int, copy: int, texts: Iterable[str]) -> np.ndarray:
    """Return uint64 [n], each text's place in the shuffle.

    Args:
        seed: of the shuffle.
        copy: a source with weight 2 has each pair twice, as copy 0 and 1, in different places.
        texts: equal texts get equal keys.
    """
    prefix = f"{seed}\t{copy}\t".encode()
    digests = [
        hashlib.blake2b(prefix + text.encode(), digest_size=_KEY_BYTES).digest() for text in texts
    ]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def write_block(path: str, keys: np.ndarray, lines: Sequence[bytes]) -> None:
    """Write lines, sorted by key.

    Args:
        path: the file: number of lines, keys, ends of the lines, lines.
        keys: uint64 [n].
        lines: n lines, in the order of `keys`.
    """
    order = np.argsort(keys, kind="stable")
    chosen = [lines[i] for i in order]
    ends = np.cumsum([len(line) for line in chosen], dtype=np.int64)
    header = np.array([len(chosen)], np.int64).tobytes()
    files.write_bytes(path, b"".join([header, keys[order].tobytes(), ends.tobytes(), *chosen]))


def read_range(path: str, part: int, parts: int) -> tuple[np.ndarray, list[bytes]]:
    """Read the lines whose keys are in one of `parts` equal ranges.

    Args:
        path: a file of `write_block`.
        part: which range, from 0.
        parts: how many ranges there are.

    Returns:
        uint64 [n] keys, ascending, and their lines.
    """
    from tensorflow.io import gfile

    with gfile.GFile(path, "rb") as file:
        (count,) = np.frombuffer(file.read(8), np.int64)
        keys = np.frombuffer(file.read(8 * count), np.uint64)
        begin = np.searchsorted(keys, np.uint64(part * _KEYS // parts))
        end = count
        if part + 1 < parts:
            end = np.searchsorted(keys, np.uint64((part + 1) * _KEYS // parts))
        if begin == end:
            return keys[:0], []
        ends = np.concatenate([[0], np.frombuffer(file.read(8 * count), np.int64)])
        file.seek(int(8 + 16 * count + ends[begin]))
        text = file.read(int(ends[end] - ends[begin]))
    places = ends[begin : end + 1] - ends[begin]
    return keys[begin:end], [text[start:stop] for start, stop in itertools.pairwise(places)]
