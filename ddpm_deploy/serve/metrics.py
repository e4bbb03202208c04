"""`GET /metrics`: what an engine and its service did, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ddpm_deploy.serve.engine import Engine
from ddpm_deploy.serve.handle import Handle
from ddpm_deploy.serve.observing import Step

PREFIX = "ddpm_deploy_"
SHORT_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
LONG_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
REASONS = {
    400: "invalid",
    401: "token",
    408: "slow",
    413: "too_large",
    415: "not_json",
    429: "full",
    503: "not_ready",
}


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self, engine: Engine, ready: Callable[[], bool]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._gauges(engine, ready)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(PREFIX + name, text, buckets=buckets, registry=registry)

        self._batch = histogram("batch_samples", "Samples that shared a step.", BATCHES)
        self._step = histogram("step_seconds", "One step of a batch: the network and the update.", SHORT_S)
        self._calls = counter("network_calls", "Calls of the network.")
        self._evaluations = counter("network_evaluations", "Evaluations asked for, two for a guided sample.")
        self._padding = counter("padded_evaluations", "Evaluations computed beyond those: padding, and tries again.")
        self._queue = histogram("queue_seconds", "From a request's acceptance to its first step.", LONG_S)
        self._request = histogram("picture_seconds", "From a request's acceptance to its pictures.", LONG_S)
        self._pictures = counter("pictures", "Pictures drawn.")
        self._failed = counter("failed_pictures", "Pictures that failed after their acceptance.", "error")
        self._cancelled = counter("cancelled_requests", "Requests whose clients went away.")
        self._rejected = counter("rejected_requests", "Requests that were not accepted.", "reason")
        self._refused = counter("refused_connections", "Answers before a request was read, or none.", "status")
        self._answers = counter("answers", "Answers to requests for pictures.", "status")
        engine.observe(self._stepped)

    def _gauges(self, engine: Engine, ready: Callable[[], bool]) -> None:
        values: dict[str, tuple[str, Callable[[], float]]] = {
            "capacity_samples": ("Samples that may be held.", lambda: engine.capacity),
            "held_samples": ("Samples waiting or under way.", lambda: engine.held),
            "queued_samples": ("Samples that have not had a step.", lambda: engine.waiting),
            "ready": ("Whether requests are taken.", lambda: float(ready())),
        }
        for name, (text, value) in values.items():
            Gauge(PREFIX + name, text, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

    def accepted(self, handle: Handle) -> None:
        """Count what becomes of a request."""
        handle.add_done_callback(self._done)

    def refused(self, status: int) -> None:
        """Count a connection that is closed because of what its client sends, or because there are too many."""
        self._refused.labels(status).inc()

    def answered(self, status: int, *, accepted: bool) -> None:
        """Count an answer to a request for pictures. accepted: whether the engine took it."""
        self._answers.labels(status).inc()
        if status in REASONS and not accepted:
            self._rejected.labels(REASONS[status]).inc()

    def _stepped(self, step: Step) -> None:
        self._batch.observe(step.samples)
        self._step.observe(step.seconds)
        self._calls.inc(step.tally.calls)
        self._evaluations.inc(step.tally.lanes)
        self._padding.inc(max(0, step.tally.places - step.tally.lanes))

    def _done(self, handle: Handle) -> None:
        if handle.began is not None:
            self._queue.observe(handle.began - handle.submitted)
        if handle.cancelled():
            self._cancelled.inc()
            return
        errors = [type(outcome).__name__ for outcome in handle.outcomes(0) if isinstance(outcome, Exception)]
        for name in errors:
            self._failed.labels(name).inc()
        self._pictures.inc(handle.n - len(errors))
        if not errors and handle.finished is not None:
            self._request.observe(handle.finished - handle.submitted)
