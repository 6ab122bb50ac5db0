"""The Transformer of Attention Is All You Need (Vaswani et al. 2017), encoder and decoder.

Axis letters: B batch, S source length, T target length, K hypotheses, D width, V target
vocabulary.
"""

import keras
import tensorflow as tf

from configs.schema import ModelConfig
from data_pipeline.dataset.tokenizer import BOS_ID
from trainer.model import positions
from trainer.model.attention import dense
from trainer.model.dropout import Dropout, number_dropouts
from trainer.model.embeddings import Projection, token_embedding
from trainer.model.encodings import PositionEncoding, Sight
from trainer.model.norms import final_norm, stack_scales
from trainer.model.stack import Cache, Stack


class Transformer(keras.Model):
    """Encoder-decoder Transformer over token ids.

    Args:
        config: of the model.
        source_vocab_size: pieces of the source vocabulary.
        target_vocab_size: V, pieces of the target vocabulary.
        joint: whether both are one vocabulary, so that the embeddings may be shared (3.4).
        remat: see `trainer.model.stack.Stack`.

    Raises:
        ValueError: the configuration shares all embeddings, and there are two vocabularies.
    """

    def __init__(
        self,
        config: ModelConfig,
        source_vocab_size: int,
        target_vocab_size: int,
        *,
        joint: bool,
        remat: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        shared = config.tied_embeddings == "all"
        if shared and not (joint and source_vocab_size == target_vocab_size):
            raise ValueError("two vocabularies cannot share one embedding")
        self.config = config
        self.target_embedding = token_embedding(target_vocab_size, config.width, "target_embedding")
        self.source_embedding = (
            self.target_embedding
            if shared
            else token_embedding(source_vocab_size, config.width, "source_embedding")
        )
        self.softmax = (
            dense(config.width, target_vocab_size, use_bias=False, name="softmax")
            if config.tied_embeddings == "none"
            else None
        )
        self.source_dropout = Dropout(config.dropout)
        self.target_dropout = Dropout(config.dropout)
        encoder_scales, decoder_scales = stack_scales(
            config, config.encoder_layers, config.decoder_layers
        )
        self.encoder = Stack(
            self, config, "encoder", config.encoder_layers, scales=encoder_scales, remat=remat
        )
        self.decoder = Stack(
            self,
            config,
            "decoder",
            config.decoder_layers,
            cross_attention=True,
            scales=decoder_scales,
            remat=remat,
        )
        self.encoder_norm = final_norm(config, "encoder_norm")
        self.decoder_norm = final_norm(config, "decoder_norm")
        self.encoder_positions = PositionEncoding(config, causal=False, name="encoder_positions")
        self.decoder_positions = PositionEncoding(config, causal=True, name="decoder_positions")
        number_dropouts(self)
        self.on_tpu = False  # set by `optimize_for_tpu`
        self.built = True

    def call(self, source, source_segments, target, target_segments, rng=None):
        """Return the logits of each target token given the source and the target tokens before it.

        Args:
            source: int32 [B, S], token ids, 0 for padding.
            source_segments: int32 [B, S], see `trainer.model.positions`.
            target: int32 [B, T], what is to be predicted (the shift happens here).
            target_segments: int32 [B, T].
            rng: int32 [2], the seed of this step's dropout; None switches dropout off.

        Returns:
            float32 [B, T, V].
        """
        x = self.hidden(source, source_segments, target, target_segments, rng)
        return self.projection.logits(x)

    def hidden(
        self, source, source_segments, target, target_segments, rng=None, kept=(None, None)
    ) -> tf.Tensor:
        """Return the hidden states that `projection` turns into logits, [B, T, D].

        Args:
            source: int32 [B, S], as of `call`.
            source_segments: int32 [B, S].
            target: int32 [B, T].
            target_segments: int32 [B, T].
            rng: int32 [2], or None.
            kept: bool [B, S] and [B, T], which embeddings of source tokens and of the decoder's
                input tokens stay; the others are 0, with their positions added as ever. None
                keeps all.
        """
        source_kept, target_kept = kept
        memory = self.encode(source, source_segments, rng, source_kept)
        shifted = positions.shift_right(target, target_segments, BOS_ID)
        mask = positions.same_segment_mask(target_segments, target_segments)
        mask &= positions.causal_mask(tf.shape(target)[1])
        places = tf.range(tf.shape(target)[1])
        sight = self.decoder_positions.sight(mask, places, places)
        cross_sight = Sight(positions.same_segment_mask(target_segments, source_segments))
        x = self._embed_target(
            shifted, positions.positions_in_segments(target_segments), target_kept
        )
        x = self.decoder(self.target_dropout(x, rng), sight, rng, memory, cross_sight)
        return self._normalized(x)

    def encode(self, source, source_segments, rng=None, kept=None) -> tf.Tensor:
        """Return the encoder's output, [B, S, D], of token ids and segments, int32 [B, S].

        `kept` is as of `hidden`, for the source.
        """
        mask = positions.same_segment_mask(source_segments, source_segments)
        places = tf.range(tf.shape(source)[1])
        sight = self.encoder_positions.sight(mask, places, places)
        x = _cut(self.source_embedding(source), kept) * self.config.width**0.5  # 3.4
        x = self.encoder_positions.add_to(x, positions.positions_in_segments(source_segments))
        x = self.encoder(self.source_dropout(x, rng), sight, rng)
        return x if self.encoder_norm is None else self.encoder_norm(x)

    def start_cache(self, memory: tf.Tensor, length: tf.Tensor | int, beams: int = 1) -> Cache:
        """Return an empty decoder cache that holds the keys and values of the encoder's output.

        Args:
            memory: [B, S, D].
            length: T, how many positions will be decoded at most.
            beams: K, hypotheses of each sentence.
        """
        return self.decoder.start_cache(tf.shape(memory)[0], length, beams, memory)

    def decode_step(self, tokens, cache: Cache, position, source_segments, ancestors=None):
        """Return the logits of the next token of K hypotheses a sentence.

        Nothing is moved when hypotheses branch or end: `ancestors` tells which entries of the
        cache belong to which hypothesis.

        Args:
            tokens: int32 [B, K], the token before it.
            cache: from `start_cache` or the last step.
            position: int32 scalar, 0 for the first token.
            source_segments: int32 [B, S], 0 for padding.
            ancestors: int32 [B, K, T], the hypothesis that wrote each position of this one, up to
                `position`, and -1 for later ones; not needed where K is 1.

        Returns:
            float32 [B, K, V], and the new cache.
        """
        x = self._embed_target(tokens, tf.fill(tf.shape(tokens), position))  # [B, K, D]
        size, beams = tf.shape(cache[0]["key"])[2], tf.shape(tokens)[1]
        sight = self.decoder_positions.step_sight(size, position, beams, ancestors)
        cross_sight = Sight((source_segments > 0)[:, tf.newaxis, tf.newaxis])  # [B, 1, 1, S]
        x, cache = self.decoder.step(x, cache, position, sight, cross_sight)
        return self.projection.logits(self._normalized(x)), cache

    def _embed_target(self, tokens, token_positions, kept=None) -> tf.Tensor:
        x = _cut(self.target_embedding(tokens), kept) * self.config.width**0.5  # 3.4
        return self.decoder_positions.add_to(x, token_positions)  # [B, T, D]

    @property
    def projection(self) -> Projection:
        """The output projection, from hidden states to logits."""
        if self.softmax is not None:
            return Projection(tf.convert_to_tensor(self.softmax.kernel), transposed=False)
        return Projection(tf.convert_to_tensor(self.target_embedding.embeddings), transposed=True)

    def _normalized(self, x: tf.Tensor) -> tf.Tensor:
        return x if self.decoder_norm is None else self.decoder_norm(x)


def _cut(x: tf.Tensor, kept: tf.Tensor | None) -> tf.Tensor:
    """Return the embeddings [B, L, D] with those that are not kept, bool [B, L], set to 0."""
    return x if kept is None else tf.where(kept[..., tf.newaxis], x, tf.zeros([], x.dtype))
