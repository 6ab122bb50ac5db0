"""An encoder with a classifier on top, one class for each segment of a packed row.

Axis letters: B batch, L length, D width, C classes.
"""

import keras
import tensorflow as tf

from configs.schema import ModelConfig
from trainer.model import positions
from trainer.model.attention import dense
from trainer.model.dropout import Dropout, number_dropouts
from trainer.model.embeddings import float32_logits, token_embedding
from trainer.model.encodings import PositionEncoding
from trainer.model.norms import final_norm, stack_scales
from trainer.model.stack import Stack


class EncoderClassifier(keras.Model):
    """Classifier of texts: `config.encoder_layers` layers that see the whole text, then a pool.

    Args:
        config: of the model.
        vocab_size: pieces of the vocabulary.
        classes: C.
        remat: see `trainer.model.stack.Stack`.
    """

    def __init__(
        self, config: ModelConfig, vocab_size: int, classes: int, *, remat: bool = False, **kwargs
    ):
        super().__init__(**kwargs)
        self.config = config
        self.embedding = token_embedding(vocab_size, config.width, "embedding")
        self.dropout = Dropout(config.dropout)
        depth = config.encoder_layers
        scales, _ = stack_scales(config, depth, 0)
        self.encoder = Stack(self, config, "encoder", depth, scales=scales, remat=remat)
        self.encoder_norm = final_norm(config, "encoder_norm")
        self.positions = PositionEncoding(config, causal=False, name="positions")
        self.classes = dense(config.width, classes, name="classes")
        number_dropouts(self)
        self.built = True

    def call(self, text, text_segments, rng=None):
        """Return the logits of each segment's class, at the first token of the segment.

        Args:
            text: int32 [B, L], 0 for padding.
            text_segments: int32 [B, L], see `trainer.model.positions`.
            rng: int32 [2], the seed of this step's dropout; None switches dropout off.

        Returns:
            float32 [B, L, C]. Only the logits at first tokens mean something.
        """
        mask = positions.same_segment_mask(text_segments, text_segments)  # [B, 1, L, L]
        places = tf.range(tf.shape(text)[1])
        sight = self.positions.sight(mask, places, places)
        x = self.embedding(text) * self.config.width**0.5
        x = self.positions.add_to(x, positions.positions_in_segments(text_segments))
        x = self.encoder(self.dropout(x, rng), sight, rng)
        if self.encoder_norm is not None:
            x = self.encoder_norm(x)
        x = pool(x, text_segments, self.config.pooling)  # [B, L, D]
        logits = float32_logits(x, tf.cast(self.classes.kernel, x.dtype), transposed=False)
        return logits + tf.cast(self.classes.bias, tf.float32)  # [B, L, C]


def pool(x: tf.Tensor, segments: tf.Tensor, pooling: str) -> tf.Tensor:
    """Return one vector for each segment, at the segment's first token.

    Args:
        x: [B, L, D].
        segments: int32 [B, L].
        pooling: "mean" or "max" over the tokens of the segment, or "first" token.

    Returns:
        [B, L, D]; the values at other positions are meaningless.
    """
    if pooling == "first":
        return x
    if pooling == "mean":
        same = positions.same_segment_mask(segments, segments)[:, 0]  # [B, L, L]
        share = tf.cast(same, tf.float32)
        share /= tf.reduce_sum(share, axis=-1, keepdims=True)
        mean = tf.matmul(share, tf.cast(x, tf.float32))  # [B, L, D]
        return tf.cast(mean, x.dtype)
    # The number of a segment in the whole batch; a row of L tokens has at most L segments.
    shape, length = tf.shape(x), tf.shape(x)[1]
    numbers = tf.range(shape[0])[:, tf.newaxis] * (length + 1) + segments  # [B, L]
    flat = tf.reshape(x, [-1, x.shape[-1]])  # [B * L, D]
    highest = tf.math.unsorted_segment_max(
        flat, tf.reshape(numbers, [-1]), shape[0] * (length + 1)
    )  # [B * (L + 1), D]
    return tf.gather(highest, numbers)  # [B, L, D]
