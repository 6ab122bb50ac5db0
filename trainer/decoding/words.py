"""Words of a translation and where they look, from the attention between pieces."""

from collections.abc import Sequence

import numpy as np

from data_pipeline.dataset.normalization import SPACE_MARK

_SPACE_BYTE = "<0x20>"  # a space, where every piece is a byte


def _owners(pieces: Sequence[str]) -> list[int]:
    """Return the number of the word that each piece belongs to."""
    begins = [
        number == 0 or piece.startswith(SPACE_MARK) or piece == _SPACE_BYTE
        for number, piece in enumerate(pieces)
    ]
    return [sum(begins[: number + 1]) - 1 for number in range(len(pieces))]


def group_words(ids: Sequence[int], pieces: Sequence[str]) -> list[list[int]]:
    """Return the ids of each word.

    Args:
        ids: token ids without special tokens.
        pieces: of the ids, as SentencePiece writes them.
    """
    words: list[list[int]] = []
    for one, owner in zip(ids, _owners(pieces), strict=True):
        if owner == len(words):
            words.append([])
        words[owner].append(one)
    return words


def word_attention(
    attention: np.ndarray, source_pieces: Sequence[str], target_pieces: Sequence[str]
) -> np.ndarray:
    """Return where each target word looks: the mean over its pieces.

    Args:
        attention: float32 [target pieces or more, source pieces or more]; what is beyond the
            pieces, such as the end tokens, does not count.
        source_pieces: of SentencePiece.
        target_pieces: likewise.

    Returns:
        float64 [target words, source words]; a row sums to 1 or, where the end token is looked at,
        to less.
    """
    sources, targets = _owners(source_pieces), _owners(target_pieces)
    if not sources or not targets:
        return np.zeros([0, 0])
    looks = np.zeros([max(targets) + 1, max(sources) + 1])
    for row, target in enumerate(targets):
        np.add.at(looks[target], sources, attention[row, : len(sources)])
    return looks / np.bincount(targets)[:, np.newaxis]


def word_alignment(
    attention: np.ndarray, source_pieces: Sequence[str], target_pieces: Sequence[str]
) -> list[tuple[int, int]]:
    """Return (source word, target word) pairs, counted from 0: where each target word looks most.

    Args:
        attention: as for `word_attention`.
        source_pieces: of SentencePiece.
        target_pieces: likewise.
    """
    looks = word_attention(attention, source_pieces, target_pieces)
    return [(int(row.argmax()), target) for target, row in enumerate(looks)]
