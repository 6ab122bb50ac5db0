"""The built-in parallel corpus: generated sentences, for a demo and for tests without downloads.

Dates, times, quantities, money, numbers in words and names come from CLDR (through Babel) and
num2words, so that any pair of locales they know gives a corpus of phrases. English and German
also have sentences of our own around them, whose word order differs between the languages.

    for source, target in generate("train", 100_000):
        ...

A sentence belongs to one split, whatever the seed and the size: a hash of its source text says
which. A source sentence has only one translation, so that a test set can be scored fairly. The
same sentences make running text for a language model, and a labelled corpus for a classifier.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from common.errors import UsageError
from data_pipeline.builtin.frames import sentence_frames
from data_pipeline.builtin.phrases import PHRASES, Dice, Said, Side, Slot, phrase_slots
from data_pipeline.builtin.words import sentence_slots

# One sentence in twenty is of the validation split and one in twenty of the test split.
SPLIT_OF_HASH = {0: "valid", 1: "test"}
SPLIT_PARTS = 20
LARGEST = {"train": 1_000_000, "valid": 50_000, "test": 50_000}
# Draws in a row that bring nothing new before the corpus counts as exhausted. A split of one in
# twenty sentences expects a new one every twenty draws as long as many are left.
PATIENCE = 100_000
# Out of 20 draws: a construction with a verb phrase, a sentence that stands alone, else a phrase.
CONSTRUCTIONS_OF_20, SENTENCES_OF_20 = 9, 8
PHRASE = "phrase"  # the kind of what is no sentence
PARAGRAPH = 10  # sentences


@dataclass(frozen=True)
class Frame:
    """A pair of templates, the slots that fill their gaps, and the kind of statement."""

    source: str
    target: str
    slots: tuple[tuple[str, Slot], ...]
    kind: str

    @classmethod
    def of(cls, source: str, target: str, slots: dict[str, Slot], kind: str) -> "Frame":
        """Find the slots of the gaps: `{city2}` is a second draw from the slot "city"."""
        gaps = dict.fromkeys(re.findall(r"{(\w+)", source + target))
        found = tuple((gap, slots[gap.rstrip("0123456789")]) for gap in gaps)
        return cls(source, target, found, kind)

    def fill(self, dice: Dice) -> tuple[str, str]:
        """Draw something for every gap, nothing twice; return the source and the target."""
        sources: dict[str, Said] = {}
        targets: dict[str, Said] = {}
        for gap, slot in self.slots:
            said = slot(dice)
            while said[0] in sources.values():
                said = slot(dice)
            sources[gap], targets[gap] = said
        source, target = self.source.format(**sources), self.target.format(**targets)
        if self.source[-1] in ".?!":
            return _as_sentence(source), _as_sentence(target)
        return source, target


def _as_sentence(text: str) -> str:
    """Capitalise; an abbreviation such as "p.m." at the end brings its own full stop."""
    return text[0].upper() + text[1:].replace("..", ".")


class Generator:
    """All frames of a pair of locales; `draw` returns a random sentence pair."""

    def __init__(self, source_locale: str, target_locale: str):
        source, target = Side.of(source_locale), Side.of(target_locale)
        languages = source.locale.language, target.locale.language
        self.swapped = languages == ("de", "en")  # the frames are written from English to German
        self.groups: list[list[Frame]] = []
        if sorted(languages) == ["de", "en"]:
            slots = sentence_slots(*((target, source) if self.swapped else (source, target)))
            self.groups = [
                [Frame.of(english, other, slots, kind) for english, other, kind in group]
                for group in sentence_frames()
            ]
        else:
            slots = phrase_slots(source, target)
        self.phrases = [
            Frame.of(f"{{{name}}}", f"{{{name}}}", slots, PHRASE)
            for name in PHRASES
            if name in slots
        ]

    def draw(self, dice: Dice) -> tuple[str, str, str]:
        """Return a source sentence, its translation, and its kind."""
        frames, kind = self.phrases, dice.below(20)
        if self.groups and kind < CONSTRUCTIONS_OF_20:
            frames = self.groups[0]
        elif self.groups and kind < CONSTRUCTIONS_OF_20 + SENTENCES_OF_20:
            frames = self.groups[1]
        frame = dice.pick(frames)
        english, other = frame.fill(dice)
        source, target = (other, english) if self.swapped else (english, other)
        return source, target, frame.kind


def generate(
    split: str, size: int, seed: int = 1, source_locale: str = "en", target_locale: str = "de"
) -> Iterator[tuple[str, str]]:
    """Generate a split of the built-in corpus.

    The same arguments give the same pairs everywhere (with the same Babel and num2words), and a
    larger size begins with the pairs of a smaller one. No source sentence occurs twice or in two
    splits, not even with different seeds.

    Args:
        split: "train", "valid" or "test".
        size: how many pairs.
        seed: another seed draws other sentences.
        source_locale: what to translate from, such as "en", "pt_BR" or "en-GB".
        target_locale: what to translate into.

    Returns:
        An iterator over (source, target), each one line without surrounding spaces.

    Raises:
        UsageError: no such split, an impossible size, or a locale that Babel or num2words does
            not know (all of these at once, not at the first pair); or, while iterating, no new
            sentences can be found.
    """
    drawn = _generate(split, size, seed, source_locale, target_locale)
    return ((source, target) for source, target, _ in drawn)


def generate_labelled(
    split: str, size: int, seed: int = 1, locale: str = "en"
) -> Iterator[tuple[str, str]]:
    """Generate (sentence, kind of statement) for classification; otherwise as `generate`.

    English and German have the kinds of `frames` and "phrase", other languages phrases only.
    """
    drawn = _generate(split, size, seed, locale, _other(locale))
    return ((source, kind) for source, _, kind in drawn)


def generate_paragraphs(
    split: str, size: int, seed: int = 1, locale: str = "en"
) -> Iterator[tuple[str]]:
    """Generate running text for a language model: `size` sentences, in paragraphs.

    Sentences of a paragraph follow each other after a space. In languages for which there are no
    sentences, a paragraph has a phrase a line. Otherwise as `generate`.
    """
    drawn = _generate(split, size, seed, locale, _other(locale))
    sentences = ((source, "\v" if kind == PHRASE else " ") for source, _, kind in drawn)
    while paragraph := list(itertools.islice(sentences, PARAGRAPH)):
        yield ("".join(text + end for text, end in paragraph).strip(),)


def _other(locale: str) -> str:
    """Return the language whose frames go with those of a language."""
    return "en" if Side.of(locale).locale.language == "de" else "de"


def _generate(
    split: str, size: int, seed: int, source_locale: str, target_locale: str
) -> Iterator[tuple[str, str, str]]:
    if split not in LARGEST:
        raise UsageError(f"built-in corpus: no split {split!r}; use train, valid or test")
    if not 0 <= size <= LARGEST[split]:
        raise UsageError(
            f"built-in corpus: {split} has from 0 to {LARGEST[split]:,} pairs, not {size:,}; "
            "ask for a size in that range"
        )
    generator = Generator(source_locale, target_locale)
    dice = Dice(f"{seed} {split} {source_locale} {target_locale}")
    return _draw_split(generator, dice, split, size)


def _draw_split(
    generator: Generator, dice: Dice, split: str, size: int
) -> Iterator[tuple[str, str, str]]:
    """Yield the first `size` new pairs of a split, with their kinds; see `generate`."""
    seen: set[int] = set()  # hashes: a million of them take far less room than the sentences
    misses = 0
    while len(seen) < size:
        source, target, kind = generator.draw(dice)
        digest = hashlib.blake2b(source.encode(), digest_size=8).digest()
        key = int.from_bytes(digest, "big")
        if key in seen or SPLIT_OF_HASH.get(key % SPLIT_PARTS, "train") != split:
            misses += 1
            if misses > PATIENCE:
                raise UsageError(
                    f"built-in corpus: only {len(seen):,} different pairs found for {split}, not "
                    f"{size:,}; ask for fewer pairs or another pair of locales"
                )
            continue
        misses = 0
        seen.add(key)
        yield source, target, kind
