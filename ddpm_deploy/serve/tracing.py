"""OpenTelemetry traces of requests: the request, its wait in the queue, and its drawing."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Scope

from ddpm_deploy.errors import BackendUnavailable
from ddpm_deploy.serve.handle import Handle

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

NS = 10**9


class Tracing:
    """Spans, sent in the background; `close` sends what is left.

    exporter: None is OTLP over HTTP, to where the variables OTEL_EXPORTER_OTLP_* say. Raises BackendUnavailable
    where a package is missing.
    """

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise BackendUnavailable(f"otel: {error}; pip install 'ddpm-deploy[otel]'") from None
        name = os.environ.get("OTEL_SERVICE_NAME", "ddpm-deploy")
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("ddpm_deploy.serve")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, scope: Scope) -> Span:
        """The span of a request, below the client's own where it sent a `traceparent`."""
        from opentelemetry.trace import SpanKind

        parent = self._propagator.extract(dict(Headers(scope=scope)))
        return self._tracer.start_span(f"{scope['method']} {scope['path']}", parent, SpanKind.SERVER)

    def end(self, span: Span, handle: Handle | None, facts: dict[str, Any], request_id: str) -> None:
        """Say what became of it. facts: as in the log."""
        from opentelemetry.trace import Status, StatusCode

        span.set_attribute("http.response.status_code", facts["status"])
        span.set_attribute("ddpm_deploy.request_id", request_id)
        for name, value in facts.items():
            if name not in ("status", "seconds", "queue_s"):
                span.set_attribute(f"ddpm_deploy.{name}", str(value) if name == "seed" else value)
        if facts["status"] >= 500 or "error" in facts:
            span.set_status(Status(StatusCode.ERROR, facts.get("error")))
        if handle is not None:
            self._part("queue", span, handle.submitted, handle.began or handle.finished)
            self._part("draw", span, handle.began, handle.finished)
        span.end()

    def close(self) -> None:
        """Send the spans that are left."""
        self._provider.shutdown()

    def _part(self, name: str, parent: Span, begin: float | None, end: float | None) -> None:
        """A span within another. begin, end: on the clock of `time.monotonic`; no end is now, no beginning no span."""
        from opentelemetry.trace import set_span_in_context

        if begin is None:
            return
        part = self._tracer.start_span(name, set_span_in_context(parent), start_time=_wall_ns(begin))
        part.end(_wall_ns(time.monotonic() if end is None else end))


def _wall_ns(moment: float) -> int:
    return time.time_ns() - int((time.monotonic() - moment) * NS)
