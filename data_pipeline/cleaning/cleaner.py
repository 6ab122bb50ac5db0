"""What happens to training pairs before they are tokenised: normalisation and named filters.

Everything is computed for a chunk of some 10,000 pairs at once (`code_points`); only lines with
something unusual in them are looked at one by one.
"""

from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from data_pipeline.cleaning import language
from data_pipeline.cleaning.code_points import CodePointTable, Lines
from data_pipeline.cleaning.filters import PAIR_FILTERS, CleaningRules, Side
from data_pipeline.cleaning.folding import fold, fold_lines
from data_pipeline.cleaning.mojibake import find_mojibake
from data_pipeline.cleaning.normalization import STEPS, normalize_lines
from data_pipeline.dataset.normalization import normalize_text

__all__ = [
    "DEFAULT_FILTERS",
    "FILTERS",
    "Cleaned",
    "Cleaner",
    "CleaningRules",
    "fold",
    "normalize_text",
]

# Every step that can be switched, name -> what it does, in the order in which they are applied:
# two that change the text, then those that drop pairs.
FILTERS: dict[str, str] = {
    "html_entities": "Replaces HTML entities such as &amp; and &#39;, also when escaped twice.",
    "control_characters": "Removes controls, zero-width spaces, soft hyphens and bidi marks.",
    **{name: (test.__doc__ or "").strip() for name, test in PAIR_FILTERS.items()},
    "contaminated": "The source side, but for case and punctuation, is in valid or test.",
    "language": "A side is surely in another language (needs the extra langid; slow).",
}
DEFAULT_FILTERS = tuple(name for name in FILTERS if name != "language")

KEPT = -1

# Composition and white space belong to the text's form, so they cannot be switched off.
_ALWAYS = ("nfc", "white_space")


@dataclass(frozen=True)
class Cleaned:
    """A chunk of n pairs after cleaning.

    Attributes:
        source: normalised source texts, n, those of dropped pairs included.
        target: normalised target texts, n.
        reason: int8 [n], the index in `tuple(FILTERS)` of the first filter that drops the pair,
            -1 for a pair that is kept.
        source_forms: `fold(source)`.
        target_forms: `fold(target)`.
        changed: step of `text_normalization.STEPS` -> pairs that it changed.
    """

    source: list[str]
    target: list[str]
    reason: np.ndarray
    source_forms: list[str]
    target_forms: list[str]
    changed: dict[str, int]


class Cleaner:
    """Normalises and filters chunks of pairs."""

    def __init__(self, rules: CleaningRules, held_out: Set[str] = frozenset()):
        """Sets the rules.

        Args:
            rules: filters and limits.
            held_out: `fold` of all source sentences of valid and test, for `contaminated`.

        Raises:
            UsageError: the filter `language` is on but its package is not installed.
        """
        self._rules = rules
        self._held_out = held_out
        self._steps = [name for name in STEPS if name in (*rules.filters, *_ALWAYS)]
        self._languages = (rules.source_lang, rules.target_lang)
        self._scripts = [language.script_table(code) for code in self._languages]
        self._identifier = language.Identifier() if "language" in rules.filters else None

    def clean(self, source: list[str], target: list[str]) -> Cleaned:
        """Cleans a chunk.

        Args:
            source: source sides as read, without newlines; some 10,000 make it fast.
            target: the target sides, as many.

        Returns:
            All pairs with what became of them.
        """
        left, left_changed = self._side(source, self._scripts[0])
        right, right_changed = self._side(target, self._scripts[1])
        forms = fold_lines(left.lines), fold_lines(right.lines)
        reason = np.full(len(source), KEPT, np.int8)
        for index, name in enumerate(FILTERS):
            if name in self._rules.filters:
                drops = self._test(name, left, right, forms[0], reason)
                reason[drops & (reason == KEPT)] = index
        changed = {name: len(left_changed[name] | right_changed[name]) for name in left_changed}
        return Cleaned(left.texts, right.texts, reason, *forms, changed)

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
        self, name: str, left: Side, right: Side, forms: list[str], reason: np.ndarray
    ) -> np.ndarray:
        """Says which pairs a filter drops: bool [n]."""
        if name in PAIR_FILTERS:
            return PAIR_FILTERS[name](left, right, self._rules)
        drops = np.zeros(len(reason), bool)
        if name == "contaminated" and self._held_out:
            drops[:] = [form in self._held_out for form in forms]
        if name == "language":
            # So slow that it looks at those pairs only that have come through.
            for i in np.flatnonzero(reason == KEPT).tolist():
                drops[i] = self._is_foreign((left.texts[i], right.texts[i]))
        return drops

    def _is_foreign(self, pair: tuple[str, str]) -> bool:
        assert self._identifier is not None
        return any(
            len(text) >= self._rules.min_language_characters
            and not self._identifier.accepts(text, code, self._rules.min_language_confidence)
            for text, code in zip(pair, self._languages, strict=True)
        )
