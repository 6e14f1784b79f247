"""The instruments drive real services, with tiny sizes: what they print adds up."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory
from benchmarks.server import Server, started

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

REPOSITORY = Path(__file__).resolve().parents[2]
VIRTUAL = "--executor-flag=--virtual"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A scheduler before a virtual executor."""
    with started(["--virtual", "--num-kv-blocks=2049"], []) as server:
        yield server
        server.close()


def rows(script: str, *flags: str) -> list[dict[str, Any]]:
    """The rows of the last line that a benchmark prints."""
    command = [sys.executable, f"benchmarks/{script}.py", *flags]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["rows"]
    return found


def test_throughput_of_the_demo_model() -> None:
    (row,) = rows("throughput", "--workload=W1", "--requests=4", "--longest=12", "--clients=2")
    assert (row["run"], row["prompt_tokens"], row["output_tokens"]) == (1, 48, 48)
    assert row["client_processes"] == 2
    assert row["out_tok_s"] == pytest.approx(48 / row["seconds"], rel=0.01)


def test_a_closed_loop_keeps_littles_law(server: Server) -> None:
    sizes = ["--requests=12", "--concurrency=3", "--prompt-tokens=20", "--output-tokens=30", "--clients=2"]
    (row,) = rows("latency", "--workload=W5", f"--address={server.address}", *sizes)
    assert row["output_tokens"] == 12 * 30
    assert 12 <= row["chunks"] <= 12 * 30
    assert row["ttft_ms_p50"] <= row["ttft_ms_p99"]
    assert 0 < row["littles_law"] <= 1


def test_a_stream_that_only_sends_ends_behind_its_messages() -> None:
    for number, row in zip((1, 2, 4), rows("grpc_floor", "--prompt-tokens=64", "--reps=5"), strict=True):
        assert row["messages"] == number
        assert 0 < row["first_ms"] <= row["last_ms"] <= row["end_ms"]


def test_the_parts_of_the_time_to_a_first_token_add_up(server: Server) -> None:
    cold, warm = rows("first_token", f"--address={server.address}", "--prompt-tokens=64", "--reps=3")
    for row in (cold, warm):
        parts = [row[name] for name in ("api", "queue", "boundary", "device")]
        assert sum(parts) == pytest.approx(row["latency"], rel=0.5)  # medians, each of its own
        assert min(parts) > 0
        assert row["steps"] == 1


def test_the_step_budget_counts_the_bytes_of_weights_and_context(server: Server) -> None:
    sizes = ["--batches=2", "--context=32", "--output-tokens=256", "--clients=1"]
    (row,) = rows("step_budget", f"--address={server.address}", *sizes)
    assert row["tokens_per_step"] == pytest.approx(2.0, rel=0.05)
    assert 32 < row["context"] < 32 + 256
    assert row["MB"] == pytest.approx(2 * (3_739_648 + 2 * row["context"] * 1536) / 1e6, rel=0.01)
    assert row["device_us"] >= 1000  # the virtual step


def test_memory_is_told_by_the_executor(server: Server) -> None:
    row = memory.measure(server, "demo")
    assert (row["device"], row["num_blocks"], row["kv_tokens"]) == ("virtual", 2049, 2049 * 16)
    assert row["scheduler_rss_gib"] > 0


def test_targets_go_on_after_a_workload_that_fails(tmp_path: Path) -> None:
    out = tmp_path / "targets.json"
    sizes = ["--only=W3,W4", "--reps=1", "--batches=1", "--clients=1"]
    flags = [VIRTUAL, "--executor-flag=--max-model-len=512", f"--out={out}"]
    command = [sys.executable, "benchmarks/targets.py", *sizes, *flags]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    report = json.loads(out.read_text())
    assert [row["batch"] for row in report["rows"] if row["test"] == "decode"] == [1]
    assert list(report["failures"]) == ["0.6b W4"]
    assert "failed: BenchmarkError" in done.stdout


def test_two_trees_are_measured_in_one_session() -> None:
    sizes = ("--reps=1", "--batches", "2", "--prompt-tokens=4", "--output-tokens=8", "--clients=1")
    (row,) = rows("compare_trees", str(REPOSITORY), "--rounds=1", VIRTUAL, *sizes)
    assert (row["batch"], row["rounds"]) == (2, 1)
    assert row["ratio"] == pytest.approx(row["after_ms"] / row["before_ms"], rel=1e-3)
