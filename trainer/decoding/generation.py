"""Continuing texts with a language model: sampling token by token, with a cache of keys and values.

A model sees at most a row, as in training. When a text outgrows the row, its last half row is read
again from position 0, and generation goes on from there.

Axis letters: R rows, T tokens of a row, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from data_pipeline.dataset.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from trainer.decoding.devices import decoding_device
from trainer.decoding.options import NEVER, SamplingOptions
from trainer.decoding.sampling import draw_tokens, uniform_numbers


class _Texts(NamedTuple):
    """Texts between two tokens.

    Attributes:
        position: int32 scalar, tokens read or written so far.
        written: int32 [R, T]; after `position` stands the rest of the prompt, then 0.
        ended: bool [R], whose document is over.
        cache: of `DecoderOnly`.
    """

    position: tf.Tensor
    written: tf.Tensor
    ended: tf.Tensor
    cache: Any


class TextGenerator:
    """Continues texts with one model.

    Args:
        model: `trainer.model.decoder_only.DecoderOnly`.
        sampling: how to draw; its `samples` are for the caller, who repeats the prompt.
        row_length: T, tokens that the model sees at most.
    """

    def __init__(self, model: Any, sampling: SamplingOptions, row_length: int):
        self._model, self._sampling = model, sampling
        self._room, self._device = row_length, decoding_device(model)
        on_gpu = self._device is not None and "GPU" in self._device
        compiled = {"jit_compile": on_gpu or None, "autograph": False}
        self._start = tf.function(self._start_texts, **compiled)
        self._advance = tf.function(self._advance_texts, **compiled)

    def stream(self, prompts: np.ndarray, length: int, at_once: int) -> Iterator[np.ndarray]:
        """Yield what follows the prompts, as it grows.

        The same text comes whatever the other rows are: row i draws with the numbers of sample i.

        Args:
            prompts: int32 [R, P], without padding; P is 0 to begin documents. Of a prompt that does
                not fit into the row, its end counts.
            length: tokens to write at most.
            at_once: tokens to write between two results.

        Yields:
            int32 [R, n], n rising up to `length`: the new tokens, and 0 after a document's end.
        """
        rows, room = len(prompts), self._room
        uniform = np.stack([uniform_numbers(self._sampling, 0, row, length) for row in range(rows)])
        new, ended = np.zeros([rows, 0], np.int32), np.zeros(rows, bool)
        while new.shape[1] < length and not ended.all():
            seen = np.concatenate([prompts, new], axis=1)
            if seen.shape[1] >= room:
                seen = seen[:, seen.shape[1] - room // 2 :]
            begin, done = seen.shape[1], new.shape[1]
            end = min(room, begin + length - done)
            numbers = np.zeros([rows, room], np.float32)
            numbers[:, begin:end] = uniform[:, done : done + end - begin]
            written = np.pad(seen, [[0, 0], [0, room - begin]]).astype(np.int32)
            with tf.device(self._device):
                state = self._start(tf.constant(written), tf.constant(ended))
                for stop in [*range(begin + at_once, end, at_once), end]:
                    state = self._advance(state, tf.constant(numbers), tf.constant(stop))
                    part = state.written.numpy()[:, begin:stop]  # [R, stop - begin]
                    yield np.concatenate([new, part], axis=1)
            new, ended = np.concatenate([new, part], axis=1), state.ended.numpy()

    def generate(self, prompts: np.ndarray, length: int) -> np.ndarray:
        """Return all that follows the prompts, int32 [R, n]; see `stream`."""
        *_, found = self.stream(prompts, length, length)
        return found

    def fill(
        self,
        written: tf.Tensor,
        uniform: tf.Tensor | None = None,
        stop: tf.Tensor | None = None,
        temperature: tf.Tensor | float = 1.0,
    ) -> tf.Tensor:
        """Write on in rows that begin with prompts of any length, in one graph.

        Args:
            written: int32 [R, T], with 0 after each prompt.
            uniform: float32 [R, T], in [0, 1): what decides each token; None for 0.5.
            stop: int32, tokens that a row has in the end; None for T.
            temperature: float32, above 0, besides that of the sampling options.

        Returns:
            int32 [R, T], with 0 after each text.
        """
        rows = tf.shape(written)[0]
        texts = self._start_texts(written, tf.zeros([rows], tf.bool))
        if uniform is None:
            uniform = tf.fill(tf.shape(written), 0.5)
        stop = tf.constant(self._room) if stop is None else stop
        return self._advance_texts(texts, uniform, stop, temperature).written

    def _start_texts(self, written: tf.Tensor, ended: tf.Tensor) -> _Texts:
        cache = self._model.start_cache(tf.shape(written)[0], self._room)
        return _Texts(tf.constant(0), written, ended, cache)

    def _advance_texts(
        self, texts: _Texts, uniform: tf.Tensor, stop: tf.Tensor, temperature: Any = 1.0
    ) -> _Texts:
        """Read and write until `stop` tokens stand in the rows, or all have ended."""

        def goes_on(*fields):
            state = _Texts(*fields)
            return (state.position < stop) & ~tf.reduce_all(state.ended)

        def extend(*fields):
            return tuple(self._extend(_Texts(*fields), uniform, temperature))

        return _Texts(*tf.while_loop(goes_on, extend, tuple(texts)))

    def _extend(self, texts: _Texts, uniform: tf.Tensor, temperature: Any) -> _Texts:
        position, written = texts.position, texts.written
        last = tf.gather(written, tf.maximum(position - 1, 0), axis=1)  # [R]
        last = tf.where(position == 0, BOS_ID, last)[:, tf.newaxis]  # [R, 1]
        logits, cache = self._model.decode_step(last, texts.cache, position)  # [R, 1, V]
        log_p = tf.nn.log_softmax(logits[:, 0])
        never = tf.range(log_p.shape[-1])[:, tf.newaxis] == [PAD_ID, UNK_ID, BOS_ID]
        log_p = tf.where(tf.reduce_any(never, axis=-1), NEVER, log_p)  # [R, V]
        drawn = draw_tokens(
            log_p / temperature, tf.gather(uniform, position, axis=1), self._sampling
        )  # [R]
        given = tf.gather(written, position, axis=1)  # [R]
        is_end = (given == 0) & (drawn == EOS_ID)
        ended = texts.ended | is_end
        token = tf.where(given > 0, given, tf.where(ended, PAD_ID, drawn))
        here = tf.range(tf.shape(written)[1]) == position
        written = tf.where(here, token[:, tf.newaxis], written)
        return _Texts(position + 1, written, ended, cache)
