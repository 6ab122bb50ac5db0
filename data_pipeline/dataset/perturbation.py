"""Perturbed text, as careless people write it: to train on, and to measure how robust a model is.

Every perturbation is a function of the text and a seed. One that changes the form of a whole
sentence is applied to its translation too; typing errors are not.
"""

import random
import re
from collections.abc import Sequence

_FINAL = ".!?\u2026\u3002\uff01\uff1f"
_TYPO_RATE = 0.1  # of the words that are long enough
_LONG_ENOUGH = 4  # letters, so that the first and the last stay


def upper(text: str, draw: random.Random) -> str:
    """Write a text in capitals."""
    return text.upper()


def title(text: str, draw: random.Random) -> str:
    """Write every word with a capital letter."""
    return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))


def no_final_punctuation(text: str, draw: random.Random) -> str:
    """Leave out the marks that end a sentence; a text of nothing else stays."""
    return text.rstrip(_FINAL + " ") or text


def typos(text: str, draw: random.Random) -> str:
    """Swap, double or drop an inner letter of one word in ten, and of one word at least."""
    words = text.split(" ")
    fitting = [i for i, word in enumerate(words) if len(word) >= _LONG_ENOUGH and word.isalpha()]
    if not fitting:
        return text
    chosen = {i for i in fitting if draw.random() < _TYPO_RATE} or {draw.choice(fitting)}
    for i in sorted(chosen):
        word, place = words[i], draw.randrange(1, len(words[i]) - 2)
        pair = word[place : place + 2]
        slip = draw.choice([pair[::-1], pair[0] + pair, pair[1]])
        words[i] = word[:place] + slip + word[place + 2 :]
    return " ".join(words)


KINDS = {
    "upper": upper,
    "title": title,
    "typos": typos,
    "no_final_punctuation": no_final_punctuation,
}
OF_THE_SOURCE = ("typos",)
"""Kinds that a translator should correct: the translation stays as it is."""


def perturb(texts: Sequence[str], kind: str, seed: str, symbols: Sequence[str] = ()) -> list[str]:
    """Return the texts of an example perturbed.

    Args:
        texts: the source, and what it is translated to if it is.
        kind: a key of `KINDS`.
        seed: decides where the typos are, together with the source.
        symbols: pieces of the tokenizer that nobody types, such as <2de>; they stay.
    """
    draw = random.Random(f"{seed} {kind} {texts[0]}")

    def change(text: str) -> str:
        if not any(symbol in text for symbol in symbols):
            return KINDS[kind](text, draw)
        between = "|".join(map(re.escape, sorted(symbols, key=len, reverse=True)))
        parts = re.split(f"({between})", text)
        only = slice(-1, None) if kind == "no_final_punctuation" else slice(None, None, 2)
        parts[only] = [KINDS[kind](part, draw) for part in parts[only]]
        return "".join(parts)

    changed = [change(texts[0])]
    return changed + [text if kind in OF_THE_SOURCE else change(text) for text in texts[1:]]
