"""What the server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SENTENCES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server.

    Attributes:
        requests: to translate, by HTTP status.
        seconds: that requests took, whatever their status.
        sentences: translated.
        waiting: sentences in the queue.
        batches: sentences in a batch.
    """

    def __init__(self):
        self._registry = own = CollectorRegistry()
        self.requests = Counter(
            "translate_requests", "Requests by HTTP status.", ["status"], registry=own
        )
        self.seconds = Histogram(
            "translate_request_seconds", "Duration of requests.", buckets=_SECONDS, registry=own
        )
        self.sentences = Counter("translate_sentences", "Translated sentences.", registry=own)
        self.waiting = Gauge("translate_waiting_sentences", "Sentences in the queue.", registry=own)
        self.batches = Histogram(
            "translate_batch_sentences", "Sentences of a batch.", buckets=_SENTENCES, registry=own
        )

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self._registry)
