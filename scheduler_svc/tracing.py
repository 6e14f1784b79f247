"""OpenTelemetry spans of requests, sent to a collector by OTLP over gRPC. They are made when a request is over.

The extra `otel` brings what this needs and imports only for --otlp-traces-endpoint. docs/tracing.md has the spans.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from scheduler_svc.core.request import Request
from scheduler_svc.stream import RequestStream

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

# How long the spans of the last requests may take on their way when the server stops.
_FLUSH_SECONDS = 3.0
_NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.grpc")
_HEADERS = ("traceparent", "tracestate")
_SAMPLING = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty")


def open_tracer(endpoint: str | None, model_name: str) -> "RequestTracer | None":
    """A tracer that sends to `endpoint`; None for None. ValueError, naming the flag, where the extra is missing."""
    check_tracing(endpoint)
    return None if endpoint is None else RequestTracer(_otlp_provider(endpoint), model_name)


def check_tracing(endpoint: str | None) -> None:
    """ValueError, naming the flag, where there is an endpoint and not what sends to it."""
    if endpoint is not None and not all(map(_is_installed, _NEEDED)):
        raise ValueError("--otlp-traces-endpoint: needs OpenTelemetry: install nanoserve[otel]")


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # what it is a part of is not there
        return False


def _otlp_provider(endpoint: str) -> "TracerProvider":
    """Sends spans to a collector, in batches, from a thread of its own. The SDK's OTEL_ variables hold."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = Resource({"service.name": "nanoserve-scheduler"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=Resource.create().merge(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return provider


class RequestTracer:
    """Makes the spans of each request whose caller's own span, if it names one, is sampled."""

    def __init__(self, provider: "TracerProvider", model_name: str) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # It warns of headers that it cannot read, and quotes them: callers would write into the log.
        logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)
        self._provider, self._model_name = provider, model_name
        self._tracer = provider.get_tracer("nanoserve")
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()

    def record(
        self, stream: RequestStream, request: Request, metadata: Iterable[Any] | None, tenant: str
    ) -> None:
        """Makes the spans of a request that is over; `metadata` is that of its call."""
        now = time.monotonic()
        # Times are of the monotonic clock, spans of the wall's.
        wall_offset_ns = time.time_ns() - int(now * 1e9)
        carrier = {
            name: value for name, value in metadata or () if name in _HEADERS and isinstance(value, str)
        }
        span = self._tracer.start_span(
            "llm_request",
            self._propagator.extract(carrier),
            self._trace.SpanKind.SERVER,
            self._attributes(stream, request, tenant),
            start_time=int(stream.arrival * 1e9) + wall_offset_ns,
        )
        if stream.problem is not None:
            span.set_attribute("error.type", stream.problem.code.name)
            span.set_status(self._trace.StatusCode.ERROR, stream.problem.description)
        if span.is_recording():
            for name, (begin, end) in _phases(stream, now).items():
                self._phase(span, name, begin, end, wall_offset_ns)
        span.end(int(now * 1e9) + wall_offset_ns)

    def _phase(self, parent: "Span", name: str, begin: float, end: float, wall_offset_ns: int) -> None:
        context = self._trace.set_span_in_context(parent)
        child = self._tracer.start_span(name, context, start_time=int(begin * 1e9) + wall_offset_ns)
        child.end(int(end * 1e9) + wall_offset_ns)

    def _attributes(self, stream: RequestStream, request: Request, tenant: str) -> Mapping[str, Any]:
        sampling = request.sampling
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "nanoserve",
            "gen_ai.request.model": self._model_name,
            "gen_ai.response.model": self._model_name,
            "gen_ai.response.id": stream.request_id,
            "gen_ai.request.id": stream.request_id,
            "gen_ai.request.max_tokens": request.max_tokens,
            "gen_ai.request.choice.count": request.n,
            "gen_ai.response.finish_reasons": stream.finish_reasons,
            "gen_ai.usage.input_tokens": stream.num_prompt_tokens,
            "gen_ai.usage.output_tokens": stream.num_output_tokens,
            "gen_ai.usage.cache_read.input_tokens": stream.num_cached_tokens,
            "gen_ai.latency.time_in_queue": stream.queue_seconds,
            "gen_ai.latency.time_to_first_token": stream.first_token_seconds,
            "gen_ai.latency.e2e": stream.total_seconds,
            "nanoserve.num_preemptions": stream.num_preemptions,
            "nanoserve.first_step_id": stream.first_step_id,
            "nanoserve.last_step_id": stream.last_step_id,
        }
        attributes |= {f"gen_ai.request.{name}": getattr(sampling, name) for name in _SAMPLING}
        if tenant:
            attributes["nanoserve.tenant"] = tenant
        return attributes

    async def close(self) -> None:
        """Sends what is left, or gives it up where that takes too long."""
        # A daemon: a collector that does not answer must not keep the process.
        thread = threading.Thread(target=self._provider.shutdown, name="otlp-shutdown", daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, _FLUSH_SECONDS)


def _phases(stream: RequestStream, now: float) -> dict[str, tuple[float, float]]:
    """Begin and end of each phase that the request has reached, in seconds of the monotonic clock."""
    arrival = stream.arrival
    started = arrival + stream.queue_seconds if stream.queue_seconds else now
    first_token = arrival + stream.first_token_seconds if stream.first_token_seconds else now
    last = arrival + stream.total_seconds if stream.total_seconds else now
    phases = {"queue": (arrival, started)}
    if stream.queue_seconds:
        phases["prefill"] = (started, first_token)
    if stream.first_token_seconds:
        phases["decode"] = (first_token, max(last, first_token))
    return phases
