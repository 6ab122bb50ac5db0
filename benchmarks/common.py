"""What the contenders of a speed comparison share: the setting, the corpus, the stop-watch."""

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

    def of_variant(self, variant: str) -> "Setting":
        """The same, run in another way."""
        return dataclasses.replace(self, variant=variant)


def fitting_pairs(pairs: Examples, row_length: int) -> Examples:
    """The pairs both of whose sides, with their end-of-sentence tokens, fit into a row."""
    fits = pairs.lengths().max(axis=0) < row_length
    if fits.all():
        return pairs
    lengths = dict(zip(pairs.tokens, pairs.lengths(), strict=True))
    return Examples(
        tokens={name: pairs.tokens[name][np.repeat(fits, n)] for name, n in lengths.items()},
        offsets={name: np.cumsum([0, *n[fits]]) for name, n in lengths.items()},
    )


def target_tokens(pairs: Examples) -> int:
    """Target tokens to be predicted: those of the corpus and an end of sentence a pair."""
    return len(pairs.tokens["target"]) + len(pairs)


class Meter:
    """Stands between a training loop and the benchmark, which says when to run and when to rest.

    The loop calls `describe` and `first_step`, then `after_step` after every step, and ends when
    that returns False. Between two rounds `after_step` blocks, so that the loop needs no structure
    for it: `model.fit` is measured as it is. Only the time inside a round counts.

    Args:
        connection: multiprocessing pipe. In come lengths of rounds in seconds, None to end; out go
            dictionaries, one when warm and one a round.
        started: `time.time()` when the process was started.
    """

    _WARM_UP = 3  # steps after the first

    def __init__(self, connection, started: float):
        self._connection = connection
        self._started = started
        self._warm: dict[str, Any] | None = {}
        self._tokens = self._steps = 0
        self._begin, self._seconds = time.perf_counter(), 0.0

    def describe(self, **facts) -> None:
        """Adds to what is reported when the contender is warm: "parameters", "version" and more."""
        assert self._warm is not None, "too late: it has been reported"
        self._warm |= facts

    def first_step(self, loss) -> None:
        """Notes that the first step is done.

        Args:
            loss: what `float` can read; reading it waits until the device is done.
        """
        first = float(loss)
        self.describe(first_step_seconds=time.time() - self._started, first_loss=first)

    def after_step(self, tokens: int, loss, steps: int = 1) -> bool:
        """Counts; at the end of a round reports, and waits for the next one.

        Args:
            tokens: target tokens of the step (or of all `steps`), padding not counted.
            loss: of the last step, a number or a scalar tensor; read at the end of a round only.
            steps: how many steps these were.

        Returns:
            whether to go on.
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
        """Whether no round has begun yet."""
        return self._warm is not None

    @property
    def seconds_left(self) -> float:
        """Until the end of the round."""
        return self._seconds - (time.perf_counter() - self._begin)

    def _next_round(self) -> bool:
        seconds = self._connection.recv()
        if seconds is None:
            return False
        self._tokens = self._steps = 0
        self._begin, self._seconds = time.perf_counter(), seconds
        return True
