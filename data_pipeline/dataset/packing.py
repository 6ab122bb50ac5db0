"""Packing: several examples in one row of fixed length, so that almost nothing is padding.

With rows of 8, pairs of lengths (source, target) (3, 4), (5, 3), (4, 4) become

    source  1 1 1 2 2 2 2 .    1 1 1 1 1 . . .
    target  1 1 1 1 2 2 2 2    1 1 1 . . . . .

where the digit is the example's segment id within its row and "." is padding (0).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline.dataset.examples import Examples

LABELS = "labels"
_WINDOW = 1 << 16  # examples considered together: more pack tighter


def features(sequences: Sequence[str], labelled: bool = False) -> tuple[str, ...]:
    """Return the names of the arrays of a row: each sequence, its segments, and "labels"."""
    names = [name for sequence in sequences for name in (sequence, f"{sequence}_segments")]
    return (*names, LABELS) if labelled else tuple(names)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of one length, each with one or more examples.

    Attributes:
        arrays: feature (see `features`) -> int32 [R, L]. A sequence has its token ids; its
            segments are 1, 2, ... for each example and 0 for padding; "labels" has the class + 1
            at the first token of each example and 0 elsewhere.
        left_out: number of examples that are longer than a row.
    """

    arrays: Mapping[str, np.ndarray]
    left_out: int = 0

    def __len__(self) -> int:
        return len(self._first)

    @property
    def length(self) -> int:
        """Length of a row in tokens, the same for each sequence."""
        return self._first.shape[1]

    @property
    def _first(self) -> np.ndarray:
        return next(iter(self.arrays.values()))

    @property
    def size(self) -> int:
        """Positions of all rows, of one sequence."""
        return self._first.size

    def take(self, order: np.ndarray) -> "Rows":
        """Return the rows with the numbers `order`, in that order."""
        arrays = {name: array[order] for name, array in self.arrays.items()}
        return dataclasses.replace(self, arrays=arrays)

    def tokens(self) -> dict[str, int]:
        """Return sequence -> number of positions that hold a token and not padding."""
        return {
            name.removesuffix("_segments"): int(np.count_nonzero(array))
            for name, array in self.arrays.items()
            if name.endswith("_segments")
        }

    def fill_rate(self) -> float:
        """Return the share of the positions of all sequences that are not padding."""
        tokens = self.tokens()
        return sum(tokens.values()) / max(1, len(tokens) * self.size)


def assign_rows(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, int]:
    """Assign examples to rows: vector bin packing, worst-fit decreasing.

    Take a window of examples at a time and open as many rows as its tokens would fill without a
    gap. Place the longest examples first, each into a row of its own: the row whose sequences have
    the most equal room left afterwards, and of those the emptiest. So all rows fill up evenly, in
    every sequence. Examples that find no room open new rows.

    Args:
        lengths: int [S, n], tokens of each of S sequences, closing tokens included.
        row_length: tokens that a row holds of each sequence.

    Returns:
        int64 [n], the row of each example, -1 if it is longer than a row; and the number of rows.
    """
    row_of = np.full(lengths.shape[1], -1, np.int64)
    fitting = np.flatnonzero(lengths.max(axis=0) <= row_length)
    rows = 0
    for start in range(0, len(fitting), _WINDOW):
        waiting = fitting[start : start + _WINDOW]
        while len(waiting):
            in_row = _spread(lengths[:, waiting], row_length)
            placed = in_row >= 0
            # Renumber the rows, because one may have stayed empty.
            used, numbers = np.unique(in_row[placed], return_inverse=True)
            row_of[waiting[placed]] = rows + numbers
            rows += len(used)
            waiting = waiting[~placed]
    return row_of, rows


