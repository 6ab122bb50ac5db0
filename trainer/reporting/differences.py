"""Which words of a text another text does not have at the same place."""

import difflib


def differences(text: str, other: str) -> list[tuple[str, bool]]:
    """Split a text into runs of words that `other` has at the same place, or lacks there.

    Args:
        text: what is split at its white space.
        other: what it is compared with.

    Returns:
        (words joined by spaces, whether `other` lacks them), in the order of the text.
    """
    words, wanted = text.split(), other.split()
    matcher = difflib.SequenceMatcher(None, wanted, words, autojunk=False)
    return [
        (" ".join(words[start:end]), kind != "equal")
        for kind, _, _, start, end in matcher.get_opcodes()
        if end > start
    ]
