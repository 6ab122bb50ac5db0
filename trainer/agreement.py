"""How the workers of a run agree to stop: a request that reaches one of them stops all."""

import tensorflow as tf

from trainer.distributed import cluster
from trainer.runtime.signals import StopAskedError, StopRequest


class Agreement:
    """Lets every worker learn at the same point of the program whether to stop.

    Args:
        strategy: the strategy of this process.
        request: this worker's own request to stop.
    """

    def __init__(self, strategy: tf.distribute.Strategy, request: StopRequest):
        self._strategy, self._request = strategy, request
        self._is_chief = cluster.worker_of(strategy).is_chief

    @property
    def asked_here(self) -> bool:
        """Whether this worker itself was asked to stop."""
        return self._request.reason is not None

    @property
    def reason(self) -> str:
        """Why the run stops, for people."""
        return self._request.reason or "another worker was asked to stop"

    def hold(self) -> None:
        """Make signals wait from now on: there is something to save."""
        self._request.hold()

    def poll(self) -> None:
        """Check whether to stop. All workers call this together; or all others `poll_for_chief`.

        Raises:
            StopAskedError: on every worker, when any worker was asked to stop.
        """
        self.from_chief(0.0)

    def poll_for_chief(self) -> None:
        """Answer the chief's `poll` calls until every worker has called this.

        Raises:
            StopAskedError: as for `poll`.
        """
        while not self.from_chief(1.0) and not self._is_chief:
            pass

    def from_chief(self, value: float) -> float:
        """Return the chief's value, on every worker.

        Raises:
            StopAskedError: as for `poll`.
        """
        values = [self.asked_here, value if self._is_chief else 0.0]
        asked, of_chief = cluster.sum_over_workers(self._strategy, values)
        if asked:
            raise StopAskedError
        return float(of_chief)
