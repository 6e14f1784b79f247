"""What Prometheus reads of a running scheduler, against what its clients were told."""

import asyncio
import json
import socket
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_harness import Executor, Service, generate_request, refused, run
from test_resume import messages_of, resumed

from scheduler_svc.metrics import Histogram
from scheduler_svc.metrics_server import MetricsServer

pytest.importorskip("prometheus_client", reason="the extra `metrics` is not installed")

from prometheus_client.parser import text_string_to_metric_families

DASHBOARD = Path(__file__).parents[2] / "deploy/grafana/nanoserve.json"


class Reading:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]
        self.names = {sample.name for sample in self.samples}

    def value(self, name: str, **labels: str) -> float:
        wanted: Mapping[str, str] = {"model_name": "demo", **labels}
        values = [sample.value for sample in self.samples if sample.name == name and sample.labels == wanted]
        return values[0] if values else 0.0


async def scrape(service: Service) -> Reading:
    metrics = service.server._metrics
    assert metrics is not None
    url = f"http://127.0.0.1:{metrics._server.server_port}/metrics"
    answer = await asyncio.to_thread(urllib.request.urlopen, url, timeout=10)
    return Reading(answer.read().decode())


async def twice_at_once(service: Service) -> None:
    """A request of one prompt token and 50 output tokens, and while it runs another of its id, which is refused."""
    async for message in service.stream([1], request_id="twice", max_tokens=50):
        if message.WhichOneof("event") == "started":
            with refused(grpc.StatusCode.ALREADY_EXISTS):
                await service.generate([1], request_id="twice")


def with_metrics(folder: Path, **config: Any) -> Service:
    return Service(folder, metrics_listen="127.0.0.1:0", **config)


@pytest.mark.parametrize("api_workers", [0, 2])
def test_metrics_count_what_clients_were_told(tmp_path: Path, api_workers: int) -> None:
    async def test() -> None:
        # Steps of 2 ms, so that a stop string is found before the output is over in the engine.
        executor = Executor(f"unix:{tmp_path}/executor", step_ms=2.0)
        executor.start()
        async with with_metrics(tmp_path, api_workers=api_workers, executor=executor) as service:
            await service.serving()
            answers = await asyncio.gather(
                *(service.generate([1, 2, 3, 4, 5, 6], max_tokens=5 + i, n=1 + i % 2) for i in range(6))
            )
            stopping = await service.generate([9, 9], max_tokens=200, seed=4)
            text = stopping.texts[0]
            stopped = await service.generate([9, 9], max_tokens=200, seed=4, strings=[text[4:8]])
            await twice_at_once(service)
            await service.until_idle()
            reading, load = await scrape(service), await service.load()
            assert reading.value("vllm:generation_tokens_total") == load.num_output_tokens
            assert load.num_output_tokens >= sum(
                len(ids) for answer in (*answers, stopping, stopped) for ids in answer.token_ids.values()
            )
            assert reading.value("vllm:prompt_tokens_total") == 6 * 6 + 2 * 2 + 1
            assert reading.value("nanoserve:requests_refused_total", code="ALREADY_EXISTS") == 1
            assert reading.value("vllm:request_success_total", finished_reason="length") == 9 + 2
            assert reading.value("vllm:request_success_total", finished_reason="stop") == 1
            assert reading.value("vllm:request_success_total", finished_reason="abort") == 0
            for name in ("time_to_first_token", "request_queue_time", "e2e_request_latency"):
                assert reading.value(f"vllm:{name}_seconds_count") == 9
                assert reading.value(f"vllm:{name}_seconds_sum") > 0
            num_outputs = 9 + 3
            gaps = reading.value("vllm:inter_token_latency_seconds_count")
            assert gaps == load.num_output_tokens - num_outputs
            assert reading.value("vllm:num_requests_running") == 0
            assert reading.value("vllm:kv_cache_usage_perc") == 0
            assert reading.value("vllm:prefix_cache_hits_total") == load.num_prefix_hit_tokens > 0
            blocks = [reading.value("nanoserve:kv_blocks", state=s) for s in ("free", "cached", "held")]
            assert blocks == [load.num_free_blocks, load.num_cached_blocks, 0]
            assert reading.value("nanoserve:steps_total") == load.num_steps
            assert reading.value("nanoserve:step_seconds_total", part="device") > 0
            assert reading.value("nanoserve:session_epoch") == 1

    run(test)


