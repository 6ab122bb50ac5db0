"""The Transformer of Attention Is All You Need (Vaswani et al. 2017), encoder and decoder.

Axis letters: B batch, S source length, T target length, N heads, H size of a head, D width,
V target vocabulary.
"""

import keras
import tensorflow as tf

from trainer.model import positions
from trainer.model.attention import dense
from trainer.model.dropout import Dropout, number_dropouts
from trainer.model.embeddings import float32_logits, token_embedding
from trainer.model.layers import DecoderLayer, EncoderLayer, layer_norm


class Transformer(keras.Model):
    """Encoder-decoder Transformer over token ids.

    Args:
        config: `configs.schema.ModelConfig`.
        source_vocab_size: pieces of the source vocabulary.
        target_vocab_size: V, pieces of the target vocabulary.
        joint: both are one vocabulary, so that the embeddings may be shared (3.4).
        bos_id: the token that opens a target sentence.

    Raises:
        ValueError: the configuration shares all embeddings, and there are two vocabularies.
    """

    def __init__(
        self,
        config,
        source_vocab_size: int,
        target_vocab_size: int,
        *,
        joint: bool,
        bos_id: int,
        **kwargs,
    ):
        super().__init__(**kwargs)
        shared = config.tied_embeddings == "all"
        if shared and not (joint and source_vocab_size == target_vocab_size):
            raise ValueError("two vocabularies cannot share one embedding")
        self.config = config
        self.target_vocab_size = target_vocab_size
        self.bos_id = bos_id
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
        self.encoder_layers = [
            EncoderLayer(config, name=f"encoder_{i}") for i in range(config.encoder_layers)
        ]
        self.decoder_layers = [
            DecoderLayer(config, name=f"decoder_{i}") for i in range(config.decoder_layers)
        ]
        # A checkpoint follows attributes; it does not look into Keras' lists.
        for layer in self.encoder_layers + self.decoder_layers:
            setattr(self, layer.name, layer)
        # The last layer of a pre-norm stack ends in a sum that nothing has normalised.
        self.encoder_norm = (
            layer_norm(config.width, "encoder_norm") if config.norm == "pre" else None
        )
        self.decoder_norm = (
            layer_norm(config.width, "decoder_norm") if config.norm == "pre" else None
        )
        number_dropouts(self)
        self.built = True

    def call(self, source, source_segments, target, target_segments, rng=None):
        """Logits of each target token given the source and the target tokens before it.

        Args:
            source: int32 [B, S], token ids, 0 for padding.
            source_segments: int32 [B, S], see `trainer.model.positions`.
            target: int32 [B, T], what is to be predicted (the shift happens here).
            target_segments: int32 [B, T].
            rng: int32 [2], the seed of this step's dropout; None switches dropout off.

        Returns:
            float32 [B, T, V].
        """
        memory = self.encode(source, source_segments, rng)
        shifted = positions.shift_right(target, target_segments, self.bos_id)
        self_mask = positions.same_segment_mask(target_segments, target_segments)
        self_mask &= positions.causal_mask(tf.shape(target)[1])
        cross_mask = positions.same_segment_mask(target_segments, source_segments)
        x = self._embed(
            self.target_embedding, shifted, positions.positions_in_segments(target_segments)
        )
        x = self.target_dropout(x, rng)
        for layer in self.decoder_layers:
            x = layer(x, memory, self_mask, cross_mask, rng)
        return self._logits(x)

    def encode(self, source, source_segments, rng=None) -> tf.Tensor:
        """int32 [B, S] token ids and segments to [B, S, D]."""
        mask = positions.same_segment_mask(source_segments, source_segments)
        x = self._embed(
            self.source_embedding, source, positions.positions_in_segments(source_segments)
        )
        x = self.source_dropout(x, rng)
        for layer in self.encoder_layers:
            x = layer(x, mask, rng)
        return x if self.encoder_norm is None else self.encoder_norm(x)

    def start_cache(
        self, memory: tf.Tensor, length: int | tf.Tensor, beams: int = 1
    ) -> list[dict[str, tf.Tensor]]:
        """Return an empty decoder cache that holds the keys and values of the encoder's output.

        Args:
            memory: [B, S, D].
            length: T, how many positions will be decoded at most.
            beams: K, hypotheses of each sentence.

        Returns:
            for each decoder layer, what `DecoderLayer.step` reads.
        """
        cache = []
        for layer in self.decoder_layers:
            key, value = layer.cross_attention.keys_and_values(memory)  # [B, N, S, H]
            shape = [tf.shape(key)[0], key.shape[1], length * beams, key.shape[3]]
            empty = tf.zeros(shape, key.dtype)  # [B, N, T * K, H]
            cache.append({"key": empty, "value": empty, "memory_key": key, "memory_value": value})
        return cache

    def decode_step(self, tokens, cache, position, source_segments, ancestors=None):
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
        x = self._embed(self.target_embedding, tokens, tf.fill(tf.shape(tokens), position))
        self_mask = positions.ancestor_mask(tf.shape(cache[0]["key"])[2], position, ancestors)
        cross_mask = (source_segments > 0)[:, tf.newaxis, tf.newaxis]  # [B, 1, 1, S]
        updated = []
        for layer, layer_cache in zip(self.decoder_layers, cache, strict=True):
            x, layer_cache = layer.step(x, layer_cache, position, self_mask, cross_mask)
            updated.append(layer_cache)
        return self._logits(x), updated

    def _embed(self, embedding, tokens, token_positions) -> tf.Tensor:
        width = self.config.width
        x = embedding(tokens) * width**0.5  # 3.4: the embeddings are scaled up
        encoding = positions.sinusoidal_positions(token_positions, width)
        return x + tf.cast(encoding, x.dtype)  # [B, L, D]

    def _logits(self, x: tf.Tensor) -> tf.Tensor:
        if self.decoder_norm is not None:
            x = self.decoder_norm(x)
        if self.softmax is not None:
            kernel = tf.cast(self.softmax.kernel, x.dtype)  # [D, V]
            return float32_logits(x, kernel, transposed=False)  # [B, T, V]
        table = tf.cast(self.target_embedding.embeddings, x.dtype)  # [V, D]
        return float32_logits(x, table, transposed=True)  # [B, T, V]
