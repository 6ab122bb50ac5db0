"""The joint SentencePiece model: one vocabulary for both languages."""

import hashlib
import io
import re
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from data_pipeline import files
from data_pipeline.cleaning import normalize_text
from data_pipeline.errors import UsageError

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
MODEL_TYPES = ("unigram", "bpe")

# The model depends (in the last digits of its scores) on the number of threads, so it is fixed
# and not that of the machine.
_THREADS = 4
# In bytes. SentencePiece silently leaves out longer sentences; the filters have already dropped
# what is too long to be a training pair.
_MAX_SENTENCE_BYTES = 1 << 20
_ERRORS_ONLY = 2


def train(
    sentences: Iterable[str],
    vocab_size: int,
    model_type: str = "unigram",
    character_coverage: float = 1.0,
) -> bytes:
    """Trains a SentencePiece model.

    The same sentences in the same order give the same model, byte for byte.

    Args:
        sentences: normalised sentences of both languages.
        vocab_size: exact number of pieces, the four specials and 256 byte pieces included.
        model_type: "unigram" or "bpe".
        character_coverage: the share of all characters that get a piece of their own; the rest
            is spelled in bytes.

    Returns:
        The serialised model.

    Raises:
        UsageError: the vocabulary is larger or smaller than the sentences permit; the message
            says the limit.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=character_coverage,
            byte_fallback=True,
            hard_vocab_limit=True,
            # The text is normalised already, and what is decoded must be what was encoded.
            normalization_rule_name="identity",
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            max_sentence_length=_MAX_SENTENCE_BYTES,
            num_threads=_THREADS,
            minloglevel=_ERRORS_ONLY,
        )
    except (RuntimeError, OSError) as error:
        raise _explain(str(error), vocab_size) from error
    return model.getvalue()


def _explain(message: str, vocab_size: int) -> Exception:
    """Turns SentencePiece's complaint about the vocabulary size into a UsageError."""
    largest = re.search(r"too high \(\d+\).*<= (\d+)", message)
    if largest:
        return UsageError(
            f"--vocab_size={vocab_size} is more than this corpus gives; "
            f"the largest possible is {largest[1]}"
        )
    required = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if required:
        return UsageError(
            f"--vocab_size={vocab_size} is less than the {required[1]} that single characters, "
            "bytes and specials need; set it higher or --character_coverage lower"
        )
    return RuntimeError(f"SentencePiece could not be trained: {message}")


class Tokenizer:
    """Text to token ids and back, without specials.

    Encoding normalises the text first (`cleaning.normalize_text`), so
    `decode(encode([x])) == [normalize_text(x)]` for any text.

    Attributes:
        vocab_size: number of pieces.
        sha256: SHA-256 of the serialised model.
    """

    def __init__(self, model: bytes):
        """Makes a tokenizer of a serialised model; `ValueError` if it is not one."""
        if not model:
            raise ValueError("an empty file is not a SentencePiece model")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError("not a SentencePiece model") from error
        self.vocab_size: int = self._processor.vocab_size()
        self.sha256 = hashlib.sha256(model).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text; an empty text has none."""
        return self._processor.encode([normalize_text(text) for text in texts], out_type=int)

    def decode(self, ids: Sequence[Sequence[int] | np.ndarray]) -> list[str]:
        """Returns the text of each id sequence; specials come out as nothing."""
        return self._processor.decode([[int(i) for i in row] for row in ids])

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Returns the piece of each id, as SentencePiece writes it ("▁" for a space)."""
        return [self._processor.id_to_piece(int(i)) for i in ids]

    def byte_mask(self) -> np.ndarray:
        """Returns bool[vocab_size]: true for the 256 pieces that spell single bytes."""
        return np.array([self._processor.is_byte(i) for i in range(self.vocab_size)])


def load_tokenizer(path: str) -> Tokenizer:
    """Loads `tokenizer.model` of a dataset or model directory.

    Args:
        path: the file, local or remote.

    Raises:
        UsageError: there is no such file, or it is not a SentencePiece model.
    """
    from tensorflow.io import gfile

    if not gfile.exists(path):
        raise UsageError(f"{path}: no such file; the directory lost its tokenizer, make it again")
    try:
        return Tokenizer(files.read_bytes(path))
    except ValueError as error:
        raise UsageError(f"{path}: not a SentencePiece model; make the directory again") from error
