"""What the contenders of a speed comparison share: the setting, the corpus and the stopwatch."""

import dataclasses
import time
from typing import Any

import numpy as np

from configs.schema import Config
from data_pipeline.dataset.examples import Examples
from data_pipeline.dataset.manifest import Manifest


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a contender trains, and how.

    Attributes:
        manifest: of the dataset directory.
        pairs: its training pairs, none longer than a row of `config`.
        config: model, batch size, dropout, label smoothing, clipping, optimizer.
        precision: "float32" or "mixed_bfloat16".
        variant: how it is run; each contender has its own, such as "eager".
    """

    manifest: Manifest
    pairs: Examples
    config: Config
    precision: str
    variant: str


def fitting_pairs(pairs: Examples, row_length: int) -> Examples:
    """Return the pairs whose two sides, with their end-of-sentence tokens, fit into a row."""
    fits = pairs.lengths().max(axis=0) < row_length
    if fits.all():
        return pairs
    lengths = dict(zip(pairs.tokens, pairs.lengths(), strict=True))
    return Examples(
        tokens={name: pairs.tokens[name][np.repeat(fits, n)] for name, n in lengths.items()},
        offsets={name: np.cumsum([0, *n[fits]]) for name, n in lengths.items()},
    )


def target_tokens(pairs: Examples) -> int:
    """Return the number of target tokens to predict, including an end of sentence per pair."""
    return len(pairs.tokens["target"]) + len(pairs)


class Meter:
    """Connects a training loop with the benchmark, which decides when the loop runs and pauses.

    The loop calls `describe` and `first_step`, then `after_step` after every step, and ends when
    that returns False. Between two rounds `after_step` blocks, so the loop needs no code for it:
    `model.fit` is measured as it is. Only the time inside a round counts.

    Args:
        connection: a multiprocessing pipe. It receives the length of each round in seconds, or
            None to end; it sends a dictionary after the warm-up and after each round.
        started: `time.time()` at the start of the process.
    """

    _WARM_UP = 3  # steps after the first

    def __init__(self, connection, started: float):
        self._connection = connection
        self._started = started
        self._warm: dict[str, Any] | None = {}
        self._tokens = self._steps = 0
        self._begin, self._seconds = time.perf_counter(), 0.0

    def describe(self, **facts) -> None:
        """Add facts to the report after the warm-up: "parameters", "version" and others."""
        assert self._warm is not None, "the report after the warm-up was sent already"
        self._warm |= facts

    def first_step(self, loss) -> None:
        """Record that the first step is done.

        Args:
            loss: a number or a scalar tensor; `float` waits until the device is done.
        """
        first = float(loss)
        self.describe(first_step_seconds=time.time() - self._started, first_loss=first)

    def after_step(self, tokens: int, loss, steps: int = 1) -> bool:
        """Count the steps; at the end of a round, report and wait for the next one.

        Args:
            tokens: target tokens of the step (or of all `steps`), without padding.
            loss: the last step's, a number or a scalar tensor, read only at the end of a round.
            steps: number of steps since the last call.

        Returns:
            Whether to continue.
        """
        self._tokens += tokens
        self._steps += steps
        if self._warm is not None:
            if self._steps < self._WARM_UP:
                return True
            float(loss)
            seconds = time.time() - self._started
            message, self._warm = {**self._warm, "warm_seconds": seconds}, None
        else:
            if self.seconds_left > 0.0:
                return True
            loss = float(loss)
            message = {
                "seconds": time.perf_counter() - self._begin,
                "tokens": self._tokens,
                "steps": self._steps,
                "loss": loss,
            }
        self._connection.send(message)
        return self._next_round()

    @property
    def warming_up(self) -> bool:
        """Whether the first round has not begun."""
        return self._warm is not None

    @property
    def seconds_left(self) -> float:
        """Seconds until the end of the round."""
        return self._seconds - (time.perf_counter() - self._begin)

    def _next_round(self) -> bool:
        seconds = self._connection.recv()
        if seconds is None:
            return False
        self._tokens = self._steps = 0
        self._begin, self._seconds = time.perf_counter(), seconds
        return True
