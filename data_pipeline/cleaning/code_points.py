"""Many lines of text as one array of code points, so that NumPy can look at all of them at once.

A Python call for each sentence costs more than everything that is computed about it. Here a chunk
of lines becomes one array, a look-up table turns code points into whatever is asked about them,
and sums between newlines bring the answers back to the lines.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_CODE_POINTS = 0x110000


class CodePointTable:
    """A function of one character, computed once for each character that occurs.

    Computing it for all of Unicode beforehand would take about a second a worker.
    """

    def __init__(self, function: Callable[[str], int], dtype: type[np.unsignedinteger]):
        """Set the function.

        Args:
            function: character -> value; the largest value of `dtype` is reserved.
            dtype: unsigned type of the values.
        """
        self._function = function
        self._unseen = np.iinfo(dtype).max
        self._values = np.full(_CODE_POINTS, self._unseen, dtype)

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Return the values of code points.

        Args:
            codes: intp [n], code points.

        Returns:
            `dtype` [n].
        """
        values = self._values[codes]
        unseen = values == self._unseen
        if unseen.any():
            for code in np.unique(codes[unseen]).tolist():
                self._values[code] = self._function(chr(code))
            values = self._values[codes]
        return values


@dataclass(frozen=True)
class Lines:
    """Lines of text without newlines, as code points.

    Attributes:
        text: the lines, each followed by a newline.
    """

    text: str

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Lines":
        """Join lines; `ValueError` if one of them contains a newline."""
        lines = cls("\n".join([*texts, ""]))
        if len(lines.ends) != len(texts):
            raise ValueError("a line contains a newline")
        return lines

    @cached_property
    def codes(self) -> np.ndarray:
        """The code points of `text`, intp [characters], the type that NumPy indexes with."""
        return np.frombuffer(self.text.encode("utf-32-le"), np.uint32).astype(np.intp)

    @cached_property
    def ends(self) -> np.ndarray:
        """The place of each line's newline, int64 [lines]."""
        return np.flatnonzero(self.codes == ord("\n"))

    @cached_property
    def starts(self) -> np.ndarray:
        """The place of each line's first character, int64 [lines]."""
        return np.concatenate([[0], self.ends[:-1] + 1])[: len(self.ends)]

    @property
    def lengths(self) -> np.ndarray:
        """Characters of each line, int64 [lines]."""
        return self.ends - self.starts

    def count(self, mask: np.ndarray) -> np.ndarray:
        """Count marked characters: bool [characters] -> int64 [lines]."""
        return np.add.reduceat(mask, self.starts, dtype=np.int64)

    def touched(self, places: np.ndarray) -> np.ndarray:
        """Return the numbers of the lines that the places (in `codes`) are in, sorted, once."""
        return np.unique(np.searchsorted(self.ends, places))
