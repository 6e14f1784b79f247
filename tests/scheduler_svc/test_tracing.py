"""Spans of requests: what is in them, whose children they are, and that a collector gets them."""

import asyncio
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from scheduler_harness import Service, run

from nanoserve.v1 import inference_pb2
from scheduler_svc import tracing
from scheduler_svc.config import parse_config
from scheduler_svc.core.request import Finish, Request
from scheduler_svc.messages import Code, Problem
from scheduler_svc.output import Output, OutputRules
from scheduler_svc.stream import RequestStream

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
REASON = "the extra `otel` is not installed"


def recorded(stream: RequestStream, metadata: Any = None, tenant: str = "") -> list[Any]:
    """The spans that are made of a request, children first."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason=REASON)
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    request = Request("r", np.array([1, 2, 3], np.int32), max_tokens=4, seed=2**64 - 1)
    tracing.RequestTracer(provider, "demo").record(stream, request, metadata, tenant)
    provider.shutdown()
    return list(exporter.get_finished_spans())


def make_stream() -> RequestStream:
    output = Output(OutputRules((), False, 0), [b"x"] * 9, [b"x"] * 9)
    return RequestStream("r", [1, 2, 3], 5, b"", [output], arrival=100.0)


def finished_stream() -> RequestStream:
    """Queued for 1 s, its first token after 3 s, its second and last after 7 s."""
    stream = make_stream()
    stream.start(2, 101.0, step_id=11)
    stream.add_token(0, 7, Finish.NONE, None, 103.0, step_id=12)
    stream.add_token(0, 8, Finish.LENGTH, None, 107.0, step_id=15)
    stream.end(1, 107.0)
    return stream


@pytest.mark.parametrize("tracestate", ["A!=b", "a" * 9000, ",".join(f"k{i}=1" for i in range(50))])
def test_headers_that_are_none_write_nothing_into_the_log(tracestate: str, caplog: pytest.LogCaptureFixture):
    root = recorded(finished_stream(), (("traceparent", SAMPLED), ("tracestate", tracestate)))[-1]
    assert root.context.trace_id == int(TRACE, 16)
    assert not caplog.records


def test_the_phases_of_a_request_are_its_spans_children():
    *phases, root = recorded(finished_stream(), tenant="team")
    assert root.name == "llm_request"
    assert [span.name for span in phases] == ["queue", "prefill", "decode"]
    assert all(span.parent.span_id == root.context.span_id for span in phases)
    seconds = [(span.end_time - span.start_time) / 1e9 for span in phases]
    assert seconds == pytest.approx([1.0, 2.0, 4.0])
    assert phases[0].start_time == root.start_time
    assert all(a.end_time == b.start_time for a, b in itertools.pairwise(phases))
    expected = {
        "gen_ai.request.model": "demo",
        "gen_ai.request.max_tokens": 4,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.latency.time_in_queue": 1.0,
        "gen_ai.latency.time_to_first_token": 3.0,
        "gen_ai.latency.e2e": 7.0,
        "nanoserve.num_preemptions": 1,
        "nanoserve.first_step_id": 11,
        "nanoserve.last_step_id": 15,
        "nanoserve.tenant": "team",
    }
    assert {name: root.attributes[name] for name in expected} == expected
    assert root.status.is_unset


def test_a_request_ends_with_the_phase_that_it_had_reached():
    waiting = make_stream()
    waiting.fail(Problem(Code.UNAVAILABLE, "gone"))
    queue, root = recorded(waiting)
    assert queue.name == "queue"
    assert root.attributes["error.type"] == "UNAVAILABLE"
    assert root.status.description == "gone"
    left = make_stream()
    left.start(0, 101.0)
    queue, prefill, root = recorded(left)
    assert (queue.name, prefill.name) == ("queue", "prefill")
    assert root.attributes["gen_ai.response.finish_reasons"] == ("cancelled",)


@pytest.mark.parametrize(
    ("metadata", "trace_id"),
    [
        ((("traceparent", SAMPLED),), int(TRACE, 16)),
        ((("traceparent", SAMPLED), ("tracestate", "a=b"), ("x-bin", b"\xff")), int(TRACE, 16)),
        ((("traceparent", "00-" + "f" * 32 + "-0-01"),), None),
        ((("traceparent", b"\xff"),), None),
        (None, None),
    ],
)
def test_a_request_is_the_child_of_the_span_that_its_caller_names(metadata: Any, trace_id: int | None):
    *_, root = recorded(finished_stream(), metadata)
    if trace_id is None:
        assert root.parent is None
    else:
        assert (root.context.trace_id, root.parent.span_id) == (trace_id, int(PARENT, 16))


def test_what_the_caller_does_not_sample_is_not_recorded():
    assert recorded(finished_stream(), (("traceparent", UNSAMPLED),)) == []


@dataclass
class Collector:
    """What an OTLP collector was sent."""

    address: str = ""
    spans: list[Any] = field(default_factory=list)
    resources: list[dict[str, str]] = field(default_factory=list)
    more: threading.Condition = field(default_factory=threading.Condition)

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        messages = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
        with self.more:
            for entry in request.resource_spans:
                self.resources.append({a.key: a.value.string_value for a in entry.resource.attributes})
                self.spans += [span for scope in entry.scope_spans for span in scope.spans]
            self.more.notify_all()
        return messages.ExportTraceServiceResponse()


@contextmanager
def collecting() -> Iterator[Collector]:
    stubs = pytest.importorskip(
        "opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc", reason=REASON
    )
    collector = Collector()
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        stubs.add_TraceServiceServicer_to_server(collector, server)
        collector.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield collector
        finally:
            server.stop(0).wait()


@pytest.mark.parametrize("api_workers", [0, 1])
def test_a_collector_gets_the_spans_of_all_requests_by_the_end(api_workers: int, tmp_path: Path):
    async def test() -> None:
        flags = {"otlp_traces_endpoint": collector.address, "api_workers": api_workers}
        async with Service(tmp_path, **flags) as service:
            await service.serving()
            request = inference_pb2.GenerateRequest(text="one two three", request_id="r7")
            request.stop.max_tokens = 5
            call = service.stub.Generate(request, metadata=(("traceparent", SAMPLED),))
            assert [message async for message in call]

    with collecting() as collector:
        run(test)
        spans = {span.name: span for span in collector.spans}
        assert sorted(spans) == ["decode", "llm_request", "prefill", "queue"]
        assert spans["llm_request"].parent_span_id.hex() == PARENT
        attributes = {entry.key: entry.value for entry in spans["llm_request"].attributes}
        assert attributes["gen_ai.request.id"].string_value == "r7"
        first, last = (attributes[f"nanoserve.{name}_step_id"].int_value for name in ("first", "last"))
        assert 1 <= first < last
        assert all(resource["service.name"] == "nanoserve-scheduler" for resource in collector.resources)


def test_a_collector_that_is_away_keeps_no_request_waiting(tmp_path: Path):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason=REASON)

    async def test() -> None:
        async with Service(tmp_path, otlp_traces_endpoint="http://127.0.0.1:9") as service:
            await service.serving()
            answers = await asyncio.gather(*(service.generate("x", max_tokens=3) for _ in range(20)))
            assert all(len(answer.token_ids[0]) == 3 for answer in answers)

    run(test)


def test_without_its_extra_the_flag_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--otlp-traces-endpoint: .*nanoserve\[otel\]"):
        tracing.open_tracer("http://127.0.0.1:4317", "demo")
    assert tracing.open_tracer(None, "demo") is None


@pytest.mark.parametrize(
    "endpoint",
    ["", "127.0.0.1:4317", "grpc://host:4317", "http://host:4317/v1/traces", "http://host", "http://[::1]"],
)
def test_an_endpoint_is_a_url_with_a_port_and_without_a_path(
    endpoint: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        parse_config([f"--otlp-traces-endpoint={endpoint}"])
    assert "--otlp-traces-endpoint" in capsys.readouterr().err
