"""Drawing translations at random: ancestral sampling, with temperature, top-k and top-p.

One uniform number decides a token. It is a function of (seed, sentence, sample, position), so the
other sentences of a batch change nothing. Every sample is a row of its own.

Axis letters: R rows, S source length, T room for the longest translation, V vocabulary.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data_pipeline.dataset.tokenizer import BOS_ID, EOS_ID, PAD_ID
from trainer.decoding.beam import Found, normalized
from trainer.decoding.constraints import apply_constraints
from trainer.decoding.options import NEVER, SamplingOptions, SearchOptions
from trainer.decoding.predictor import State, TranslationPredictor


class Draw(NamedTuple):
    """Samples between two tokens; every field but `position` has the rows first.

    Attributes:
        position: int32 scalar, tokens written so far.
        limit: int32 [R], tokens that a translation may have.
        prefix: int32 [R, T], what it must begin with, then 0.
        uniform: float32 [R, T], what decides each token.
        written: int32 [R, T].
        log_p: float32 [R], log probability under the model as it is, without temperature.
        ended: bool [R].
        model: the predictor's state.
    """

    position: tf.Tensor
    limit: tf.Tensor
    prefix: tf.Tensor
    uniform: tf.Tensor
    written: tf.Tensor
    log_p: tf.Tensor
    ended: tf.Tensor
    model: State


def uniform_numbers(options: SamplingOptions, sentence: int, sample: int, count: int) -> np.ndarray:
    """Return what decides the tokens of one sample, float32 [count], in [0, 1)."""
    key = np.random.SeedSequence([options.seed, sentence, sample])
    return np.random.Generator(np.random.Philox(key)).random(count, np.float32)


def token_probabilities(log_p: tf.Tensor, options: SamplingOptions) -> tf.Tensor:
    """Return the probabilities to draw with.

    Args:
        log_p: float32 [R, V].
        options: temperature, top_k and top_p.

    Returns:
        float32 [R, V]; 0 for what is left out.
    """
    logits = log_p / options.temperature
    if not options.top_k and options.top_p == 1.0:
        return tf.nn.softmax(logits)
    count = min(options.top_k, log_p.shape[-1]) if options.top_k else log_p.shape[-1]
    values, tokens = tf.math.top_k(logits, count)  # [R, C]
    kept = tf.nn.softmax(values)
    before = tf.cumsum(kept, axis=1, exclusive=True)
    # The token that passes top_p still counts, so that there always is one.
    kept = tf.where(before < options.top_p, kept, 0.0)
    kept /= tf.reduce_sum(kept, axis=1, keepdims=True)
    rows = tf.broadcast_to(tf.range(tf.shape(tokens)[0])[:, tf.newaxis], tf.shape(tokens))
    return tf.scatter_nd(tf.stack([rows, tokens], axis=2), kept, tf.shape(log_p))  # [R, V]


def draw_tokens(log_p: tf.Tensor, uniform: tf.Tensor, options: SamplingOptions) -> tf.Tensor:
    """Draw one token for each row, by inverting the cumulative distribution.

    The tokens stand in the order of the vocabulary. In the order of their probabilities, rounding
    could swap two that are nearly equal, and then another one would be drawn.

    Args:
        log_p: float32 [R, V].
        uniform: float32 [R], in [0, 1): what decides.
        options: temperature, top_k and top_p.

    Returns:
        int32 [R].
    """
    probabilities = token_probabilities(log_p, options)  # [R, V]
    ends_at = tf.cumsum(probabilities, axis=1)  # [R, V]
    # XLA sums in parallel, and then rounding lets the sum rise even where a probability is 0.
    numbers, possible = tf.range(tf.shape(log_p)[1]), probabilities > 0
    # Rounding may leave the sum below the number drawn: then the last token is drawn.
    last = tf.reduce_max(tf.where(possible, numbers, 0), axis=1, keepdims=True)  # [R, 1]
    reached = possible & (ends_at > uniform[:, tf.newaxis])  # [R, V]
    return tf.reduce_min(tf.where(reached, numbers, last), axis=1)


class Sampler:
    """Ancestral sampling with one predictor.

    Args:
        predictor: see `trainer.decoding.predictor`.
        options: the rules and the normalisation of scores.
        sampling: how to draw.
    """

    def __init__(
        self, predictor: TranslationPredictor, options: SearchOptions, sampling: SamplingOptions
    ):
        self.predictor, self.options, self.sampling = predictor, options, sampling

    def start(self, source, limit, prefix, uniform) -> Draw:
        """Return the samples before the first token; the encoder runs once for each sentence.

        Args:
            source: int32 [R / samples, S], closed by end tokens; padding only fills the batch.
            limit: int32 [R / samples].
            prefix: int32 [R / samples, T], what a translation must begin with, then 0.
            uniform: float32 [R, T], the samples of a sentence side by side.
        """
        length = tf.shape(prefix)[1]

        def repeat(x):
            return tf.repeat(x, self.sampling.samples, axis=0)

        rows = tf.shape(uniform)[0]
        return Draw(
            position=tf.constant(0),
            limit=repeat(limit),
            prefix=repeat(prefix),
            uniform=uniform,
            written=tf.zeros([rows, length], tf.int32),
            log_p=tf.zeros([rows]),
            ended=repeat(source[:, 0] == PAD_ID),
            model=tf.nest.map_structure(repeat, self.predictor.start(source, length, 1)),
        )

    def is_open(self, draw: Draw) -> tf.Tensor:
        """Return which samples go on, bool [R]."""
        return ~draw.ended & (draw.position < draw.limit)

    def advance(self, draw: Draw, leave: tf.Tensor) -> Draw:
        """Draw on until there is no room, or at most `leave` samples are open."""

        def goes_on(*fields):
            state = Draw(*fields)
            count = tf.reduce_sum(tf.cast(self.is_open(state), tf.int32))
            return (state.position < tf.shape(state.written)[1]) & (count > leave)

        def extend(*fields):
            return tuple(self._extend(Draw(*fields)))

        return Draw(*tf.while_loop(goes_on, extend, tuple(draw)))

    def _extend(self, draw: Draw) -> Draw:
        position = draw.position
        last = tf.gather(draw.written, tf.maximum(position - 1, 0), axis=1)  # [R]
        last = tf.where(position == 0, BOS_ID, last)[:, tf.newaxis]  # [R, 1]
        logits, model = self.predictor.step(last, draw.model, position, None)  # [R, 1, V]
        log_p = tf.nn.log_softmax(logits)
        allowed = apply_constraints(
            log_p, draw.written[:, tf.newaxis], position, draw.prefix, self.options
        )[:, 0]
        decides = tf.gather(draw.uniform, position, axis=1)  # [R]
        token = draw_tokens(allowed, decides, self.sampling)  # [R]
        gained = tf.gather(log_p[:, 0], token, batch_dims=1)  # [R]
        is_open = self.is_open(draw)  # [R]
        here = tf.range(tf.shape(draw.written)[1]) == position
        return Draw(
            position=position + 1,
            limit=draw.limit,
            prefix=draw.prefix,
            uniform=draw.uniform,
            written=tf.where(here & is_open[:, tf.newaxis], token[:, tf.newaxis], draw.written),
            log_p=draw.log_p + tf.where(is_open, gained, 0.0),
            ended=draw.ended | (is_open & (token == EOS_ID)),
            model=model,
        )

    def finish(self, draw: Draw) -> Found:
        """Return the samples, each as the only hypothesis of its row."""
        length = tf.reduce_sum(tf.cast(draw.written > 0, tf.int32), axis=1)  # [R]
        scores = normalized(draw.log_p, tf.maximum(length, 1), self.options)
        log_p = tf.maximum(draw.log_p, NEVER)
        return Found(*(x[:, tf.newaxis] for x in (draw.written, scores, log_p, draw.ended)))

    def grow(self, draw: Draw, positions: tf.Tensor) -> Draw:
        """Return the samples with room for so many more tokens."""
        padding = [[0, 0], [0, positions]]
        return draw._replace(
            prefix=tf.pad(draw.prefix, padding),
            written=tf.pad(draw.written, padding),
            model=self.predictor.grow(draw.model, positions, 1),
        )
