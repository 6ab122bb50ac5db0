"""What happens to training text before it is tokenised: normalisation and named filters.

Everything is computed for a chunk of some 10,000 examples at once (`code_points`); only lines with
something unusual in them are looked at one by one.
"""

from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from data_pipeline.cleaning import language
from data_pipeline.cleaning.code_points import CodePointTable, Lines
from data_pipeline.cleaning.filters import PAIR_FILTERS, CleaningRules, Side
from data_pipeline.cleaning.folding import fold_lines
from data_pipeline.cleaning.mojibake import find_mojibake
from data_pipeline.cleaning.normalization import STEPS, normalize_lines

# Every step that can be switched, name -> what it does, in the order in which they are applied:
# two that change the text, then those that drop pairs.
FILTERS: dict[str, str] = {
    "html_entities": "Replaces HTML entities such as &amp; and &#39;, also when escaped twice.",
    "control_characters": "Removes controls, zero-width spaces, soft hyphens and bidi marks.",
    **{name: (test.__doc__ or "").strip() for name, test in PAIR_FILTERS.items()},
    "contaminated": "The source or text, but for case and punctuation, is in valid or test.",
    "language": "A side is surely in another language (needs the extra langid; slow).",
}
DEFAULT_FILTERS = tuple(name for name in FILTERS if name != "language")

KEPT = -1

# Those that compare the two sides of a pair.
PAIR_ONLY = ("length_ratio", "identical")

# Composition and white space belong to the text's form, so they cannot be switched off.
_ALWAYS = ("nfc", "white_space")
_ALWAYS_OF_DOCUMENTS = ("nfc", "line_breaks")

# How sure the identifier must be that a text is in another language; shorter texts are not shown
# to it.
_MIN_LANGUAGE_CONFIDENCE, _MIN_LANGUAGE_CHARACTERS = 0.7, 20


@dataclass(frozen=True)
class Cleaned:
    """A chunk of n examples after cleaning.

    Attributes:
        texts: for each column the n normalised texts, those of dropped examples included.
        reason: int8 [n], the index in `tuple(FILTERS)` of the first filter that drops the
            example, -1 for one that is kept.
        forms: `fold` of each column.
        changed: step of `normalization.STEPS` -> examples that it changed.
    """

    texts: list[list[str]]
    reason: np.ndarray
    forms: list[list[str]]
    changed: dict[str, int]


class Cleaner:
    """Normalises and filters chunks of examples: pairs of texts, or texts."""

    def __init__(self, rules: CleaningRules, held_out: Set[str] = frozenset()):
        """Set the rules.

        Args:
            rules: filters and limits.
            held_out: `fold` of all source sentences of valid and test, for `contaminated`.

        Raises:
            UsageError: the filter `language` is on but its package is not installed.
        """
        self._rules = rules
        self._held_out = held_out
        always = _ALWAYS_OF_DOCUMENTS if rules.keep_lines else _ALWAYS
        self._steps = [name for name in STEPS if name in (*rules.filters, *always)]
        self._scripts = [language.script_table(code) for code in rules.languages]
        self._identifier = language.Identifier() if "language" in rules.filters else None

    def clean(self, *columns: list[str]) -> Cleaned:
        """Clean a chunk.

        Args:
            columns: for each language the texts as read, without newlines; some 10,000 make it
                fast.

        Returns:
            All examples, with what became of them.
        """
        found = [self._side(*column) for column in zip(columns, self._scripts, strict=True)]
        sides = [side for side, _ in found]
        forms = [fold_lines(side.lines) for side in sides]
        reason = np.full(len(columns[0]), KEPT, np.int8)
        for index, name in enumerate(FILTERS):
            if name in self._rules.filters:
                drops = self._test(name, sides, forms[0], reason)
                reason[drops & (reason == KEPT)] = index
        changed = {
            name: len(set.union(*(of_side[name] for _, of_side in found))) for name in found[0][1]
        }
        return Cleaned([side.texts for side in sides], reason, forms, changed)

    def _side(
        self, texts: list[str], scripts: CodePointTable | None
    ) -> tuple[Side, dict[str, set[int]]]:
        raw = Lines.of(texts)
        mojibake = find_mojibake(raw, texts)
        clean, changed = normalize_lines(raw, texts, self._steps)
        # Most chunks have nothing to change, then what is known about the text stays.
        lines = Lines.of(clean) if any(changed.values()) else raw
        return Side(clean, lines, scripts, mojibake), changed

    def _test(
        self, name: str, sides: list[Side], forms: list[str], reason: np.ndarray
    ) -> np.ndarray:
        """Return which examples a filter drops: bool [n]."""
        if name in PAIR_FILTERS:
            # A text without a partner is tested as both sides.
            return PAIR_FILTERS[name](sides[0], sides[-1], self._rules)
        drops = np.zeros(len(reason), bool)
        if name == "contaminated" and self._held_out:
            drops[:] = [form in self._held_out for form in forms]
        if name == "language":
            # So slow that it sees only what has passed so far.
            for i in np.flatnonzero(reason == KEPT).tolist():
                drops[i] = self._is_foreign([side.texts[i] for side in sides])
        return drops

    def _is_foreign(self, texts: list[str]) -> bool:
        assert self._identifier is not None
        return any(
            len(text) >= _MIN_LANGUAGE_CHARACTERS
            and not self._identifier.accepts(text, code, _MIN_LANGUAGE_CONFIDENCE)
            for text, code in zip(texts, self._rules.languages, strict=True)
        )
