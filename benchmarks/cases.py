"""One function a kind of workload: drives a server through clients and gives one row of figures.

The rows' keys are those of peers.jsonl, so that one table can hold both. Times come from the clients. TTFT is from a
request's sending to its first message with tokens. ITL is each gap between two such messages of a stream, as in the
peers' figures: a message that brings several tokens makes one long gap, not several short ones, so coalescing never
flatters it; `tokens_per_message` says how far it went, and TPOT = (latency - TTFT) / (output tokens - 1) is the mean
a token.
"""

from itertools import pairwise
from statistics import mean, median
from typing import Any

from benchmarks.load import LoadClients, Outcome
from benchmarks.report import percentile, rounded
from benchmarks.server import Server
from benchmarks.steps import steps_between
from benchmarks.workloads import EqualWorkload, ThroughputWorkload, equal_prompts, throughput_prompts

Row = dict[str, Any]


def throughput(server: Server, clients: LoadClients, workload: ThroughputWorkload, run: int) -> Row:
    """All requests at once: output tokens a second from the first sending to the last token."""
    prompts = throughput_prompts(workload, run)
    before = server.load()
    outcome = clients.run(prompts)
    num_prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    return rounded(
        {
            "test": "throughput",
            "requests": workload.num_requests,
            "run": run,
            "seconds": outcome.seconds,
            "prompt_tokens": num_prompt_tokens,
            "output_tokens": outcome.num_output_tokens,
            "out_tok_s": outcome.num_output_tokens / outcome.seconds,
            "total_tok_s": (num_prompt_tokens + outcome.num_output_tokens) / outcome.seconds,
            **_shared(server, before, outcome),
        }
    )


def decode(clients: LoadClients, workload: EqualWorkload, batch: int, reps: int = 3) -> Row:
    """Steady decode of `batch` equal requests: a step is (time of all outputs - time of one) / (outputs - 1)."""
    short = EqualWorkload(workload.num_prompt_tokens, 1, workload.max_token_id)
    seconds: dict[int, list[float]] = {1: [], workload.num_output_tokens: []}
    for rep in range(reps + 1):  # the first is the warm-up
        for kind in (short, workload):
            outcome = clients.run(equal_prompts(kind, batch, 1000 * batch + rep))
            if rep:
                seconds[kind.num_output_tokens].append(outcome.seconds)
    totals, firsts = seconds[workload.num_output_tokens], seconds[1]
    step = (median(totals) - median(firsts)) / (workload.num_output_tokens - 1)
    return rounded(
        {
            "test": "decode",
            "batch": batch,
            "prompt": workload.num_prompt_tokens,
            "out": workload.num_output_tokens,
            "reps": reps,
            "total_s": median(totals),
            "spread_s": [round(value, 4) for value in (min(totals), max(totals))],
            "first_token_ms": median(firsts) * 1e3,
            "ms_per_step": step * 1e3,
            "tok_s": batch * workload.num_output_tokens / median(totals),
        }
    )


def prefix(clients: LoadClients, workload: EqualWorkload, reps: int = 5) -> Row:
    """One long prompt: milliseconds to its token when it is new (cold), and when it is asked again (warm)."""
    cold: list[float] = []
    warm: list[float] = []
    for rep in range(reps + 1):  # the first is the warm-up
        prompts = equal_prompts(workload, 1, rep)
        for values in (cold, warm):
            latency = clients.run(prompts).streams[0].latency
            if rep:
                values.append(round(latency * 1e3, 3))
    return {
        "test": "prefix",
        "prompt": workload.num_prompt_tokens,
        "reps": reps,
        "cold_ms": median(cold),
        "warm_ms": median(warm),
        "cold_all": cold,
        "warm_all": warm,
    }


def online(
    server: Server, clients: LoadClients, workload: EqualWorkload, concurrency: int, requests: int, run: int
) -> Row:
    """A closed loop: `concurrency` streams, each of which sends its next request when its last one has ended."""
    prompts = equal_prompts(workload, requests, 1000 * concurrency + run)
    before = server.load()
    outcome = clients.run(prompts, concurrency)
    latencies = [stream.latency for stream in outcome.streams]
    tokens_per_second = outcome.num_output_tokens / outcome.seconds
    by_littles_law = concurrency * workload.num_output_tokens / mean(latencies)
    return rounded(
        {
            "test": "online",
            "concurrency": concurrency,
            "requests": requests,
            "run": run,
            "prompt": workload.num_prompt_tokens,
            "out": workload.num_output_tokens,
            "seconds": outcome.seconds,
            "output_tokens": outcome.num_output_tokens,
            "out_tok_s": tokens_per_second,
            "req_s": requests / outcome.seconds,
            "latency_ms_p50": percentile(latencies, 0.5) * 1e3,
            # Under 1 by what start, end and the clients' own time between requests take.
            "littles_law": tokens_per_second / by_littles_law,
            **_stream_times(outcome),
            **_shared(server, before, outcome),
        }
    )


def _stream_times(outcome: Outcome) -> Row:
    ttfts = [stream.ttft * 1e3 for stream in outcome.streams]
    gaps = [1e3 * (b - a) for stream in outcome.streams for a, b in pairwise(stream.arrivals)]
    tpots = [
        1e3 * (stream.latency - stream.ttft) / (sum(stream.num_tokens) - 1)
        for stream in outcome.streams
        if sum(stream.num_tokens) > 1
    ]
    return {
        "ttft_ms_p50": percentile(ttfts, 0.5),
        "ttft_ms_p99": percentile(ttfts, 0.99),
        "itl_ms_mean": mean(gaps or [float("nan")]),
        "itl_ms_p50": percentile(gaps, 0.5),
        "itl_ms_p99": percentile(gaps, 0.99),
        "tpot_ms_p50": percentile(tpots, 0.5),
    }


def _shared(server: Server, before: Any, outcome: Outcome) -> Row:
    steps = steps_between(before, server.load())
    return {
        "chunks": outcome.num_messages,
        "tokens_per_message": outcome.num_output_tokens / outcome.num_messages,
        "client_processes": outcome.num_clients,
        "steps": steps.num_steps,
        "device_ms": steps.device_ms,
        # Of the job's time, not of idle + device: the wait before its first step is no wait for the host.
        "device_share": steps.num_steps * steps.device_ms / 1e3 / outcome.seconds,
        "preemptions": steps.num_preemptions,
    }
