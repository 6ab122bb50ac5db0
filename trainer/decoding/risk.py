"""Minimum Bayes risk: of many samples, the one that agrees best with all the others.

Kumar and Byrne 2004; with samples in the place of an n-best list, Eikema and Aziz 2020.
"""

from collections import Counter
from collections.abc import Sequence

import sacrebleu


def expected_chrf(candidates: Sequence[str]) -> list[float]:
    """Return the mean chrF of each candidate against all the candidates, itself included.

    Equal candidates are compared once, and count as often as they are there.
    """
    counts = Counter(candidates)
    chrf = sacrebleu.metrics.CHRF()
    expected = {
        one: sum(count * chrf.sentence_score(one, [other]).score for other, count in counts.items())
        / len(candidates)
        for one in counts
    }
    return [expected[one] for one in candidates]


def least_risk(candidates: Sequence[str]) -> int:
    """Return the number of the candidate that agrees best with the others; the first of equals."""
    expected = expected_chrf(candidates)
    return max(range(len(candidates)), key=lambda number: (expected[number], -number))