def test_what_ended_before_a_generation_was_resumed_is_not_counted_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with with_metrics(tmp_path) as service:
            await service.serving()
            request = generate_request([1, 2], seed=3, max_tokens=5, n=2)
            whole = await messages_of(service, request)
            of_the_other = [message for message in whole if message.delta.index or message.finished.index]
            told = [message for message in whole if message not in of_the_other]
            await messages_of(service, resumed(request, told, 2))
            await service.until_idle()
            reading = await scrape(service)
            assert reading.value("vllm:request_success_total", finished_reason="length") == 2 + 1
            assert reading.value("vllm:request_success_total", finished_reason="abort") == 0

    run(test)


def test_cancelled_and_failed_requests_leave_nothing_behind(tmp_path: Path) -> None:
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/executor", step_ms=20.0)
        executor.start()
        async with with_metrics(tmp_path, executor=executor, executor_loss_timeout=3.0) as service:
            await service.serving()
            async for message in service.stream([1, 2, 3], max_tokens=200, n=2):
                if message.WhichOneof("event") == "delta":
                    break
            await service.until_idle()
            assert (await scrape(service)).value("vllm:request_success_total", finished_reason="abort") == 2
            failing = asyncio.ensure_future(service.generate([1, 2, 3], max_tokens=200))
            await service.until(lambda load: load.num_running_requests == 1)
            await executor.stop()
            with refused(grpc.StatusCode.UNAVAILABLE):
                await failing
            reading = await scrape(service)
            assert reading.value("vllm:request_success_total", finished_reason="error") == 1
            assert reading.value("nanoserve:session_epoch") == 0
            metrics = service.server._metrics
            assert metrics is not None
            seen = metrics._metrics
            assert [seen._requests, seen._of_sequence, seen._last_token] == [{}, {}, {}]

    run(test)


def test_metrics_are_read_before_there_is_an_executor_and_by_many_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/executor")
        async with with_metrics(tmp_path, executor=executor) as service:
            for reading in await asyncio.gather(*(scrape(service) for _ in range(20))):
                assert reading.value("nanoserve:session_epoch") == 0
                assert reading.value("vllm:num_requests_running") == 0

    run(test)


def test_a_port_in_use_is_an_error_that_names_the_flag(tmp_path: Path) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            service = Service(tmp_path, metrics_listen=f"127.0.0.1:{taken.getsockname()[1]}")
            with pytest.raises(ValueError, match=r"--metrics-listen: .* in use"):
                await service.__aenter__()
            await service.executor.stop()

    run(test)


def test_without_its_library_the_flag_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler_svc.metrics_server.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--metrics-listen: .*nanoserve\[metrics\]"):
        MetricsServer("127.0.0.1:0", "demo", lambda command: None)


@given(st.lists(st.lists(st.floats(0, 10), max_size=20)), st.sets(st.floats(0.01, 9), min_size=1))
def test_a_histogram_counts_each_value_in_every_bucket_that_reaches_it(
    batches: list[list[float]], bounds: set[float]
) -> None:
    histogram = Histogram(tuple(sorted(bounds)))
    for batch in batches:
        histogram.add(np.array(batch))
    values = [value for batch in batches for value in batch]
    for bound, count in histogram.buckets():
        assert count == sum(value <= float(bound) for value in values)
    assert histogram.sum == pytest.approx(sum(values))


def test_the_dashboard_shows_metrics_that_there_are(tmp_path: Path) -> None:
    async def test() -> Reading:
        async with with_metrics(tmp_path) as service:
            await service.serving()
            await service.generate([1, 2, 3], max_tokens=4)
            await twice_at_once(service)
            return await scrape(service)

    reading = asyncio.run(test())
    targets = [
        target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]
    ]
    assert len(targets) > 10
    for expression in targets:
        names = {word for word in _words(expression) if word.startswith(("vllm:", "nanoserve:"))}
        assert names
        assert names <= reading.names, expression


def _words(expression: str) -> set[str]:
    return set("".join(c if c.isalnum() or c in "_:" else " " for c in expression).split())
