"""Greedy and beam search with a key/value cache, compiled, over batches of a few static shapes.

Axis letters: B batch, S source length, T longest translation, K beams, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

_NEVER = -1e30  # a score that no hypothesis reaches; finite, so that it can be added to
MAX_SOURCE = 1024  # tokens of a source sentence, with its end
_LENGTHS = (16, 32, 64, 128, 256, 512, MAX_SOURCE)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that are not text."""

    pad: int = 0
    unknown: int = 1
    bos: int = 2
    eos: int = 3


def longest_translation(source_length, ratio: float):
    """T for a (padded) source length, a Python or a tensor integer."""
    if isinstance(source_length, tf.Tensor):
        return tf.cast(tf.cast(source_length, tf.float32) * ratio, tf.int32) + 10
    return int(source_length * ratio) + 10


def _log_probabilities(logits: tf.Tensor, special: SpecialTokens) -> tf.Tensor:
    """float32 [..., V], with no chance for the tokens that a translation cannot hold."""
    never = [special.pad, special.unknown, special.bos]
    mask = tf.reduce_any(tf.range(logits.shape[-1])[:, tf.newaxis] == never, axis=-1)  # [V]
    return tf.where(mask, _NEVER, tf.nn.log_softmax(logits))


def greedy_search(model, source, max_length, special=SpecialTokens()) -> tf.Tensor:
    """The likeliest next token, again and again until the end of the sentence.

    Args:
        model: `trainer.model.transformer.Transformer`.
        source: int32 [B, S], each row closed by its end-of-sentence token, 0 for padding.
        max_length: T.
        special: the special token ids.

    Returns:
        int32 [B, T]: the translation with its end-of-sentence token, then 0.
    """
    segments = tf.cast(source != special.pad, tf.int32)
    cache = model.start_cache(model.encode(source, segments), max_length)
    batch = tf.shape(source)[0]

    def unfinished(position, tokens, finished, written, cache):
        return (position < max_length) & ~tf.reduce_all(finished)

    def extend(position, tokens, finished, written, cache):
        logits, cache = model.decode_step(tokens, cache, position, segments)
        best = tf.argmax(_log_probabilities(logits, special), -1, output_type=tf.int32)  # [B]
        best = tf.where(finished, special.pad, best)
        written = tf.where(tf.range(max_length) == position, best[:, tf.newaxis], written)
        return position + 1, best, finished | (best == special.eos), written, cache

    state = (
        tf.constant(0),
        tf.fill([batch], special.bos),
        source[:, 0] == special.pad,  # a row that only fills the batch
        tf.zeros([batch, max_length], tf.int32),
        cache,
    )
    return tf.while_loop(unfinished, extend, state)[3]


def beam_search(
    model, source, max_length, beam_size: int, length_penalty: float, special=SpecialTokens()
) -> tuple[tf.Tensor, tf.Tensor]:
    """Beam search with the length penalty of Wu et al. 2016 (GNMT, equation 14).

    A hypothesis is finished when it ends and is among the best K at that moment; a sentence is
    done when K of them are. A beam of 1 is therefore greedy search.

    Args:
        model: `trainer.model.transformer.Transformer`.
        source: int32 [B, S], each row closed by its end-of-sentence token, 0 for padding.
        max_length: T.
        beam_size: K.
        length_penalty: alpha; scores are log probabilities over ((5 + length) / 6) ** alpha.
        special: the special token ids.

    Returns:
        int32 [B, K, T], best hypothesis first, each with its end-of-sentence token, then 0;
        and float32 [B, K], their scores. Where fewer than K finished within T tokens, the
        unfinished ones follow, best first, with scores that only say that they are unfinished.
    """
    # A static size where there is one: tf.while_loop wants shapes that stay what they are.
    batch = tf.shape(source)[0] if source.shape[0] is None else source.shape[0]
    beams = beam_size
    segments = tf.repeat(tf.cast(source != special.pad, tf.int32), beams, axis=0)  # [B * K, S]
    memory = model.encode(source, tf.cast(source != special.pad, tf.int32))
    cache = model.start_cache(tf.repeat(memory, beams, axis=0), max_length)
    row = tf.range(batch)[:, tf.newaxis] * beams  # [B, 1], the first beam of each sentence

    def penalty(length):
        return ((5.0 + tf.cast(length, tf.float32)) / 6.0) ** length_penalty

    def select(sequences, indices):
        return tf.gather(sequences, indices, batch_dims=1)  # [B, K, T]

    def unfinished(position, alive, alive_scores, done, done_scores, cache):
        all_done = tf.reduce_all(done_scores > _NEVER / 2)
        return (position < max_length) & ~all_done

    def extend(position, alive, alive_scores, done, done_scores, cache):
        last = tf.gather(alive, tf.maximum(position - 1, 0), axis=2)  # [B, K]
        last = tf.where(position == 0, special.bos, last)
        logits, cache = model.decode_step(tf.reshape(last, [-1]), cache, position, segments)
        scores = _log_probabilities(logits, special)  # [B * K, V]
        vocabulary = logits.shape[-1]
        # The 2 K best of a sentence are among the 2 K best of each of its beams.
        beam_scores, beam_tokens = tf.math.top_k(scores, min(2 * beams, vocabulary))
        width = beam_scores.shape[-1]
        beam_scores = tf.reshape(beam_scores, [batch, beams, width])
        scores = beam_scores + alive_scores[:, :, tf.newaxis]  # [B, K, 2K]
        scores, flat = tf.math.top_k(tf.reshape(scores, [batch, -1]), 2 * beams)  # [B, 2K]
        beam = flat // width  # [B, 2K]
        token = tf.gather(tf.reshape(beam_tokens, [batch, -1]), flat, batch_dims=1)
        extended = select(alive, beam)  # [B, 2K, T]
        extended = tf.where(tf.range(max_length) == position, token[:, :, tf.newaxis], extended)
        ends = token == special.eos

        # Finished: only what would be among the K best, and only while the sentence is open.
        still_open = tf.reduce_any(done_scores <= _NEVER / 2, axis=1, keepdims=True)
        finishes = (ends & (scores > _NEVER / 2))[:, :beams] & still_open
        new_scores = tf.where(finishes, scores[:, :beams] / penalty(position + 1), _NEVER)
        done_scores, keep = tf.math.top_k(tf.concat([done_scores, new_scores], 1), beams)
        done = select(tf.concat([done, extended[:, :beams]], 1), keep)

        alive_scores, keep = tf.math.top_k(tf.where(ends, _NEVER, scores), beams)
        alive = select(extended, keep)
        origin = tf.reshape(row + tf.gather(beam, keep, batch_dims=1), [-1])  # [B * K]
        # The encoder's side is the same for all beams of a sentence and stays where it is.
        cache = [
            {
                **layer,
                "key": tf.gather(layer["key"], origin),
                "value": tf.gather(layer["value"], origin),
            }
            for layer in cache
        ]
        return position + 1, alive, alive_scores, done, done_scores, cache

    empty = tf.zeros([batch, beams, max_length], tf.int32)
    first_only = tf.where(tf.range(beams) == 0, 0.0, _NEVER)  # equal beams would stay equal
    state = (
        tf.constant(0),
        empty,
        tf.tile(first_only[tf.newaxis], [batch, 1]),
        empty,
        tf.tile(tf.where(source[:, :1] == special.pad, 0.0, _NEVER), [1, beams]),
        cache,
    )
    _, alive, alive_scores, done, done_scores, _ = tf.while_loop(unfinished, extend, state)
    # Below every finished hypothesis and above the empty slots. They are sorted, and stay so:
    # equal scores keep their order in top_k.
    alive_scores = tf.where(alive_scores > _NEVER / 2, _NEVER / 4, _NEVER)
    scores, keep = tf.math.top_k(tf.concat([done_scores, alive_scores], 1), beams)
    return select(tf.concat([done, alive], 1), keep), scores


