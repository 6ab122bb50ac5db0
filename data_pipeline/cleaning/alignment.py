"""Evidence that the two sides of a split do not belong together, line by line.

One missing line makes every pair after it wrong, and nothing else in the job would notice. Two
things show it: translations of long sentences are long, and numbers stay numbers.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from data_pipeline.cleaning.code_points import CodePointTable, Lines

# Of fewer pairs the figures say too little.
MIN_PAIRS = 100
MIN_PAIRS_WITH_NUMBERS = 30
# Measured on Multi30k, Tatoeba and the built-in corpus: right pairs have a correlation of 0.89 or
# more (0.78 in the worst 100 lines), wrong ones of 0.25 or less; right pairs with digits have the
# same numbers in 33 % or more (numbers in words cost the rest), wrong ones in 9 % or less.
MIN_LENGTH_CORRELATION = 0.5
MIN_NUMBER_AGREEMENT = 0.25
# Lengths say nothing where all are about equal, as in a stretch of a file sorted by length: the
# standard deviation must be this part of the mean (it is 0.33 or more in the corpora above).
MIN_LENGTH_SPREAD = 0.2
# And lengths prove the alignment if they fit so much better than those of the neighbour's line
# (by 0.67 or more in the corpora above, but by nothing where the whole file is sorted by length).
PROOF_BY_LENGTH = 0.3
# One enormous line must not decide the correlation.
_LONGEST = 1000

# Long enough for any number in a text; int() refuses thousands of digits.
_NUMBER = re.compile(r"\d{1,18}")
_IS_DIGIT = CodePointTable(str.isdecimal, np.uint8)


def alignment_counts(source: list[str], target: list[str]) -> dict[str, int]:
    """Count what `alignment_warning` looks at; the counts of chunks are added up.

    Args:
        source: source sides without newlines, raw or normalised.
        target: target sides, as many.

    Returns:
        `pairs`; sums over them of the lengths x and y in characters (at most 1,000): `x`, `y`,
        `xx`, `yy`, `xy`, and `xy_next` of x and the y of the next pair; `with_numbers`, the pairs
        with digits on a side, and `same_numbers`, those of them whose sides have the same numbers
        (as a multiset; "07:30" has the numbers 7 and 30).
    """
    sides = Lines.of(source), Lines.of(target)
    x, y = (np.minimum(side.lengths, _LONGEST) for side in sides)
    digits = [side.touched(np.flatnonzero(_IS_DIGIT(side.codes))) for side in sides]
    with_numbers = np.union1d(*digits).tolist()
    return {
        "pairs": len(source),
        "x": int(x.sum()),
        "y": int(y.sum()),
        "xx": int(x @ x),
        "yy": int(y @ y),
        "xy": int(x @ y),
        # The last pair's next is the first, so that there are as many products.
        "xy_next": int(x @ np.roll(y, -1)),
        "with_numbers": len(with_numbers),
        "same_numbers": sum(numbers(source[i]) == numbers(target[i]) for i in with_numbers),
    }


def numbers(text: str) -> list[int]:
    """Return the strings of digits of a text, in any script, as numbers in ascending order."""
    return sorted(map(int, _NUMBER.findall(text)))


def length_correlation(counts: Mapping[str, int], products: str = "xy") -> float:
    """Return Pearson's correlation of the lengths; 1 if all texts of a side are equally long.

    Args:
        counts: as `alignment_counts` returns them.
        products: "xy", or "xy_next" for the correlation with the next pair's target.
    """
    n = counts["pairs"]
    covariance = n * counts[products] - counts["x"] * counts["y"]
    variances = n * counts["xx"] - counts["x"] ** 2, n * counts["yy"] - counts["y"] ** 2
    return covariance / math.sqrt(math.prod(variances)) if all(variances) else 1.0


def number_agreement(counts: Mapping[str, int]) -> float:
    """Return the share of pairs with the same numbers on both sides; 1 if none has numbers."""
    return counts["same_numbers"] / counts["with_numbers"] if counts["with_numbers"] else 1.0


def _lengths_vary(counts: Mapping[str, int]) -> bool:
    """Return whether the standard deviation of both lengths is `MIN_LENGTH_SPREAD` of the mean."""
    needed = 1 + MIN_LENGTH_SPREAD**2
    return all(
        counts["pairs"] * counts[side * 2] >= needed * counts[side] ** 2 > 0 for side in "xy"
    )


def alignment_warning(counts: Mapping[str, int], split: str) -> str | None:
    """Say so if the sides of a split do not seem to belong together.

    Args:
        counts: `alignment_counts` of the whole split, those of chunks added up.
        split: its name, for the message.

    Returns:
        One line with the figures, or None.
    """
    if counts["pairs"] < MIN_PAIRS:
        return None
    correlation, agreement = length_correlation(counts), number_agreement(counts)
    advantage = correlation - length_correlation(counts, "xy_next")
    lengths_vary = _lengths_vary(counts)
    bad_lengths = lengths_vary and correlation < MIN_LENGTH_CORRELATION
    bad_numbers = (
        counts["with_numbers"] >= MIN_PAIRS_WITH_NUMBERS and agreement < MIN_NUMBER_AGREEMENT
    )
    if not bad_lengths and (not bad_numbers or (lengths_vary and advantage >= PROOF_BY_LENGTH)):
        return None
    return (
        f"{split}: THE TWO SIDES LOOK MISALIGNED: the correlation of their lengths is "
        f"{correlation:.2f} (usual: 0.7 and more) and {counts['same_numbers']:,} of "
        f"{counts['with_numbers']:,} pairs with digits have the same numbers (usual: a third and "
        "more); check that line n of one side translates line n of the other"
    )
