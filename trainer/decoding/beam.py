"""Beam search over one batch; a beam of 1 is greedy search.

A hypothesis is finished when it ends and is among the best K at that moment; a sentence is done
when K of them are, or when it has reached its longest translation. Hypotheses branch without
moving the model's cache: the search only keeps the table of who descends from whom.

In diverse beam search every group is a beam of its own, of M = K / G hypotheses.

Axis letters: B batch, G groups, M hypotheses of a group, K = G * M, S source length, T room for
the longest translation, V vocabulary.
"""

from typing import NamedTuple

import tensorflow as tf

from data_pipeline.dataset.tokenizer import BOS_ID, EOS_ID, PAD_ID
from trainer.decoding.candidates import log_normalizer, top_tokens
from trainer.decoding.constraints import MOST_FORBIDDEN, allow, changed_scores
from trainer.decoding.options import NEVER, SearchOptions
from trainer.decoding.predictor import State, TranslationPredictor


class Beam(NamedTuple):
    """A search between two tokens; every field but `position` has the batch first.

    Attributes:
        position: int32 scalar, tokens written so far.
        limit: int32 [B], tokens that a translation may have.
        prefix: int32 [B, T], what it must begin with, then 0.
        alive: int32 [B, G, M, T], unfinished hypotheses.
        alive_log_p: float32 [B, G, M], their log probabilities.
        ancestors: int32 [B, K, T], see `Transformer.decode_step`.
        done: int32 [B, G, M, T], finished hypotheses.
        done_log_p: float32 [B, G, M], their log probabilities.
        done_scores: float32 [B, G, M], the same, normalised; `NEVER` for an empty place.
        model: the predictor's state.
    """

    position: tf.Tensor
    limit: tf.Tensor
    prefix: tf.Tensor
    alive: tf.Tensor
    alive_log_p: tf.Tensor
    ancestors: tf.Tensor
    done: tf.Tensor
    done_log_p: tf.Tensor
    done_scores: tf.Tensor
    model: State


class Found(NamedTuple):
    """The hypotheses of a search, the best first.

    Attributes:
        tokens: int32 [B, K, T], each with its end token, then 0.
        scores: float32 [B, K], normalised log probabilities.
        log_p: float32 [B, K], log probabilities.
        ended: bool [B, K], False for what was cut at its longest length; these come last.
    """

    tokens: tf.Tensor
    scores: tf.Tensor
    log_p: tf.Tensor
    ended: tf.Tensor


def normalized(log_p: tf.Tensor, length: tf.Tensor, options: SearchOptions) -> tf.Tensor:
    """Return the normalised scores by which hypotheses are ranked.

    Args:
        log_p: float32, log probabilities.
        length: tokens with the end token; an integer tensor that broadcasts to `log_p`.
        options: the normalisation and its exponent, see `SearchOptions.normalization`.

    Returns:
        float32, of the shape of `log_p`.
    """
    length = tf.cast(length, tf.float32)
    base = (5.0 + length) / 6.0 if options.normalization == "gnmt" else length
    return log_p / base**options.length_penalty