def _spread(lengths: np.ndarray, row_length: int) -> np.ndarray:
    """Spread examples over the smallest number of rows that could hold them.

    Args:
        lengths: int [S, n], tokens of each sequence.
        row_length: tokens that a row holds of each sequence; no example has more.

    Returns:
        int64 [n], the row of each example, -1 where there was no room left.
    """
    opened = int(-(-lengths.sum(axis=1).max() // row_length))
    room = np.full([len(lengths), opened], row_length, np.int64)
    in_row = np.full(lengths.shape[1], -1, np.int64)
    # Longest sequence first. Equal examples become neighbours and are placed together.
    order = np.lexsort((*lengths[::-1], -lengths.max(axis=0)))
    starts = np.flatnonzero(np.diff(lengths[:, order], prepend=-1).any(axis=0))
    for begin, end in zip(starts, [*starts[1:], len(order)], strict=True):
        length = lengths[:, order[begin], np.newaxis]  # [S, 1]
        while begin < end:
            # Over a few sequences of many rows, which NumPy's own reductions are slow at.
            rows = np.flatnonzero(functools.reduce(np.logical_and, room >= length))
            count = min(end - begin, len(rows))
            if not count:
                break
            if count < len(rows):
                left = room[:, rows] - length
                unevenness = functools.reduce(np.maximum, left) - functools.reduce(np.minimum, left)
                worth = functools.reduce(np.add, left) - 2 * row_length * unevenness
                # Make all values distinct, so that the sorting algorithm makes no difference.
                worth = worth * opened + rows
                rows = np.sort(rows[np.argpartition(worth, -count)[-count:]])
            room[:, rows] -= length
            in_row[order[begin : begin + count]] = rows
            begin += count
    return in_row


def pack(
    examples: Examples, row_length: int, closing_id: int | None, *, truncate: bool = False
) -> Rows:
    """Pack examples into rows of `row_length` tokens.

    Args:
        examples: their token ids.
        row_length: tokens that a row holds of each sequence, closing tokens included.
        closing_id: token that is added to every sequence; None adds none (`Manifest.closing_id`).
        truncate: cut off the end of a sequence that is too long, instead of leaving the example
            out.

    Returns:
        The rows; `left_out` counts the examples that are longer than a row.
    """
    lengths = _closed_lengths(examples, closing_id)
    if truncate:
        lengths = np.minimum(lengths, row_length)
    row_of, rows = assign_rows(lengths, row_length)
    return _fill(examples, lengths, row_of, rows, row_length, closing_id)


def one_per_row(examples: Examples, lengths: tuple[int, ...], closing_id: int | None) -> list[Rows]:
    """Put each example into a row of its own, in the shortest of `lengths` that holds it.

    Args:
        examples: their token ids.
        lengths: of the rows, ascending.
        closing_id: as in `pack`.

    Returns:
        For each length its rows; the last counts the examples that are longer than all.
    """
    closed = _closed_lengths(examples, closing_id)
    bucket_of = np.searchsorted(lengths, closed.max(axis=0))
    result = []
    for bucket, length in enumerate(lengths):
        mine = bucket_of == bucket
        row_of = np.where(mine, np.cumsum(mine) - 1, -1)
        rows = _fill(examples, closed, row_of, int(mine.sum()), length, closing_id)
        result.append(dataclasses.replace(rows, left_out=0))
    too_long = int((bucket_of == len(lengths)).sum())
    result[-1] = dataclasses.replace(result[-1], left_out=too_long)
    return result


def _closed_lengths(examples: Examples, closing_id: int | None) -> np.ndarray:
    """Return int64 [S, n], tokens of each example with its closing token."""
    return examples.lengths() + (closing_id is not None)


def _fill(
    examples: Examples,
    lengths: np.ndarray,
    row_of: np.ndarray,
    rows: int,
    row_length: int,
    closing_id: int | None,
) -> Rows:
    """Write the examples into their rows.

    Args:
        examples: n of them.
        lengths: int [S, n], tokens that each takes in its row.
        row_of: int [n], -1 for one that is left out.
        rows: number of rows.
        row_length: their length.
        closing_id: the last token of each, or None.
    """
    kept = np.flatnonzero(row_of >= 0)
    order = kept[np.argsort(row_of[kept], kind="stable")]  # examples, row by row
    row = row_of[order]
    first = np.searchsorted(row, row)  # position in `order` of the first example of the same row
    segments = np.arange(len(order)) - first + 1
    arrays = {}
    for name, of_name in zip(examples.tokens, lengths[:, order], strict=True):
        tokens, offsets = examples.tokens[name], examples.offsets[name]
        before = np.cumsum(of_name) - of_name  # tokens in earlier examples, of all rows
        start = row * row_length + before - before[first]
        within = np.arange(of_name.sum()) - np.repeat(before, of_name)
        places = np.repeat(start, of_name) + within
        ids, segment_ids = np.zeros([2, rows * row_length], np.int32)
        if len(tokens):
            # The position of a closing token reads one past the example's end; it is overwritten.
            read = np.minimum(np.repeat(offsets[order], of_name) + within, len(tokens) - 1)
            ids[places] = tokens[read]
        if closing_id is not None:
            ids[start + of_name - 1] = closing_id
        segment_ids[places] = np.repeat(segments, of_name)
        arrays[name] = ids.reshape(rows, row_length)  # [rows, row_length]
        segment_ids = segment_ids.reshape(rows, row_length)  # [rows, row_length]
        arrays[f"{name}_segments"] = segment_ids
    if examples.labels is not None:
        labels = np.zeros(rows * row_length, np.int32)
        labels[start] = examples.labels[order] + 1  # of the last sequence, the only one
        arrays[LABELS] = labels.reshape(rows, row_length)  # [rows, row_length]
    return Rows(arrays, len(row_of) - len(kept))
