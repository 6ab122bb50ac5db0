"""What a search asks of a model: the next token's logits, and a cache that it can carry.

Axis letters: B batch, S source length, T longest translation, K hypotheses, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from trainer.decoding.forced import cross_attention
from trainer.model.attention import recorded_weights
from trainer.model.layers import write_position
from trainer.model.positions import ancestor_mask

State = Any
"""Nested tensors, each with the batch as its first axis."""


class TranslationPredictor:
    """Encoder-decoder models; several are an ensemble, whose probabilities are averaged.

    Args:
        models: `trainer.model.transformer.Transformer`, of the same vocabularies.
        watches: keep the attention to the source, for `coverage`.
    """

    def __init__(self, models: Sequence[Any], watches: bool = False):
        self._models, self._watches = list(models), watches

    def start(self, source: tf.Tensor, length: tf.Tensor, beams: int) -> State:
        """Return the state before the first token.

        Args:
            source: int32 [B, S], each row closed by its end token, 0 for padding.
            length: T, positions that the cache has room for.
            beams: K.
        """
        segments = tf.cast(source > 0, tf.int32)
        caches = [
            model.start_cache(model.encode(source, segments), length, beams)
            for model in self._models
        ]
        state = {"segments": segments, "caches": caches}
        if self._watches:
            state["looks"] = tf.zeros([tf.shape(source)[0], length * beams, tf.shape(source)[1]])
        return state

    def step(
        self, tokens: tf.Tensor, state: State, position: tf.Tensor, ancestors: tf.Tensor | None
    ) -> tuple[tf.Tensor, State]:
        """Return the logits of the next token, float32 [B, K, V], and the new state.

        Logits equal log probabilities up to a constant for each hypothesis.

        Args:
            tokens: int32 [B, K], the token before it.
            state: from `start` or the last step.
            position: int32 scalar, 0 for the first token.
            ancestors: int32 [B, K, T], see `Transformer.decode_step`; None where K is 1.
        """
        results, caches, looks = [], [], []
        for model, cache in zip(self._models, state["caches"], strict=True):
            with recorded_weights() as weights:
                logits, cache = model.decode_step(
                    tokens, cache, position, state["segments"], ancestors
                )
            if self._watches:
                looks.append(cross_attention(weights, len(model.decoder.layers)))  # [B, K, S]
            results.append(tf.cast(logits, tf.float32))
            caches.append(cache)
        logits = results[0]
        if len(results) > 1:
            logits = tf.reduce_logsumexp(tf.nn.log_softmax(tf.stack(results)), axis=0)
        state = {**state, "caches": caches}
        if self._watches:
            look = tf.reduce_mean(tf.stack(looks), axis=0)[:, tf.newaxis]  # [B, 1, K, S]
            state["looks"] = write_position(state["looks"][:, tf.newaxis], look, position)[:, 0]
        return logits, state

    def coverage(
        self, state: State, position: tf.Tensor, ancestors: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return how much attention each source token got so far, for a coverage penalty.

        Returns:
            float32 [B, K, S], and bool [B, 1, S], False for padding.
        """
        looks = state["looks"]  # [B, T * K, S]
        mask = ancestor_mask(tf.shape(looks)[1], position, ancestors)[:, 0]  # [B, K, T * K]
        total = tf.matmul(tf.cast(mask, tf.float32), looks)  # [B, K, S]
        return total, state["segments"][:, tf.newaxis] > 0

    def grow(self, state: State, positions: tf.Tensor, beams: int) -> State:
        """Return the state with room for so many more positions."""
        caches = [grow_cache(cache, positions, beams) for cache in state["caches"]]
        state = {**state, "caches": caches}
        if self._watches:
            state["looks"] = tf.pad(state["looks"], [[0, 0], [0, positions * beams], [0, 0]])
        return state


def grow_cache(cache: list[dict[str, tf.Tensor]], positions: tf.Tensor, beams: int) -> list:
    """Return a decoder's cache with room for so many more positions."""
    padding = [[0, 0], [0, 0], [0, positions * beams], [0, 0]]
    return [
        {**layer, **{name: tf.pad(layer[name], padding) for name in ("key", "value")}}
        for layer in cache
    ]