class BeamSearch:
    """Beam search with one predictor and one set of options.

    Args:
        predictor: see `trainer.decoding.predictor`; for a coverage penalty it must watch.
        options: how to search.
    """

    def __init__(self, predictor: TranslationPredictor, options: SearchOptions):
        self.predictor, self.options = predictor, options
        self._groups = options.groups
        self._members = options.beam_size // options.groups

    def start(self, source: tf.Tensor, limit: tf.Tensor, prefix: tf.Tensor) -> Beam:
        """Return the search before the first token.

        Args:
            source: int32 [B, S], each row closed by its end token, 0 for padding; a row of padding
                only fills the batch.
            limit: int32 [B], the most tokens that a translation may have.
            prefix: int32 [B, T], what it must begin with, then 0. It has room for T tokens.
        """
        # A static size where there is one: tf.while_loop wants shapes that stay what they are.
        batch = tf.shape(source)[0] if source.shape[0] is None else source.shape[0]
        length = tf.shape(prefix)[1]
        beams, shape = self.options.beam_size, [batch, self._groups, self._members]
        empty = tf.zeros([*shape, length], tf.int32)
        first_only = tf.where(tf.range(self._members) == 0, 0.0, NEVER)  # equals would stay equal
        vacant = source[:, 0] == PAD_ID
        done_scores = tf.where(vacant, 0.0, NEVER)[:, tf.newaxis, tf.newaxis]
        return Beam(
            position=tf.constant(0),
            limit=limit,
            prefix=prefix,
            alive=empty,
            alive_log_p=tf.broadcast_to(first_only, shape),
            ancestors=tf.fill([batch, beams, length], -1),
            done=empty,
            done_log_p=tf.zeros(shape),
            done_scores=tf.broadcast_to(done_scores, shape),
            model=self.predictor.start(source, length, beams),
        )

    def run(self, source: tf.Tensor, limit: tf.Tensor, longest: int | tf.Tensor) -> Found:
        """Search to the end in one graph, as an exported model does.

        Args:
            source: int32 [B, S], see `start`.
            limit: int32 [B], the most tokens that a translation may have.
            longest: T, the largest of these.
        """
        prefix = tf.zeros([tf.shape(source)[0], longest], tf.int32)
        return self.finish(self.advance(self.start(source, limit, prefix), tf.constant(0)))

    def is_open(self, beam: Beam) -> tf.Tensor:
        """Return which sentences are not done, bool [B]."""
        waits = tf.reduce_any(beam.done_scores <= NEVER / 2, axis=[1, 2])
        return waits & (beam.position < beam.limit)

    def advance(self, beam: Beam, leave: tf.Tensor) -> Beam:
        """Search on until there is no room, or at most `leave` sentences are open.

        Args:
            beam: the search so far.
            leave: int32 scalar; 0 to finish all sentences.
        """

        def goes_on(*fields):
            state = Beam(*fields)
            count = tf.reduce_sum(tf.cast(self.is_open(state), tf.int32))
            return (state.position < tf.shape(state.alive)[3]) & (count > leave)

        def extend(*fields):
            return tuple(self._extend(Beam(*fields)))

        return Beam(*tf.while_loop(goes_on, extend, tuple(beam)))

    def _extend(self, beam: Beam) -> Beam:
        """Add one token to every hypothesis of the open sentences."""
        position, beams = beam.position, self.options.beam_size
        length = tf.shape(beam.alive)[3]
        here = tf.range(length) == position  # [T]
        written = tf.reshape(beam.alive, [-1, beams, length])  # [B, K, T]
        last = tf.gather(written, tf.maximum(position - 1, 0), axis=2)  # [B, K]
        last = tf.where(position == 0, BOS_ID, last)
        ancestors = tf.where(here, tf.range(beams)[:, tf.newaxis], beam.ancestors)
        logits, model = self.predictor.step(
            last, beam.model, position, ancestors if beams > 1 else None
        )
        scores, member, token = self._candidates(logits, beam, written)  # [B, G, 2M]
        ends = token == EOS_ID
        is_open = self.is_open(beam)[:, tf.newaxis, tf.newaxis]  # [B, 1, 1]
        extended = tf.gather(beam.alive, member, batch_dims=2)  # [B, G, 2M, T]
        extended = tf.where(here, token[..., tf.newaxis], extended)

        # Finished: only what would be among the best M, and only while the sentence is open.
        best = slice(self._members)
        finishes = (ends & (scores > NEVER / 2))[..., best] & is_open
        new_scores = normalized(scores[..., best], position + 1, self.options)
        if self.options.coverage_penalty:
            covered = self._coverage(model, position, ancestors)  # [B, G, M]
            new_scores += tf.gather(covered, member[..., best], batch_dims=2)
        new_scores = tf.where(finishes, new_scores, NEVER)
        done_scores, kept = tf.math.top_k(
            tf.concat([beam.done_scores, new_scores], 2), self._members
        )
        done = tf.gather(tf.concat([beam.done, extended[..., best, :]], 2), kept, batch_dims=2)
        done_log_p = tf.gather(
            tf.concat([beam.done_log_p, scores[..., best]], 2), kept, batch_dims=2
        )

        # Alive: the first M that do not end; the candidates are in the order of their rank.
        order = tf.where(ends, 0, tf.range(2 * self._members, 0, -1))
        _, kept = tf.math.top_k(order, self._members)
        alive_log_p = tf.gather(tf.where(ends, NEVER, scores), kept, batch_dims=2)
        alive = tf.gather(extended, kept, batch_dims=2)
        origin = tf.gather(member, kept, batch_dims=2)  # [B, G, M]
        origin += self._members * tf.range(self._groups)[:, tf.newaxis]
        origin = tf.reshape(origin, [-1, beams])  # [B, K]
        return Beam(
            position=position + 1,
            limit=beam.limit,
            prefix=beam.prefix,
            alive=tf.where(is_open[..., tf.newaxis], alive, beam.alive),
            alive_log_p=tf.where(is_open, alive_log_p, beam.alive_log_p),
            ancestors=tf.gather(ancestors, origin, batch_dims=1),
            done=done,
            done_log_p=done_log_p,
            done_scores=done_scores,
            model=model,
        )

    def _coverage(self, model: State, position: tf.Tensor, ancestors: tf.Tensor) -> tf.Tensor:
        """Return the coverage penalty of every hypothesis, float32 [B, G, M]."""
        covered, counts = self.predictor.coverage(
            model, position, ancestors if self.options.beam_size > 1 else None
        )
        penalty = tf.math.log(tf.clip_by_value(covered, 1e-6, 1.0))  # [B, K, S]
        penalty = tf.reduce_sum(tf.where(counts, penalty, 0.0), axis=2)
        shape = [-1, self._groups, self._members]
        return self.options.coverage_penalty * tf.reshape(penalty, shape)  # [B, G, M]

    def _candidates(self, logits, beam: Beam, written) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Return the best extensions of every group, the best first.

        Nothing but the product that gives the logits, the sum of their exponentials and the search
        for the largest looks at the whole vocabulary: the rest is done on the few that it finds.

        Args:
            logits: float32 [B, K, V].
            beam: the search before this token.
            written: int32 [B, K, T], the hypotheses.

        Returns:
            log probabilities, member of the group and token of each, [B, G, 2M].
        """
        members, vocabulary, options = self._members, logits.shape[-1], self.options
        shape = [-1, self._groups, members]
        forced = tf.gather(beam.prefix, beam.position, axis=1)  # [B], 0 for none
        normalizer = log_normalizer(logits)  # [B, K, 1]
        of_forced = tf.gather(logits, forced[:, tf.newaxis], axis=2, batch_dims=1) - normalizer
        of_forced = tf.reshape(of_forced, [*shape, 1])  # [B, G, M, 1]
        values, normalizer = changed_scores(logits, normalizer, written, beam.position, options)
        values = tf.reshape(values, [*shape, vocabulary])  # [B, G, M, V]
        normalizer = tf.reshape(normalizer, [*shape, 1])  # [B, G, M, 1]
        # The 2M best of a group are among the 2M best of each member that are allowed.
        width = min(2 * members + MOST_FORBIDDEN, vocabulary)
        chosen = tf.zeros([tf.shape(values)[0], vocabulary])  # by how many earlier groups
        found = []
        for group in range(self._groups):
            best, tokens = top_tokens(
                values[:, group] - options.diversity * chosen[:, tf.newaxis]
                if group
                else values[:, group],
                width,
            )  # [B, M, W]
            if group:
                best = tf.gather(values[:, group], tokens, batch_dims=2)
            log_p, tokens = allow(
                best - normalizer[:, group],
                tokens,
                beam.position,
                forced,
                of_forced[:, group],
                options,
            )
            ranks = totals = log_p + beam.alive_log_p[:, group, :, tf.newaxis]  # [B, M, W]
            if group:
                ranks -= options.diversity * tf.gather(chosen, tokens, batch_dims=1)
            flat = [-1, members * width]
            _, places = tf.math.top_k(tf.reshape(ranks, flat), 2 * members)  # [B, 2M]
            totals, tokens = (
                tf.gather(tf.reshape(x, flat), places, batch_dims=1) for x in (totals, tokens)
            )
            found.append((totals, places // width, tokens))
            if group + 1 < self._groups:
                best = tf.one_hot(tokens[:, :members], vocabulary)  # [B, M, V]
                chosen += tf.reduce_sum(best, axis=1)
        scores, member, token = (tf.stack(part, axis=1) for part in zip(*found, strict=True))
        return scores, member, token

    def finish(self, beam: Beam) -> Found:
        """Return all hypotheses: the finished ones, then those that were cut."""
        beams, length = self.options.beam_size, tf.shape(beam.alive)[3]
        flat = [-1, beams]
        ended = tf.reshape(beam.done_scores, flat) > NEVER / 2  # [B, K]
        exists = tf.reshape(beam.alive_log_p, flat) > NEVER / 2  # [B, K]
        written = tf.reduce_sum(tf.cast(beam.alive > 0, tf.int32), axis=3)  # [B, G, M]
        cut_scores = normalized(beam.alive_log_p, tf.maximum(written, 1), self.options)
        # The K finished hypotheses, then the K unfinished ones: [B, 2K], [B, 2K] and [B, 2K, T].
        scores = tf.concat([tf.reshape(x, flat) for x in (beam.done_scores, cut_scores)], 1)
        log_p = tf.concat([tf.reshape(x, flat) for x in (beam.done_log_p, beam.alive_log_p)], 1)
        tokens = tf.concat([tf.reshape(x, [-1, beams, length]) for x in (beam.done, beam.alive)], 1)
        # Sorted within each kind: first what has ended, then what was cut, then empty places.
        by_score = tf.argsort(scores, axis=1, direction="DESCENDING", stable=True)  # [B, 2K]
        zero = tf.zeros_like(ended, tf.int32)
        kind = tf.concat([tf.where(ended, zero, 2), tf.where(exists, zero + 1, 2)], 1)
        kind = tf.gather(kind, by_score, batch_dims=1)
        order = tf.gather(by_score, tf.argsort(kind, axis=1, stable=True), batch_dims=1)
        order = order[:, :beams]
        is_done = tf.concat([ended, tf.zeros_like(ended)], 1)
        return Found(*(tf.gather(x, order, batch_dims=1) for x in (tokens, scores, log_p, is_done)))

    def grow(self, beam: Beam, positions: tf.Tensor) -> Beam:
        """Return the search with room for so many more tokens."""
        more = [0, positions]
        wide = [[0, 0], [0, 0], [0, 0], more]
        return beam._replace(
            prefix=tf.pad(beam.prefix, [[0, 0], more]),
            alive=tf.pad(beam.alive, wide),
            done=tf.pad(beam.done, wide),
            ancestors=tf.pad(beam.ancestors, [[0, 0], [0, 0], more], constant_values=-1),
            model=self.predictor.grow(beam.model, positions, self.options.beam_size),
        )
