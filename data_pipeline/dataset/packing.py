"""Packing: several sentences in one row of fixed length, so that almost nothing is padding.

With rows of 8, sentences of lengths (source, target) (3, 4), (5, 3), (4, 4) become

    source  1 1 1 2 2 2 2 .    1 1 1 1 1 . . .
    target  1 1 1 1 2 2 2 2    1 1 1 . . . . .

where the digit is the sentence's segment id within its row and "." is padding (0).
"""

import dataclasses

import numpy as np

_WINDOW = 1 << 16  # sentences looked at together: more packs tighter


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of one length, each with one or more sentences.

    Attributes:
        source, target: int32 [R, L], token ids; each sentence ends in its end-of-sentence token.
        source_segments, target_segments: int32 [R, L], 1, 2, ... per sentence and 0 for padding.
        left_out: number of sentences that were too long for a row.
    """

    source: np.ndarray
    source_segments: np.ndarray
    target: np.ndarray
    target_segments: np.ndarray
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.source)

    @property
    def length(self) -> int:
        return self.source.shape[1]

    def take(self, order: np.ndarray) -> "Rows":
        """The rows with the numbers `order`, in that order."""
        names = ("source", "source_segments", "target", "target_segments")
        return dataclasses.replace(self, **{name: getattr(self, name)[order] for name in names})

    def fill_rate(self) -> float:
        """Share of positions, both sides together, that hold a token and not padding."""
        held = np.count_nonzero(self.source) + np.count_nonzero(self.target)
        return held / max(1, self.source.size + self.target.size)


def assign_rows(
    source_lengths: np.ndarray, target_lengths: np.ndarray, row_length: int
) -> tuple[np.ndarray, int]:
    """Assigns sentences to rows: vector bin packing, worst-fit decreasing.

    A window of sentences at a time gets as many rows as its tokens would fill without a gap. The
    longest sentences come first, and each goes into a row of its own, namely where source and
    target side have the most equal room afterwards, and of such rows into the emptiest: so all
    rows fill up evenly, on both sides. What finds no room opens new rows.

    Args:
        source_lengths: int [n], tokens with the end-of-sentence token.
        target_lengths: int [n].
        row_length: tokens a row holds on each side.

    Returns:
        int64 [n], the row of each sentence, -1 for one that is longer than a row; and the number
        of rows.
    """
    row_of = np.full(len(source_lengths), -1, np.int64)
    fitting = np.flatnonzero(np.maximum(source_lengths, target_lengths) <= row_length)
    rows = 0
    for start in range(0, len(fitting), _WINDOW):
        waiting = fitting[start : start + _WINDOW]
        while len(waiting):
            lengths = np.stack([source_lengths[waiting], target_lengths[waiting]])
            in_row = _spread(lengths, row_length)
            placed = in_row >= 0
            # Renumbered, because a row may have stayed empty.
            used, numbers = np.unique(in_row[placed], return_inverse=True)
            row_of[waiting[placed]] = rows + numbers
            rows += len(used)
            waiting = waiting[~placed]
    return row_of, rows


def _spread(lengths: np.ndarray, row_length: int) -> np.ndarray:
    """Spreads sentences over the least number of rows that could hold them.

    Args:
        lengths: int [2, n], source and target.
        row_length: tokens a row holds on each side; no sentence has more.

    Returns:
        int64 [n], the row of each sentence, -1 where there was no room left.
    """
    opened = int(-(-lengths.sum(axis=1).max() // row_length))
    room = np.full([2, opened], row_length, np.int64)
    in_row = np.full(lengths.shape[1], -1, np.int64)
    # Longest side first. Equal sentences are neighbours and are placed in one go.
    order = np.lexsort((lengths[1], lengths[0], -lengths.max(axis=0)))
    starts = np.flatnonzero(np.diff(lengths[:, order], prepend=-1).any(axis=0))
    for begin, end in zip(starts, [*starts[1:], len(order)], strict=True):
        length = lengths[:, order[begin]]
        while begin < end:
            rows = np.flatnonzero((room >= length[:, np.newaxis]).all(axis=0))
            count = min(end - begin, len(rows))
            if not count:
                break
            if count < len(rows):
                left = room[:, rows] - length[:, np.newaxis]
                worth = left.sum(axis=0) - 2 * row_length * abs(left[0] - left[1])
                # No two are equal, so that the choice does not depend on the sorting algorithm.
                worth = worth * opened + rows
                rows = np.sort(rows[np.argpartition(worth, -count)[-count:]])
            room[:, rows] -= length[:, np.newaxis]
            in_row[order[begin : begin + count]] = rows
            begin += count
    return in_row


def pack(pairs, row_length: int, eos_id: int, *, truncate: bool = False) -> Rows:
    """Packs sentence pairs into rows of `row_length` tokens a side.

    Args:
        pairs: `data_pipeline.dataset.examples.Pairs`, token ids without special tokens.
        row_length: tokens a row holds on each side, the end-of-sentence tokens included.
        eos_id: closes every sentence.
        truncate: cut the tail off a side that is too long, instead of leaving the pair out.
    """
    sides = [_with_eos_lengths(pairs.source_offsets), _with_eos_lengths(pairs.target_offsets)]
    if truncate:
        sides = [np.minimum(side, row_length) for side in sides]
    row_of, rows = assign_rows(sides[0], sides[1], row_length)
    return _fill(pairs, sides, row_of, rows, row_length, eos_id)


def one_a_row(pairs, lengths: tuple[int, ...], eos_id: int) -> list[Rows]:
    """One pair a row, each in the shortest of `lengths` (rising) that holds both its sides.

    Returns:
        for each length its rows; pairs longer than the last are counted there as left out.
    """
    sides = [_with_eos_lengths(pairs.source_offsets), _with_eos_lengths(pairs.target_offsets)]
    bucket_of = np.searchsorted(lengths, np.maximum(*sides))
    result = []
    for bucket, length in enumerate(lengths):
        mine = bucket_of == bucket
        row_of = np.where(mine, np.cumsum(mine) - 1, -1)
        rows = _fill(pairs, sides, row_of, int(mine.sum()), length, eos_id)
        result.append(dataclasses.replace(rows, left_out=0))
    too_long = int((bucket_of == len(lengths)).sum())
    result[-1] = dataclasses.replace(result[-1], left_out=too_long)
    return result


def _with_eos_lengths(offsets: np.ndarray) -> np.ndarray:
    return np.diff(offsets) + 1


def _fill(pairs, sides, row_of, rows, row_length, eos_id) -> Rows:
    kept = np.flatnonzero(row_of >= 0)
    order = kept[np.argsort(row_of[kept], kind="stable")]  # sentences row by row
    row = row_of[order]
    first = np.searchsorted(row, row)  # in `order`, the first sentence of the same row
    segments = np.arange(len(order)) - first + 1
    arrays = []
    for tokens, offsets, lengths in (
        (pairs.source_tokens, pairs.source_offsets, sides[0][order]),
        (pairs.target_tokens, pairs.target_offsets, sides[1][order]),
    ):
        before = np.cumsum(lengths) - lengths  # tokens in earlier sentences, of all rows
        start = row * row_length + before - before[first]
        within = np.arange(lengths.sum()) - np.repeat(before, lengths)
        places = np.repeat(start, lengths) + within
        ids, segment_ids = np.zeros([2, rows * row_length], np.int32)
        # One past the sentence's end is read here and there, and overwritten by the next line.
        read = np.minimum(np.repeat(offsets[order], lengths) + within, len(tokens) - 1)
        if len(tokens):
            ids[places] = tokens[read]
        ids[start + lengths - 1] = eos_id
        segment_ids[places] = np.repeat(segments, lengths)
        arrays += [ids.reshape(rows, row_length), segment_ids.reshape(rows, row_length)]
    source, source_segments, target, target_segments = arrays
    left_out = len(row_of) - len(kept)
    return Rows(source, source_segments, target, target_segments, left_out)
