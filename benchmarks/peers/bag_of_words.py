"""A logistic regression on counts of words (scikit-learn), as a classifier of texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)  # inverse of the regularisation
_TOKEN = r"(?u)\w+|[^\w\s]"  # words, and punctuation marks one by one

Labelled = tuple[Sequence[str], Sequence[str]]
"""Texts and their labels."""


@dataclass(frozen=True)
class Found:
    """The best of several fits.

    Attributes:
        strength: the inverse of its regularisation.
        valid: right guesses on the validation texts, by which it was chosen.
        test: right guesses on the test texts.
        features: words, and pairs of words, that it counts.
    """

    strength: float
    valid: int
    test: int
    features: int


def fit(train: Labelled, valid: Labelled, test: Labelled, longest: int) -> Found:
    """Fit a regression for each strength; return the one that is best on the validation texts.

    Args:
        train: to fit on.
        valid: to choose by.
        test: to count on.
        longest: words of an n-gram: 1, or 2 for pairs of neighbours too.
    """
    vectorizer = CountVectorizer(token_pattern=_TOKEN, ngram_range=(1, longest))
    counts = vectorizer.fit_transform(train[0])
    splits = [(vectorizer.transform(texts), np.array(labels)) for texts, labels in (valid, test)]
    fits = []
    for strength in _STRENGTHS:
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000).fit(
            counts, train[1]
        )
        right = [int(np.sum(model.predict(of_split) == labels)) for of_split, labels in splits]
        fits.append(Found(strength, right[0], right[1], counts.shape[1]))
    return max(fits, key=lambda found: found.valid)
