"""Has requests answered through the services and tells what that took: the rows that most experiments are made of."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean

from benchmarks.load import Outcome
from benchmarks.memory import BYTES_PER_VALUE, GIB, gpu_used_gib
from benchmarks.report import percentile, rounded
from benchmarks.steps import steps_between
from benchmarks.watch import Reading, watched
from benchmarks.workloads import Prompt
from experiments.harness import Bench
from experiments.store import Row

_WARM_UP_TOKENS = 8


def answered(
    bench: Bench, prompts_of: Callable[[int], Sequence[Prompt]], num_runs: int, num_warm_up: int | None = None
) -> Row:
    """Each run's prompts all at once, after the beginnings of some of run 0's; the row of the run in the middle.

    Runs should have ids of their own: `prompts_of` takes their numbers. `tok_s_all` has the rates of all.
    """
    beginnings = [
        replace(prompt, num_output_tokens=min(prompt.num_output_tokens, _WARM_UP_TOKENS))
        for prompt in prompts_of(0)[:num_warm_up]
    ]
    bench.clients.run(beginnings)
    rows = [_one_run(bench, prompts_of(run)) for run in range(1, num_runs + 1)]
    middle = sorted(rows, key=lambda row: float(row["tok_s"]))[(num_runs - 1) // 2]
    return middle | {"tok_s_all": [row["tok_s"] for row in rows]}


def _one_run(bench: Bench, prompts: Sequence[Prompt]) -> Row:
    bench.server.reset_prefix_cache()
    outcome, readings = watched(bench.server, lambda: bench.clients.run(prompts))
    return rounded({**_figures(prompts, outcome), **_counts(readings), **_memory(bench, readings)})


def _figures(prompts: Sequence[Prompt], outcome: Outcome) -> Row:
    ttfts = [stream.ttft * 1e3 for stream in outcome.streams]
    return {
        "requests": len(prompts),
        "prompt_tokens": sum(len(prompt.token_ids) for prompt in prompts),
        "output_tokens": outcome.num_output_tokens,
        "seconds": outcome.seconds,
        "tok_s": outcome.num_output_tokens / outcome.seconds,
        "ttft_ms_p50": percentile(ttfts, 0.5),
        "latency_ms_p50": percentile([stream.latency * 1e3 for stream in outcome.streams], 0.5),
    }


def _counts(readings: Sequence[Reading]) -> Row:
    """What the scheduler counted from before the requests came until they had all been answered."""
    before, after = readings[0][1], readings[-1][1]
    steps = steps_between(before, after)
    busy = [load for _, load in readings if load.num_running_requests]
    return {
        "steps": steps.num_steps,
        "device_ms": steps.device_ms,
        "host_ms": steps.host_ms,
        "idle_share": steps.idle_share,
        "preemptions": steps.num_preemptions,
        "padded_tokens": after.num_padded_tokens - before.num_padded_tokens,
        "late_tokens": after.num_late_tokens - before.num_late_tokens,
        "hit_tokens": after.num_prefix_hit_tokens - before.num_prefix_hit_tokens,
        "sequences_peak": max((load.num_running_requests for load in busy), default=0),
        "sequences_mean": mean([load.num_running_requests for load in busy] or [0]),
    }


def _memory(bench: Bench, readings: Sequence[Reading]) -> Row:
    """The KV pool is allocated at the start, so the peak is that of the blocks held, beside the weights."""
    description = bench.server.describe()
    num_bytes = BYTES_PER_VALUE.get(description.dtype, 0)  # the virtual executor holds nothing
    held = max(load.num_held_blocks for _, load in readings) * description.block_size
    slots = [
        (load.num_held_blocks * description.block_size, load.num_unused_slots)
        for _, load in readings
        if load.num_held_blocks
    ]
    kv_gib = held * bench.shape.kv_values_per_token * num_bytes / GIB
    return {
        "unused_share": sum(unused for _, unused in slots) / max(1, sum(all_slots for all_slots, _ in slots)),
        "held_kv_gib_peak": kv_gib,
        "memory_gib_peak": kv_gib + bench.shape.num_parameters * num_bytes / GIB,
        "gpu_used_gib": gpu_used_gib(),
    }
