"""A translation model as a SavedModel: strings in and strings out, for TensorFlow's own loaders.

The tokenizer is inside, as TensorFlow Text's SentencePiece operations. A process that loads the
model imports tensorflow_text, which registers them; it needs nothing of this project.
"""

from typing import Any

import tensorflow as tf

from data_pipeline.dataset.normalization import INVISIBLE, SPACE_MARK
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer.decoding.beam import BeamSearch
from trainer.decoding.forced import ForcedDecoder
from trainer.decoding.options import MAX_SOURCE, SearchOptions, SpecialTokens
from trainer.decoding.predictor import TranslationPredictor


def _character_class(text: str) -> str:
    """Return a class of characters, "a-z" for a range, as RE2 writes it."""
    return "[" + "".join(one if one == "-" else f"\\x{{{ord(one):x}}}" for one in text) + "]"


_INVISIBLE_CLASS = _character_class(INVISIBLE)
_SPACES = (
    _character_class("\x09-\x0d\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000")
    + "+"
)


class TranslationModule(tf.Module):
    """What is saved: the model, its tokenizers and the search.

    Args:
        model: a trained `trainer.model.transformer.Transformer`.
        tokenizers: of the source and of the target.
        options: how to search.
    """

    def __init__(self, model: Any, tokenizers: tuple[Tokenizer, Tokenizer], options: SearchOptions):
        import tensorflow_text

        super().__init__()
        self.model = model
        self._tokenizers = [
            tensorflow_text.SentencepieceTokenizer(model=one.serialized(), out_type=tf.int32)
            for one in tokenizers
        ]
        self._options, self._special = options, SpecialTokens()
        self._search = BeamSearch(
            TranslationPredictor([model], watches=options.coverage_penalty > 0), options
        )
        self._forced = ForcedDecoder([model])

    def _encode(self, side: int, text: tf.Tensor) -> tf.Tensor:
        """string [B] to int32 [B, L], each row closed by its end token, then 0."""
        import tensorflow_text

        # As `data_pipeline.dataset.normalization.normalize_text`.
        text = tf.strings.regex_replace(text, _INVISIBLE_CLASS, "")
        text = tensorflow_text.normalize_utf8(text, "NFC")
        text = tf.strings.regex_replace(text, SPACE_MARK, "_")
        text = tf.strings.strip(tf.strings.regex_replace(text, _SPACES, " "))
        ids = self._tokenizers[side].tokenize(text)[:, : MAX_SOURCE - 1]
        end = tf.fill([tf.shape(text)[0], 1], self._special.eos)
        return tf.concat([ids, end], axis=1).to_tensor()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")], autograph=False)
    def translate(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Translate text.

        Args:
            text: string [B], a sentence each.

        Returns:
            "translation", string [B], "score", float32 [B], the normalised log probability, and
            "cut", bool [B], whether the longest length was reached.
        """
        source = self._encode(0, text)
        size = tf.reduce_sum(tf.cast(source > 0, tf.int32), axis=1)  # [B], with the end token
        limit = tf.cast(tf.cast(size, tf.float32) * self._options.max_length_ratio, tf.int32)
        limit = tf.maximum(1, limit + self._options.max_length_offset)
        source = tf.where(size[:, tf.newaxis] > 1, source, self._special.pad)  # no empty lines
        found = self._search.run(source, limit, tf.reduce_max(limit))
        best = found.tokens[:, 0]  # [B, T]
        kept = (best != self._special.eos) & (best != self._special.pad)
        translation = self._tokenizers[1].detokenize(tf.ragged.boolean_mask(best, kept))
        translation = tf.strings.strip(tf.strings.regex_replace(translation, _SPACES, " "))
        empty = size == 1
        return {
            "translation": tf.where(empty, "", translation),
            "score": tf.where(empty, 0.0, found.scores[:, 0]),
            "cut": ~empty & ~found.ended[:, 0],
        }

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, "text"),
            tf.TensorSpec([None], tf.string, "translation"),
        ],
        autograph=False,
    )
    def score(self, text: tf.Tensor, translation: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return "log_probability", float32 [B], of given translations, and "tokens", int32 [B]."""
        target = self._encode(1, translation)
        log_p, _ = self._forced.forward(self._encode(0, text), target)
        counts = target > 0
        return {
            "log_probability": tf.reduce_sum(tf.where(counts, log_p, 0.0), axis=1),
            "tokens": tf.reduce_sum(tf.cast(counts, tf.int32), axis=1),
        }


def save(
    model: Any, tokenizers: tuple[Tokenizer, Tokenizer], options: SearchOptions, directory: str
) -> None:
    """Write a SavedModel with the signatures "translate" (the default too) and "score"."""
    module = TranslationModule(model, tokenizers, options)
    signatures = {
        "serving_default": module.translate,
        "translate": module.translate,
        "score": module.score,
    }
    tf.saved_model.save(module, directory, signatures=signatures)
