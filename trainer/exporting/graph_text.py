"""A tokenizer as TensorFlow operations, for models that take and give strings.

The operations are TensorFlow Text's. A process that loads such a model imports tensorflow_text,
which registers them.
"""

import tensorflow as tf

from data_pipeline.dataset.normalization import INVISIBLE, SPACE_MARK
from data_pipeline.dataset.tokenizer import EOS_ID, Tokenizer


def _character_class(text: str) -> str:
    """Return a class of characters, "a-z" for a range, as RE2 writes it."""
    return "[" + "".join(one if one == "-" else f"\\x{{{ord(one):x}}}" for one in text) + "]"


_INVISIBLE = _character_class(INVISIBLE)
_SPACES = (
    _character_class("\x09-\x0d\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000")
    + "+"
)
_LINE_ENDS = "\r\n|" + _character_class("\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029")


def collapse_spaces(text: tf.Tensor) -> tf.Tensor:
    """Turn every run of white space into one space, with none at the ends; string [B]."""
    return tf.strings.strip(tf.strings.regex_replace(text, _SPACES, " "))


class GraphTokenizer(tf.Module):
    """Text to token ids and back, as `data_pipeline.dataset.tokenizer.Tokenizer` does it.

    Args:
        tokenizer: whose model goes into the graph.
    """

    def __init__(self, tokenizer: Tokenizer):
        import tensorflow_text

        super().__init__()
        self._pieces = tensorflow_text.SentencepieceTokenizer(
            model=tokenizer.serialized(), out_type=tf.int32
        )
        self._normalize_utf8 = tensorflow_text.normalize_utf8
        self._keeps_lines = tokenizer.keeps_lines

    def encode(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Return the token ids of each text, int32 [B, (L)].

        Args:
            text: string [B]; bytes that are not UTF-8 become U+FFFD.
        """
        text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8")
        # As `normalize_text` and `normalize_document` in data_pipeline.dataset.normalization.
        text = tf.strings.regex_replace(text, _INVISIBLE, "")
        text = self._normalize_utf8(text, "NFC")
        text = tf.strings.regex_replace(text, SPACE_MARK, "_")
        if self._keeps_lines:
            text = tf.strings.regex_replace(text, _LINE_ENDS, "\n")
            text = tf.strings.regex_replace(text, "\t", " ")
        else:
            text = collapse_spaces(text)
        return self._pieces.tokenize(text)

    def encode_closed(self, text: tf.Tensor, longest: int) -> tf.Tensor:
        """Return the token ids, int32 [B, L], each row closed by its end token, then 0.

        Args:
            text: string [B].
            longest: tokens that a row may have; of longer texts the tail is cut off.
        """
        ids = self.encode(text)[:, : longest - 1]
        end = tf.fill([tf.shape(text)[0], 1], EOS_ID)
        return tf.concat([ids, end], axis=1).to_tensor()

    def decode(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Return the text of token ids, string [B]; special tokens come out as nothing."""
        return self._pieces.detokenize(ids)
