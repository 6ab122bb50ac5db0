"""A decoder without an encoder: a language model (Radford et al. 2019, section 2.3).

GPT-2's shape is norm="pre", positions="learned", activation="gelu", tied embeddings.

Axis letters: B batch, L length, T decoded length, K continuations, D width, V vocabulary.
"""

import keras
import tensorflow as tf

from configs.schema import ModelConfig
from data_pipeline.dataset.tokenizer import BOS_ID
from trainer.model import positions
from trainer.model.attention import dense
from trainer.model.dropout import Dropout, number_dropouts
from trainer.model.embeddings import Projection, token_embedding
from trainer.model.encodings import PositionEncoding
from trainer.model.norms import final_norm, stack_scales
from trainer.model.stack import Cache, Stack


class DecoderOnly(keras.Model):
    """Language model over token ids: `config.decoder_layers` layers that see what is before.

    Args:
        config: of the model.
        vocab_size: V.
        remat: see `trainer.model.stack.Stack`.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, *, remat: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.config = config
        self.embedding = token_embedding(vocab_size, config.width, "embedding")
        self.softmax = (
            dense(config.width, vocab_size, use_bias=False, name="softmax")
            if config.tied_embeddings == "none"
            else None
        )
        self.dropout = Dropout(config.dropout)
        depth = config.decoder_layers
        _, scales = stack_scales(config, 0, depth)
        self.decoder = Stack(self, config, "decoder", depth, scales=scales, remat=remat)
        self.decoder_norm = final_norm(config, "decoder_norm")
        self.positions = PositionEncoding(config, causal=True, name="positions")
        number_dropouts(self)
        self.on_tpu = False  # set by `optimize_for_tpu`
        self.built = True

    def call(self, text, text_segments, rng=None):
        """Return the logits of each token given the tokens before it in its segment.

        Args:
            text: int32 [B, L], what is to be predicted (the shift happens here), 0 for padding.
            text_segments: int32 [B, L], see `trainer.model.positions`. A row whose tokens are all
                of one segment lets them look across the borders of documents.
            rng: int32 [2], the seed of this step's dropout; None switches dropout off.

        Returns:
            float32 [B, L, V].
        """
        return self.projection.logits(self.hidden(text, text_segments, rng))

    def hidden(self, text, text_segments, rng=None) -> tf.Tensor:
        """Return the input of `projection`, [B, L, D]; the arguments are those of `call`."""
        shifted = positions.shift_right(text, text_segments, BOS_ID)
        mask = positions.same_segment_mask(text_segments, text_segments)
        mask &= positions.causal_mask(tf.shape(text)[1])
        places = tf.range(tf.shape(text)[1])
        sight = self.positions.sight(mask, places, places)
        x = self._embed(shifted, positions.positions_in_segments(text_segments))
        return self._normalized(self.decoder(self.dropout(x, rng), sight, rng))

    @property
    def projection(self) -> Projection:
        """The output projection, from hidden states to logits."""
        if self.softmax is not None:
            return Projection(tf.convert_to_tensor(self.softmax.kernel), transposed=False)
        return Projection(tf.convert_to_tensor(self.embedding.embeddings), transposed=True)

    def start_cache(self, batch: tf.Tensor | int, length: tf.Tensor | int, beams: int = 1) -> Cache:
        """Return an empty cache for `batch` texts of at most `length` tokens, `beams` of each."""
        return self.decoder.start_cache(batch, length, beams)

    def decode_step(self, tokens, cache: Cache, position, ancestors=None):
        """Return the logits of the next token of K continuations a text.

        Args:
            tokens: int32 [B, K], the token before it; `BOS_ID` at position 0.
            cache: from `start_cache` or the last step.
            position: int32 scalar, 0 for the first token.
            ancestors: int32 [B, K, T], see `Transformer.decode_step`; not needed where K is 1.

        Returns:
            float32 [B, K, V], and the new cache.
        """
        x = self._embed(tokens, tf.fill(tf.shape(tokens), position))  # [B, K, D]
        size, beams = tf.shape(cache[0]["key"])[2], tf.shape(tokens)[1]
        sight = self.positions.step_sight(size, position, beams, ancestors)
        x, cache = self.decoder.step(x, cache, position, sight)
        return self.projection.logits(self._normalized(x)), cache

    def _embed(self, tokens, token_positions) -> tf.Tensor:
        x = self.embedding(tokens) * self.config.width**0.5
        return self.positions.add_to(x, token_positions)  # [B, L, D]

    def _normalized(self, x: tf.Tensor) -> tf.Tensor:
        return x if self.decoder_norm is None else self.decoder_norm(x)
