"""Sentences of several requests in one batch: while one is translated, the next one gathers."""

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from trainer.serving.engines import Answer, TranslationEngine
from trainer.serving.metrics import Metrics


class QueueFullError(Exception):
    """There is no room for more sentences."""


@dataclass(frozen=True)
class _Job:
    line: str
    attention: bool
    answer: asyncio.Future


class Batcher:
    """Translates what several requests ask for at the same time.

    Args:
        engine: translates; it is called in a thread of its own, one call at a time.
        metrics: to count batches.
        batch_sentences: in a batch, at most.
        queue_sentences: that may wait.
    """

    def __init__(
        self,
        engine: TranslationEngine,
        metrics: Metrics,
        batch_sentences: int,
        queue_sentences: int,
    ):
        self._engine, self._metrics = engine, metrics
        self._batch, self._limit = batch_sentences, queue_sentences
        self._waiting: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "translate")

    async def translate(self, lines: Sequence[str], attention: bool) -> list[Answer]:
        """Translate each sentence, in order.

        A caller that is cancelled takes its sentences out of the queue.

        Raises:
            QueueFullError: too many sentences wait already.
        """
        if len(self._waiting) + len(lines) > self._limit:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        jobs = [_Job(line, attention, loop.create_future()) for line in lines]
        self._waiting.extend(jobs)
        self._metrics.waiting.set(len(self._waiting))
        self._wake.set()
        try:
            return list(await asyncio.gather(*(job.answer for job in jobs)))
        finally:
            for job in jobs:
                job.answer.cancel()  # changes nothing where it is done
            self._waiting = deque(job for job in self._waiting if not job.answer.done())
            self._metrics.waiting.set(len(self._waiting))

    async def run(self) -> None:
        """Translate what waits, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._translate_batch(self._next_batch())

    def _next_batch(self) -> list[_Job]:
        """Take the first jobs that wait, as far as they all want attention, or none does."""
        wanted = self._waiting[0].attention
        alike = itertools.takewhile(lambda job: job.attention == wanted, self._waiting)
        jobs = list(itertools.islice(alike, self._batch))
        for _ in jobs:
            self._waiting.popleft()
        return jobs

    async def _translate_batch(self, jobs: list[_Job]) -> None:
        self._metrics.waiting.set(len(self._waiting))
        self._metrics.batches.observe(len(jobs))
        loop, lines = asyncio.get_running_loop(), [job.line for job in jobs]
        try:
            answers = await loop.run_in_executor(
                self._thread, self._engine.translate, lines, jobs[0].attention
            )
        except Exception as error:
            # Each request fails, with this error in the server's log; the server goes on.
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(error)
            return
        for job, answer in zip(jobs, answers, strict=True):
            if not job.answer.done():
                job.answer.set_result(answer)