class Decoder:
    """Translates lists of token ids.

    Args:
        model: `trainer.model.transformer.Transformer`.
        config: `configs.schema.DecodeConfig`.
        beam_size: beams; 1 for greedy search.
        jit_compile: compile with XLA, once for each of a few shapes; None for only where there
            is a GPU. On a CPU the graph runs as fast, and starts without compiling.
        special: the special token ids.
    """

    def __init__(self, model, config, beam_size: int, jit_compile=None, special=SpecialTokens()):
        if jit_compile is None:
            jit_compile = bool(tf.config.list_physical_devices("GPU"))
        self.config = config
        self.beam_size = beam_size
        self.special = special
        self.static_rows = jit_compile

        def search(source: tf.Tensor) -> tf.Tensor:
            length = longest_translation(tf.shape(source)[1], config.max_length_ratio)
            if beam_size == 1:
                return greedy_search(model, source, length, special)
            beams, _ = beam_search(model, source, length, beam_size, config.length_penalty, special)
            return beams[:, 0]

        signature = [tf.TensorSpec([None, None], tf.int32)]
        self._search = tf.function(search, input_signature=signature, jit_compile=jit_compile)

    def translate(
        self, sentences: list[list[int]], between: Callable[[], Any] | None = None
    ) -> list[list[int]]:
        """The best translation of each sentence, in order.

        Args:
            sentences: token ids without special tokens; an empty list stays empty. What is
                longer than 1,023 tokens is cut there.
            between: called after every batch; what it raises ends the work.

        Returns:
            token ids without special tokens.
        """
        translations: list[list[int]] = [[] for _ in sentences]
        for numbers, batch in self._batches(sentences):
            for number, ids in zip(numbers, self._search(batch).numpy(), strict=False):
                end = np.flatnonzero((ids == self.special.eos) | (ids == self.special.pad))
                translations[number] = ids[: end[0] if len(end) else None].tolist()
            if between:
                between()
        return translations

    def _batches(self, sentences: list[list[int]]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Numbers of sentences of similar length, and their tokens, int32 [B, S]."""
        by_length: dict[int, list[int]] = {length: [] for length in _LENGTHS}
        for number, ids in enumerate(sentences):
            if ids:
                size = min(len(ids) + 1, MAX_SOURCE)
                by_length[next(length for length in _LENGTHS if size <= length)].append(number)
        for length, numbers in by_length.items():
            # The longest first, so that sentences that end at about the same time share a batch.
            numbers.sort(key=lambda number: -len(sentences[number]))
            rows = max(1, self.config.batch_tokens // length)
            for start in range(0, len(numbers), rows):
                chunk = numbers[start : start + rows]
                batch = np.zeros([rows if self.static_rows else len(chunk), length], np.int32)
                for row, number in enumerate(chunk):
                    ids = sentences[number][: length - 1]
                    batch[row, : len(ids)] = ids
                    batch[row, len(ids)] = self.special.eos
                yield chunk, batch
