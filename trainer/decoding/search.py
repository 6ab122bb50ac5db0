"""Translating lists of token ids: batches of a few shapes, which shrink as sentences finish.

The host drives a compiled search. It stops whenever half of its sentences are done, takes these
out, and goes on with a smaller batch; and it starts with room for short translations and gives
more only to those that need it. Neither changes a translation. Several devices take a batch each,
and several workers share the batches.
"""

import dataclasses
import itertools
import json
import queue
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipeline.dataset.tokenizer import EOS_ID, PAD_ID
from trainer.decoding.beam import BeamSearch
from trainer.decoding.devices import HOST, decoding_devices, given_weights, weights_on
from trainer.decoding.options import MAX_SOURCE, SamplingOptions, SearchOptions
from trainer.decoding.predictor import TranslationPredictor
from trainer.decoding.sampling import Sampler, uniform_numbers
from trainer.distributed import cluster

_LENGTHS = (16, 32, 64, 128, 256, 512, MAX_SOURCE)
_FIRST_ROOM = 32  # target tokens
_SMALLEST = 4  # rows: smaller batches are not made smaller


@dataclass(frozen=True)
class Hypothesis:
    """One translation of a sentence.

    Attributes:
        ids: token ids without special tokens.
        score: the normalised log probability, by which hypotheses are ranked.
        log_probability: natural logarithm, the end token counted; with a repetition penalty, the
            sum of what that has made of the logarithms.
        ended: False where it was cut at its longest length.
    """

    ids: list[int]
    score: float
    log_probability: float
    ended: bool


@dataclass(frozen=True)
class _Batch:
    """Sentences of similar length.

    Attributes:
        numbers: of the sentences; fewer than rows where the batch is filled up.
        source: int32 [B, S].
        limit: int32 [B], tokens that a translation may have.
        prefix: int32 [B, P].
    """

    numbers: list[int]
    source: np.ndarray
    limit: np.ndarray
    prefix: np.ndarray


_Rows = list[tuple[int, list[Hypothesis]]]
"""Rows of a batch with their hypotheses, in rising order."""


