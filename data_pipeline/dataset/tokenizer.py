"""SentencePiece models: training, text to token ids and back, sampled segmentations."""

import functools
import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import sentencepiece

from common import files
from common.errors import UsageError
from data_pipeline.dataset.normalization import normalize_document, normalize_text

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
MODEL_TYPES = ("unigram", "bpe", "char", "byte")

# Names in a dataset directory and in a model directory.
JOINT_FILE = "tokenizer.model"
SOURCE_FILE, TARGET_FILE = "tokenizer.source.model", "tokenizer.target.model"

# The model depends (in the last digits of its scores) on the number of threads, so it is fixed
# and not that of the machine.
_THREADS = 4
# In bytes. SentencePiece silently leaves out longer sentences; the filters have already dropped
# what is too long to be a training pair.
_MAX_SENTENCE_BYTES = 1 << 20
_ERRORS_ONLY = 2

# What SentencePiece's own model file calls them (sentencepiece_model.proto).
_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_NORMAL, _UNKNOWN, _USER_DEFINED, _BYTE = 1, 2, 4, 6

# SentencePiece needs one character; a byte model has this one, which Unicode gives no meaning.
_UNUSED_CHARACTER = "\ue000"
_BYTE_VOCAB = 4 + 256 + 1

_RESERVED = re.compile(r"<(pad|unk|s|/s|0x[0-9A-Fa-f]{2})>")

# Segmentations that are sampled from, as in the experiments of Kudo 2018.
_CANDIDATES = 64
# Texts whose candidates are in memory at a time.
_SAMPLE_BATCH = 256
# SentencePiece's: an unknown character is that much less likely than the rarest piece.
_UNKNOWN_PENALTY = 10.0


def train(
    sentences: Iterable[str],
    vocab_size: int,
    model_type: str = "unigram",
    character_coverage: float = 1.0,
    byte_fallback: bool = True,
    user_symbols: Sequence[str] = (),
    *,
    keep_lines: bool = False,
) -> bytes:
    """Train a SentencePiece model.

    The same sentences in the same order give the same model, byte for byte.

    Args:
        sentences: normalised sentences, of both languages for a joint vocabulary.
        vocab_size: exact number of pieces, the four specials, the user's symbols and 256 byte
            pieces included.
            Not used by "char", which has all characters that occur, and "byte".
        model_type: "unigram" (Kudo 2018), "bpe" (Sennrich et al. 2016), "char" (one piece a
            character) or "byte" (one piece a byte of UTF-8).
        character_coverage: the share of all characters that get a piece of their own.
        byte_fallback: the other characters are spelled in bytes; if not, they become the unknown
            token, which decodes to " \u2047 ": the text is lost.
        user_symbols: pieces that are never split, with ids from 4 on in this order.
        keep_lines: for documents: a newline is a piece (or a byte), and spaces stay as they are,
            see `normalize_document`.

    Returns:
        The serialised model.

    Raises:
        UsageError: the vocabulary is larger or smaller than the sentences permit (the message
            says the limit), or a symbol cannot be one.
    """
    _check_symbols(user_symbols)
    model = io.BytesIO()
    options: dict[str, Any] = {"vocab_size": vocab_size, "model_type": model_type}
    if model_type == "char":
        options |= {"vocab_size": 1 << 20, "use_all_vocab": True}
    symbols = list(user_symbols)
    if model_type == "byte":
        options |= {
            "vocab_size": _BYTE_VOCAB + len(symbols),
            "model_type": "char",
            "add_dummy_prefix": False,
        }
        sentences, character_coverage, byte_fallback = [_UNUSED_CHARACTER], 1.0, True
    elif keep_lines:
        symbols.append("\n")
    if keep_lines:
        options |= {"add_dummy_prefix": False, "remove_extra_whitespaces": False}
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            **options,
            character_coverage=character_coverage,
            byte_fallback=byte_fallback,
            user_defined_symbols=symbols,
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
    if model_type == "byte":
        # Spaces as they are, not as the three bytes of SentencePiece's mark for them. Its trainer
        # refuses that, its encoder does not.
        parsed = _model_class().FromString(model.getvalue())
        parsed.normalizer_spec.escape_whitespaces = False
        return parsed.SerializeToString(deterministic=True)
    return model.getvalue()


def _check_symbols(symbols: Sequence[str]) -> None:
    for symbol in symbols:
        problem = None
        if not symbol or symbol != normalize_text(symbol) or " " in symbol:
            # Encoding normalises the text first, so it would never be found.
            problem = "is empty, or has spaces or characters that normalisation changes"
        elif _RESERVED.fullmatch(symbol):
            problem = "is one of the tokenizer's own pieces"
        elif list(symbols).count(symbol) > 1:
            problem = "is there twice"
        if problem:
            raise UsageError(f"--user_symbols: {symbol!r} {problem}; choose another, such as <2de>")


