"""Serves metrics to Prometheus over HTTP, by the names of vLLM where the meaning is the same, else `nanoserve:` ones.

prometheus_client, of the extra `metrics`, writes the format and answers in a thread of its own; what is read there is
taken on the engine's loop. There is no authentication: counts tell nothing of what is asked or answered.
"""

import asyncio
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import structlog

from scheduler_svc import messages as msg
from scheduler_svc.metrics import Histogram, Metrics

_log = structlog.get_logger()

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_SCRAPE_SECONDS = 2.0
_LOAD_KEY = -1
"""Of the load queries asked here; those of the API have keys that are not negative."""

_BLOCK_STATES = ("free", "cached", "held")
_HISTOGRAMS = (
    ("vllm:request_queue_time_seconds", "From arrival to the first planned step", "queue_seconds"),
    ("vllm:time_to_first_token_seconds", "From arrival to the first token", "first_token_seconds"),
    ("vllm:inter_token_latency_seconds", "Between two tokens of an output", "gap_seconds"),
    ("vllm:e2e_request_latency_seconds", "From arrival to the end", "request_seconds"),
)


class MetricsServer:
    """Stands between API and engine: commands pass by `submit`, events by `receive`."""

    def __init__(
        self,
        address: str,
        model_name: str,
        submit: Callable[[msg.Command], None],
    ) -> None:
        """`submit` takes a command to the engine. ValueError, naming the flag, where the extra is not installed."""
        if find_spec("prometheus_client") is None:
            raise ValueError("--metrics-listen: needs prometheus_client: install nanoserve[metrics]")
        self._address, self._submit = address, submit
        self._labels = {"model_name": model_name}
        self._metrics = Metrics()
        self._loads: list[asyncio.Future[msg.LoadReply]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: Any = None

    def submit(self, command: msg.Command) -> None:
        """A command of the API, on its way to the engine."""
        self._metrics.submit(command)
        self._submit(command)

    def receive(self, event: msg.Event) -> bool:
        """Takes in an event of the engine; False where it is for nobody else."""
        if isinstance(event, msg.LoadReply) and event.key == _LOAD_KEY:
            for load in self._loads:
                if not load.done():
                    load.set_result(event)
            self._loads.clear()
            return False
        self._metrics.see(event)
        return True

    def start(self) -> str:
        """Listens; returns the address. ValueError, naming the flag, where it cannot."""
        from prometheus_client import CollectorRegistry, start_http_server

        self._loop = asyncio.get_running_loop()
        registry = CollectorRegistry()
        host, _, port = self._address.rpartition(":")
        try:
            registry.register(_Collector(self._collect))
            self._server, _ = start_http_server(int(port), host.strip("[]"), registry)
        except OSError as error:
            raise ValueError(f"--metrics-listen: {self._address}: {error.strerror or error}") from error
        return f"{host}:{self._server.server_port}"

    def stop(self) -> None:
        """Stops listening; waits for the thread."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _collect(self) -> list["Metric"]:
        """All metrics, for a thread."""
        assert self._loop is not None
        reading = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
        try:
            return reading.result(_SCRAPE_SECONDS)
        except TimeoutError:  # the engine does not run yet, or any more
            reading.cancel()
            _log.warning("metrics cannot be read now")
            return []

    async def _read(self) -> list["Metric"]:
        load: asyncio.Future[msg.LoadReply] = asyncio.get_running_loop().create_future()
        self._loads.append(load)
        self._submit(msg.LoadQuery(_LOAD_KEY))
        return list(self._metrics_of(await load))

    def _metrics_of(self, load: msg.LoadReply) -> Iterator["Metric"]:
        seen = self._metrics
        total = max(1, load.num_total_blocks)
        yield self._gauge("vllm:num_requests_running", "Sequences on a row", load.num_running_requests)
        yield self._gauge("vllm:num_requests_waiting", "Sequences that wait", load.num_waiting_requests)
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of blocks held", load.num_held_blocks / total)
        yield self._counter("vllm:prefix_cache_queries", "Tokens looked up", load.num_prefix_query_tokens)
        yield self._counter("vllm:prefix_cache_hits", "Tokens found", load.num_prefix_hit_tokens)
        yield self._counter("vllm:num_preemptions", "Sequences preempted", load.num_preemptions)
        yield self._counter(
            "vllm:prompt_tokens", "Prompt tokens of accepted requests", seen.num_prompt_tokens
        )
        yield self._counter("vllm:generation_tokens", "Output tokens", seen.num_output_tokens)
        yield self._by_label("vllm:request_success", "Outputs ended", "finished_reason", seen.finished)
        for name, text, attribute in _HISTOGRAMS:
            yield self._histogram(name, text, getattr(seen, attribute))
        yield self._by_label("nanoserve:requests_refused", "Requests refused", "code", seen.refused)
        blocks = {state: getattr(load, f"num_{state}_blocks") for state in _BLOCK_STATES}
        yield self._by_label("nanoserve:kv_blocks", "KV blocks", "state", blocks, is_counter=False)
        yield self._gauge("nanoserve:kv_blocks_shared", "Held by several sequences", load.num_shared_blocks)
        yield self._counter("nanoserve:steps", "Forward passes", load.num_steps)
        yield self._by_label("nanoserve:step_seconds", "Where their time went", "part", _parts(load))
        yield self._gauge("nanoserve:plans_in_flight", "Plans sent, not answered", load.num_plans_in_flight)
        yield self._gauge("nanoserve:session_epoch", "0 without an executor", load.executor_epoch)
        yield self._gauge("nanoserve:asyncio_tasks", "Of the engine's loop", len(asyncio.all_tasks()))

    def _gauge(self, name: str, text: str, value: float) -> "Metric":
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(name, text, labels=[*self._labels])
        family.add_metric([*self._labels.values()], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> "Metric":
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(name, text, labels=[*self._labels])
        family.add_metric([*self._labels.values()], value)
        return family

    def _by_label(
        self, name: str, text: str, label: str, values: "dict[str, Any]", *, is_counter: bool = True
    ) -> "Metric":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        kind = CounterMetricFamily if is_counter else GaugeMetricFamily
        family = kind(name, text, labels=[*self._labels, label])
        for key, value in sorted(values.items()):
            family.add_metric([*self._labels.values(), key], value)
        return family

    def _histogram(self, name: str, text: str, histogram: Histogram) -> "Metric":
        from prometheus_client.core import HistogramMetricFamily

        family = HistogramMetricFamily(name, text, labels=[*self._labels])
        family.add_metric([*self._labels.values()], histogram.buckets(), histogram.sum)
        return family


class _Collector:
    """What the registry asks."""

    def __init__(self, collect: Callable[[], list["Metric"]]) -> None:
        self._collect = collect

    def collect(self) -> list["Metric"]:
        """All metrics, at each scrape."""
        return self._collect()

    def describe(self) -> list["Metric"]:
        """Nothing. Without it the registry would collect at once, on the loop that this waits for."""
        return []


def _parts(load: msg.LoadReply) -> dict[str, float]:
    """Seconds of all steps by where they went; the boundary is the round trip less the device's time."""
    totals = load.step_totals
    if totals is None:
        return {}
    return {
        "boundary": max(0.0, totals.round_trip_seconds - totals.device_seconds),
        "device": totals.device_seconds,
        "host": totals.host_seconds,
        "idle": totals.idle_seconds,
        "queue": totals.queue_seconds,
        "schedule": totals.schedule_seconds,
    }