class Decoder:
    """Translates lists of token ids, on all devices that hold the model.

    Args:
        model: a `trainer.model.transformer.Transformer`, a list of them as an ensemble, or a
            predictor, which has the methods of a `TranslationPredictor`.
        options: how to search.
        sampling: how to draw instead of searching for the best; None to search.
        strategy: whose workers share the sentences, and so search together; None to search alone.
        jit_compile: compile with XLA, once for each of a few shapes; None for only on a GPU. On a
            CPU the graph runs as fast, and starts without compiling.
    """

    def __init__(
        self,
        model: Any,
        options: SearchOptions,
        *,
        sampling: SamplingOptions | None = None,
        strategy: tf.distribute.Strategy | None = None,
        jit_compile: bool | None = None,
    ):
        self.options, self.sampling = options, sampling
        self._strategy = strategy
        self._worker = cluster.worker_of(strategy) if strategy else cluster.Worker(0, 1)
        self._samples = sampling.samples if sampling else 1
        self._searched = 0  # sentences before those of this search
        predictor = model
        models: Sequence[Any] = []
        if isinstance(model, list | tuple) or hasattr(model, "encode"):
            models = model if isinstance(model, list | tuple) else [model]
            predictor = TranslationPredictor(models, watches=options.coverage_penalty > 0)
        self._devices = decoding_devices(models[0]) if models else [HOST]
        self._static = "GPU" in self._devices[0] if jit_compile is None else jit_compile
        self._variables = [variable for one in models for variable in one.weights]
        self._search: Any = (
            Sampler(predictor, options, sampling) if sampling else BeamSearch(predictor, options)
        )
        self._functions: tuple[Any, Any, Any, Any] | None = None

    def _trace(self) -> tuple[Any, Any, Any, Any]:
        """Return the parts of the search, traced once for all devices and sizes of a batch."""
        if self._functions is None:
            search, compiled = self._search, {"jit_compile": self._static or None}
            weights = [tf.TensorSpec(one.shape, one.dtype) for one in self._variables]
            number = tf.TensorSpec([], tf.int32)
            arguments = [
                tf.TensorSpec([None, None], tf.int32, "source"),
                tf.TensorSpec([None], tf.int32, "limit"),
                tf.TensorSpec([None, None], tf.int32, "prefix"),
            ]
            if self.sampling:
                arguments.append(tf.TensorSpec([None, None], tf.float32, "uniform"))

            def advance(state, leave):
                state = search.advance(state, leave)
                return state, search.is_open(state)

            def trace(function, *signature, **options):
                function = tf.function(function, autograph=False, **options)
                return function.get_concrete_function(*signature)

            start = trace(
                given_weights(search.start, self._variables), weights, *arguments, **compiled
            )
            state = tf.nest.map_structure(
                lambda x: tf.TensorSpec(x.shape, x.dtype), start.structured_outputs
            )
            self._functions = (
                start,
                trace(given_weights(advance, self._variables), weights, state, number, **compiled),
                trace(search.finish, state, **compiled),
                trace(search.grow, state, number),
            )
        return self._functions

    def translate(
        self, sentences: Sequence[list[int]], between: Callable[[int], Any] | None = None
    ) -> list[list[int]]:
        """Return the best translation of each sentence, in order; see `search`."""
        found = self.search(sentences, between=between)
        return [hypotheses[0].ids if hypotheses else [] for hypotheses in found]

    def search(
        self,
        sentences: Sequence[list[int]],
        prefixes: Sequence[list[int]] | None = None,
        between: Callable[[int], Any] | None = None,
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses of each sentence, in order, the best first.

        Args:
            sentences: token ids without special tokens; an empty list has no hypotheses. What is
                longer than 1,023 tokens is cut there.
            prefixes: what each translation must begin with, token ids; None for anything.
            between: called after every batch with the number of its sentences, equally often on
                all workers; what it raises ends the work.

        Returns:
            for each sentence, its `beam_size` best hypotheses or as many as there are, or all its
            samples in the order in which they were drawn.
        """
        found: list[list[Hypothesis]] = [[] for _ in sentences]
        batches, worker = list(self._batches(sentences, prefixes)), self._worker
        own = batches[worker.index :: worker.count]
        with closing(self._search_all(own)) as searched:
            for batch, results in searched:
                for row, hypotheses in results:
                    number = row // self._samples
                    if number < len(batch.numbers):
                        found[batch.numbers[number]] += hypotheses
                if between:
                    between(len(batch.numbers))
        if worker.count > 1:
            if between and len(own) < len(batches[:: worker.count]):
                between(0)
            self._gather(found)
        self._searched += len(found)
        return found

    def _gather(self, found: list[list[Hypothesis]]) -> None:
        """Fill in what the other workers found."""
        own = {
            number: [dataclasses.astuple(one) for one in hypotheses]
            for number, hypotheses in enumerate(found)
            if hypotheses
        }
        for text in cluster.gather(self._strategy, json.dumps(own)):
            for number, hypotheses in json.loads(text).items():
                found[int(number)] = [Hypothesis(*one) for one in hypotheses]

    def _search_all(self, batches: Iterable[_Batch]) -> Generator[tuple[_Batch, _Rows], None, None]:
        """Yield the batches, in order, and what was found for their rows."""
        self._trace()
        weights: dict[str, list[tf.Tensor]] = {}
        free: queue.SimpleQueue[str] = queue.SimpleQueue()
        for device in self._devices:
            free.put(device)

        def search(batch: _Batch) -> tuple[_Batch, _Rows]:
            device = free.get()
            try:
                if device not in weights:  # they may have changed since the last search
                    weights[device] = weights_on(device, self._variables)
                with tf.device(device):
                    return batch, self._search_batch(batch, weights[device])
            finally:
                free.put(device)

        if len(self._devices) == 1:
            yield from map(search, batches)
            return
        with ThreadPoolExecutor(len(self._devices)) as pool:
            yield from pool.map(search, batches)

    def _search_batch(self, batch: _Batch, weights: list[tf.Tensor]) -> _Rows:
        start, advance, finish, grow = self._trace()
        longest = int(batch.limit.max())
        if self._static:  # one shape for a length, whatever its sentences
            longest = self.options.longest(batch.source.shape[1]) + batch.prefix.shape[1]
        forced = batch.prefix.shape[1]
        room = longest if self._static else min(longest, max(_FIRST_ROOM, forced))
        prefix = np.pad(batch.prefix, [[0, 0], [0, room - forced]])
        arguments = [batch.source, batch.limit, prefix]
        if self.sampling:
            arguments.append(self._uniform(batch, longest))
        state = start(weights, *map(tf.constant, arguments))
        rows = np.arange(len(batch.source) * self._samples)  # of the batch, at each place
        results: dict[int, list[Hypothesis]] = {}
        # With XLA a batch shrinks once, to a quarter: every size is one more compilation.
        shares = iter([4] if self._static else itertools.repeat(2))
        while True:
            leave = len(rows) // next(shares, len(rows) + 1)
            leave = leave if leave >= _SMALLEST else 0
            state, is_open = advance(weights, state, tf.constant(leave))
            is_open = is_open.numpy()
            places, closed = np.flatnonzero(is_open), np.flatnonzero(~is_open)
            if len(closed):
                done = [part.numpy() for part in finish(state)]
                for place in closed:
                    if rows[place] not in results:  # a row may fill another one's place
                        results[rows[place]] = self._hypotheses(*(part[place] for part in done))
            if not len(places):
                return sorted(results.items())
            if self._static:
                places = np.concatenate([places, closed[: max(0, leave - len(places))]])
            if len(places) < len(rows):
                state, rows = self._select(state, places), rows[places]
            width = state.prefix.shape[1]
            if int(state.position) >= width:
                state = grow(state, tf.constant(min(longest, 2 * width) - width))

    @staticmethod
    def _select(state, places: np.ndarray):
        """Return the state with only these places of the batch."""
        parts = {
            name: tf.nest.map_structure(lambda x: tf.gather(x, places), part)
            for name, part in state._asdict().items()
            if name != "position"
        }
        return state._replace(**parts)

    def _uniform(self, batch: _Batch, length: int) -> np.ndarray:
        assert self.sampling
        uniform = np.zeros([len(batch.source), self._samples, length], np.float32)
        for row, number in enumerate(batch.numbers):
            for sample in range(self._samples):
                whole = self._searched + number
                uniform[row, sample] = uniform_numbers(self.sampling, whole, sample, length)
        return uniform.reshape([-1, length])  # [B * samples, T]

    def _hypotheses(self, tokens, scores, log_p, ended) -> list[Hypothesis]:
        found = []
        for ids, *facts in zip(tokens, scores, log_p, ended, strict=True):
            if not ids[0]:
                continue  # an empty place
            end = np.flatnonzero((ids == EOS_ID) | (ids == PAD_ID))
            text = ids[: end[0] if len(end) else None].tolist()
            found.append(Hypothesis(text, float(facts[0]), float(facts[1]), bool(facts[2])))
        return found

    def _batches(self, sentences, prefixes) -> Iterator[_Batch]:
        """Yield sentences of similar length together."""
        options = self.options
        by_length: dict[int, list[int]] = {length: [] for length in _LENGTHS}
        for number, ids in enumerate(sentences):
            if ids:
                size = min(len(ids) + 1, MAX_SOURCE)
                by_length[next(length for length in _LENGTHS if size <= length)].append(number)
        for length, numbers in by_length.items():
            # The longest first, so that sentences that end at about the same time share a batch.
            numbers.sort(key=lambda number: -len(sentences[number]))
            rows = max(1, options.batch_tokens // (length * self._samples))
            for start in range(0, len(numbers), rows):
                chunk = numbers[start : start + rows]
                height = rows if self._static else len(chunk)
                source, limit = np.zeros([height, length], np.int32), np.ones([height], np.int32)
                begins = [list(prefixes[number]) if prefixes else [] for number in chunk]
                prefix = np.zeros([height, max(map(len, begins))], np.int32)
                for row, number in enumerate(chunk):
                    ids = sentences[number][: length - 1]
                    source[row, : len(ids)] = ids
                    source[row, len(ids)] = EOS_ID
                    prefix[row, : len(begins[row])] = begins[row]
                    limit[row] = options.longest(len(ids) + 1) + len(begins[row])
                yield _Batch(chunk, source, limit, prefix)