def _explain(message: str, vocab_size: int) -> UsageError:
    """Turn SentencePiece's complaint, mostly about the vocabulary size, into a UsageError."""
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
            "bytes, specials and symbols need; set it higher or --character_coverage lower"
        )
    return UsageError(f"--vocab_size={vocab_size}: SentencePiece cannot be trained: {message}")


class Tokenizer:
    """Text to token ids and back, without specials.

    Encoding normalises the text first (`normalize_text`), so
    `decode(encode([x])) == [normalize_text(x)]` for any text, with a model of `train`. Not so where
    it was trained without byte fallback, which loses unknown characters, or elsewhere with another
    normalisation rule (nmt_nfkc is SentencePiece's default: "\ufb01" comes back as "fi", and no
    translation can have what the rule replaces).

    Attributes:
        vocab_size: number of pieces.
        sha256: SHA-256 of the serialised model.
    """

    def __init__(self, model: bytes):
        """Make a tokenizer of a serialised model; `ValueError` if it is not one."""
        if not model:
            raise ValueError("an empty file is not a SentencePiece model")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError("not a SentencePiece model") from error
        self.vocab_size: int = self._processor.vocab_size()
        self.sha256 = hashlib.sha256(model).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text; an empty text has none."""
        normalize = normalize_document if self.keeps_lines else normalize_text
        return self.encode_normalized([normalize(text) for text in texts])

    @functools.cached_property
    def keeps_lines(self) -> bool:
        """Whether it was trained with `keep_lines`."""
        if self.model_type == "byte":
            return not self._parsed.normalizer_spec.remove_extra_whitespaces
        return self._processor.piece_to_id("\n") != self._processor.unk_id()

    def has_symbol(self, text: str) -> bool:
        """Whether a text is a piece of the user's, which is never split."""
        number = self._processor.piece_to_id(text)
        return number != self._processor.unk_id() and bool(self._is_symbol[number])

    def encode_normalized(self, texts: list[str] | list[bytes]) -> list[list[int]]:
        """As `encode`, for text (or its UTF-8) that `normalize_text` would not change."""
        return self._processor.encode(texts, out_type=int)

    def sample(
        self, texts: Sequence[str], samples: int, alpha: float, seed: int, first: int = 0
    ) -> list[list[list[int]]]:
        """Draw segmentations at random, for subword regularisation (Kudo 2018, section 3).

        Of the 64 most probable segmentations x of a text each is drawn with a probability
        proportional to P(x) ** alpha. What is drawn depends on the model, (seed, text, number of
        the sample) and alpha only: not on the thread, the order or the other texts.

        Args:
            texts: normalised text.
            samples: how many segmentations of each text; the same one may come several times.
            alpha: 0 draws all alike, a large one nearly always the most probable.
            seed: any integer.
            first: the number of the first sample.

        Returns:
            Token ids [text][sample]; each decodes to the text.

        Raises:
            UsageError: the model is not a unigram model, which alone has probabilities.
        """
        if self.model_type != "unigram":
            raise UsageError(
                f"segmentations cannot be sampled from a {self.model_type} model; use a tokenizer "
                "made with --model_type=unigram"
            )
        result = []
        for start in range(0, len(texts), _SAMPLE_BATCH):
            batch = list(texts[start : start + _SAMPLE_BATCH])
            found = self._processor.nbest_encode(batch, nbest_size=_CANDIDATES, out_type=int)
            for text, candidates in zip(batch, found, strict=True):
                cumulative = np.cumsum(self._weights(candidates, alpha))
                places = [_uniform(seed, number, text) for number in range(first, first + samples)]
                drawn = np.searchsorted(cumulative, np.array(places) * cumulative[-1], "right")
                result.append([candidates[i] for i in drawn])
        return result

    def _weights(self, candidates: Sequence[list[int]], alpha: float) -> np.ndarray:
        """Return float64 [candidates], proportional to the probabilities of being drawn."""
        flat = np.fromiter(itertools.chain.from_iterable(candidates), np.int64)
        owner = np.repeat(np.arange(len(candidates)), [len(ids) for ids in candidates])
        scores = np.bincount(owner, self._scores[flat], len(candidates))  # log P(x)
        weights = np.exp(alpha * (scores - scores.max()))
        # Less probable segmentations split the user's symbols; the first, the best, never does.
        symbols = np.bincount(owner, self._is_symbol[flat], len(candidates))
        return np.where(symbols == symbols[0], weights, 0.0)

    @functools.cached_property
    def model_type(self) -> str:
        """The kind of model: "unigram", "bpe", "word", "char" or "byte"."""
        kind = _KINDS[self._parsed.trainer_spec.model_type]
        is_byte = self._processor.piece_to_id(_UNUSED_CHARACTER) != self._processor.unk_id()
        return "byte" if kind == "char" and is_byte else kind

    @functools.cached_property
    def _parsed(self) -> Any:
        return _model_class().FromString(self._processor.serialized_model_proto())

    @property
    def symbols(self) -> tuple[str, ...]:
        """The user's pieces, which are never split."""
        pieces = self.pieces(np.flatnonzero(self._is_symbol).tolist())
        return tuple(piece for piece in pieces if piece != "\n")  # which is that of `keeps_lines`

    @functools.cached_property
    def _is_symbol(self) -> np.ndarray:
        """bool [vocab_size]: true for the user's symbols."""
        return np.array([piece.type == _USER_DEFINED for piece in self._parsed.pieces])

    @functools.cached_property
    def _scores(self) -> np.ndarray:
        """float64 [vocab_size], log probabilities."""
        pieces = self._parsed.pieces
        scores = np.array([piece.score for piece in pieces])
        kinds = np.array([piece.type for piece in pieces])
        scores[kinds == _BYTE] = scores[kinds == _UNKNOWN] = (
            scores[kinds == _NORMAL].min() - _UNKNOWN_PENALTY
        )
        return scores

    def decode(self, ids: Sequence[Sequence[int] | np.ndarray]) -> list[str]:
        """Return the text of each id sequence; specials come out as nothing."""
        return self._processor.decode([[int(i) for i in row] for row in ids])

    def serialized(self) -> bytes:
        """Return the model, as SentencePiece reads it."""
        return self._processor.serialized_model_proto()

    def mismatch(self) -> str | None:
        """Return what about the model is not as `train` makes it and as we need it, or None."""
        model = self._processor
        ids = (model.pad_id(), model.unk_id(), model.bos_id(), model.eos_id())
        if ids != (PAD_ID, UNK_ID, BOS_ID, EOS_ID):
            return "the ids of pad, unk, bos and eos are " + ", ".join(map(str, ids))
        return None if self.model_type in MODEL_TYPES else f"it is a {self.model_type} model"

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the piece of each id, as SentencePiece writes it ("▁" for a space)."""
        return [self._processor.id_to_piece(int(i)) for i in ids]

    def byte_mask(self) -> np.ndarray:
        """Return bool[vocab_size]: true for the 256 pieces that spell single bytes."""
        return np.array([self._processor.is_byte(i) for i in range(self.vocab_size)])


def _uniform(seed: int, number: int, text: str) -> float:
    """Return a number in [0, 1) that is a hash of the arguments."""
    digest = hashlib.blake2b(f"{seed} {number} {text}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") / (1 << 32)


@functools.cache
def _model_class() -> Any:
    """Return the protobuf class of a model file, with the few fields that we read.

    The class in SentencePiece's own package wants a newer protobuf than TensorFlow permits.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="sentencepiece_fields.proto")
    piece, spec, normalizer, model = (
        file.message_type.add(name=name)
        for name in ("Piece", "TrainerSpec", "NormalizerSpec", "Model")
    )
    for number, name in ((4, "remove_extra_whitespaces"), (5, "escape_whitespaces")):
        normalizer.field.add(
            name=name,
            number=number,
            type=field.TYPE_BOOL,
            label=field.LABEL_OPTIONAL,
            default_value="true",
        )
    piece.field.add(name="score", number=2, type=field.TYPE_FLOAT, label=field.LABEL_OPTIONAL)
    for message, name in ((piece, "type"), (spec, "model_type")):
        # Enumerations, whose first value, 1, is the default.
        message.field.add(
            name=name,
            number=3,
            type=field.TYPE_INT32,
            label=field.LABEL_OPTIONAL,
            default_value="1",
        )
    for name, number, kind, label in (
        ("pieces", 1, ".Piece", field.LABEL_REPEATED),
        ("trainer_spec", 2, ".TrainerSpec", field.LABEL_OPTIONAL),
        ("normalizer_spec", 3, ".NormalizerSpec", field.LABEL_OPTIONAL),
    ):
        model.field.add(
            name=name, number=number, type=field.TYPE_MESSAGE, type_name=kind, label=label
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Model"))


def check_model(path: str) -> Tokenizer:
    """Load a SentencePiece model that was trained elsewhere, if it is one that we can use.

    Args:
        path: the file, local or remote, as given with --tokenizer.

    Raises:
        UsageError: there is no such file, it is not a SentencePiece model, or one whose specials
            have other ids than ours.
    """
    from tensorflow.io import gfile

    if not gfile.exists(path) or gfile.isdir(path):
        raise UsageError(f"--tokenizer={path}: no such file; name a SentencePiece model")
    try:
        tokenizer = Tokenizer(files.read_bytes(path))
    except ValueError as error:
        raise UsageError(f"--tokenizer={path}: {error}; name the .model of spm_train") from error
    problem = tokenizer.mismatch()
    if problem:
        raise UsageError(
            f"--tokenizer={path}: {problem}; train it with spm_train --model_type=unigram (or bpe) "
            f"--pad_id={PAD_ID} --unk_id={UNK_ID} --bos_id={BOS_ID} --eos_id={EOS_ID}"
        )
    return tokenizer


def load_tokenizer(path: str) -> Tokenizer:
    """Load `tokenizer.model` of a dataset or model directory.

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
