"""The table of targets finds the peers' figures, and says what is missing."""

from typing import Any

from benchmarks import targets
from benchmarks.shapes import SHAPES


def comparison(results: targets.Results) -> dict[tuple[str, str, str], dict[str, Any]]:
    rows = targets.comparison(targets.read_rows(targets.TARGETS), targets.read_rows(targets.PEERS), results)
    return {(row["workload"], row["shape"], row["case"]): row for row in rows}


def test_every_target_has_a_figure_of_vllm_beside_it() -> None:
    table = comparison(targets.Results())
    assert all(row["vLLM"] > 0 for row in table.values())
    assert {shape for _, shape, _ in table} == set(SHAPES)


def test_the_peers_warm_up_runs_do_not_count() -> None:
    table = comparison(targets.Results())
    assert table["W1", "0.6b", "output tokens/s"]["vLLM"] == 23537.3
    assert table["W1", "0.6b", "output tokens/s"]["nano-vllm"] == 20848.6


def test_ratios_are_over_one_where_ours_is_better_either_way() -> None:
    rows = [
        {"test": "throughput", "model": "0.6b", "requests": 256, "out_tok_s": 61200.0},
        {"test": "prefix", "model": "0.6b", "prompt": 4096, "cold_ms": 7.0, "warm_ms": 6.0},
    ]
    table = comparison(targets.Results(rows))
    assert table["W1", "0.6b", "output tokens/s"]["vs target"] == 2.0
    assert table["W4", "0.6b", "ms, cold"]["vs target"] == 2.0
    assert table["W4", "0.6b", "ms, warm"]["vs target"] == 0.5


def test_sizes_other_than_the_workloads_own_are_not_compared() -> None:
    rows = [
        {"test": "online", "model": "0.6b", "concurrency": 1, "prompt": 64, "out": 128, "ttft_ms_p50": 1.0}
    ]
    row = comparison(targets.Results(rows))["W5", "0.6b", "c=1: TTFT p50 ms"]
    assert (row["measured"], row["note"]) == (None, "not measured")


def test_a_failed_workload_says_why_and_the_others_stand() -> None:
    rows = [{"test": "prefix", "model": "14b", "prompt": 4096, "cold_ms": 178.0, "warm_ms": 11.0}]
    table = comparison(targets.Results(rows, {("14b", "W2"): "failed: out of memory"}))
    assert table["W2", "14b", "output tokens/s"]["note"] == "failed: out of memory"
    assert table["W4", "14b", "ms, cold"]["vs target"] == 1.0


def test_what_ran_without_a_gpu_is_compared_with_nothing() -> None:
    rows = [
        {"test": "startup", "model": "14b", "start_s": 1.0, "device": "virtual"},
        {"test": "prefix", "model": "14b", "prompt": 4096, "cold_ms": 1.0, "warm_ms": 1.0},
    ]
    row = comparison(targets.Results(rows))["W4", "14b", "ms, cold"]
    assert (row["measured"], row["vs target"], row["vs vLLM"]) == (1.0, None, None)
    assert row["note"] == "device: virtual"


def test_of_several_starts_the_last_counts() -> None:
    rows = [{"test": "startup", "model": "0.6b", "start_s": seconds} for seconds in (60.0, 10.0)]
    assert comparison(targets.Results(rows))["start", "0.6b", "start to ready, s"]["measured"] == 10.0
