"""`nanoserve simulate`: what it prints, and its exit status."""

import json
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from nanoserve_client.cli import main as nanoserve
from scheduler_svc.__main__ import main as scheduler_main
from scheduler_svc.scheduling_flags import SchedulingFlags, flag
from scheduler_svc.simulate.__main__ import main
from scheduler_svc.simulate.calibrate_command import main as calibrate
from scheduler_svc.simulate.profile import read_profile

ROOT = Path(__file__).parents[3]
TRACE = ROOT / "experiments" / "traces" / "example.jsonl"
PROFILES = ROOT / "experiments" / "profiles"
PROFILE = PROFILES / "illustrative.json"
EXAMPLE = ["--trace", str(TRACE), "--executor-profile", str(PROFILE), "--limit", "30", "--rate", "20"]
Capture = pytest.CaptureFixture[str]


def report(argv: list[str], capsys: Capture) -> dict[str, object]:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_prints_a_table_and_one_json_object_last(capsys: Capture) -> None:
    assert main(EXAMPLE) == 0
    told, error = capsys.readouterr()
    *lines, last = told.splitlines()
    assert error == ""
    assert [line.split()[0] for line in lines[2:6]] == ["TTFT", "TPOT", "ITL", "latency"]
    figures = json.loads(last)
    assert figures["num_requests"] == 30
    assert figures["profile"]["source"].startswith("illustrative, not measured")
    assert figures["flags"]["limit"] == 30
    assert figures["prefix_hit_rate"] > 0


def test_the_same_arguments_print_the_same_object_and_flags_change_it(capsys: Capture) -> None:
    first = report(EXAMPLE, capsys)
    assert report(EXAMPLE, capsys) == first
    for flags in (
        ["--pipeline-depth=1"],
        ["--no-enable-prefix-caching"],
        ["--rate=5"],
        ["--boundary-latency-ms=4"],
        ["--num-kv-blocks=200"],
        ["--max-num-seqs=2"],
        ["--max-num-batched-tokens=300"],
        ["--ignore-eos"],
        ["--block-size=300"],
        ["--max-model-len=600"],
        ["--seed=1", "--no-enable-prefix-caching"],
        ["--batching=static"],
        ["--batching=naive"],
        ["--batching=naive", "--no-kv-cache"],
        ["--kv-allocation=contiguous", "--num-kv-blocks=1000"],
        ["--max-plan-ms=200"],
        ["--max-plan-ms=200", "--max-num-decode-steps=2"],
    ):
        other = report([*EXAMPLE, *flags], capsys)
        assert other["flags"] != first["flags"]
        if "--seed=1" not in flags:
            assert other["latency_ms"] != first["latency_ms"], flags
    tight = [*EXAMPLE, "--max-num-batched-tokens=600"]
    chunked = report(tight, capsys)
    whole = report([*tight, "--no-enable-chunked-prefill"], capsys)
    assert whole["num_refused"] > chunked["num_refused"] == 0


def test_every_flag_that_the_core_knows_is_the_schedulers_own(capsys: Capture) -> None:
    """One definition for both commands: what is added for the service, the simulator takes."""
    for command in (main, scheduler_main):
        with pytest.raises(SystemExit):
            command(["--help"])
        told = capsys.readouterr().out
        for entry in fields(SchedulingFlags):
            assert flag(entry.name) in told


def test_what_the_core_counts_is_told(capsys: Capture) -> None:
    static = report([*EXAMPLE, "--batching=static"], capsys)
    assert static["num_padded_tokens"] > 0
    assert static["mean_padding_rows"] > 0
    assert static["num_prefix_hit_tokens"] == static["prefix_hit_rate"] * static["num_prefix_query_tokens"]
    paged = report(EXAMPLE, capsys)
    assert paged["num_late_tokens"] > paged["num_padded_tokens"] == 0
    contiguous = report([*EXAMPLE, "--kv-allocation=contiguous"], capsys)
    assert contiguous["unused_slot_share"] > 0.5 > paged["unused_slot_share"] > 0
    assert contiguous["mean_unused_slots"] > paged["mean_unused_slots"]
    tight = report([*EXAMPLE, "--num-kv-blocks=120", "--max-model-len=1900"], capsys)
    assert tight["num_preemptions"] > 0


def test_a_public_trace_needs_a_rate_and_takes_a_tokenizer(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "sharegpt.json"
    turns = [{"from": "human", "value": "What is 123 + 45?"}, {"from": "gpt", "value": "168"}]
    path.write_text(json.dumps([{"conversations": turns}, {"conversations": []}] * 4))
    argv = ["--trace", str(path), "--executor-profile", str(PROFILE)]
    assert main(argv) == 1
    expected = "nanoserve simulate: --rate: is required, because the trace has no arrival times\n"
    assert capsys.readouterr() == ("", expected)
    estimated = report([*argv, "--rate", "2"], capsys)
    assert (estimated["num_requests"], estimated["num_output_tokens"]) == (4, 4)
    assert report([*argv, "--rate", "2", "--seed=9"], capsys)["ttft_ms"] != estimated["ttft_ms"]
    counted = report([*argv, "--rate", "2", "--model", str(ROOT / "models" / "demo-qwen3")], capsys)
    assert counted["num_requests"] == 4
    assert counted["num_output_tokens"] != 4


def test_calibration_writes_a_profile_that_can_be_simulated(tmp_path: Path, capsys: Capture) -> None:
    log, profile = tmp_path / "steps.jsonl", tmp_path / "profile.json"
    steps = [(tokens, tokens + context) for tokens in (1, 8, 64) for context in (0, 100, 5000)]
    entries = [
        {"num_tokens": tokens, "num_context_tokens": context, "device_ns": 10**6 + 300 * tokens + 2 * context}
        for tokens, context in steps
    ]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert calibrate([f"--step-log={log}", f"--out={profile}"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["fixed_ns"], found["token_ns"], found["kv_token_ns"]) == pytest.approx((1e6, 300, 2))
    argv = ["--trace", str(TRACE), "--executor-profile", str(profile), "--limit=5"]
    assert report(argv, capsys)["num_requests"] == 5


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--executor-profile", "p"], "--trace"),
        (["--trace", "t"], "--executor-profile"),
        ([*EXAMPLE, "--rate", "0"], "--rate: must be finite and above 0, got 0.0"),
        ([*EXAMPLE, "--limit", "0"], "--limit: must be at least 1, got 0"),
        ([*EXAMPLE, "--num-kv-blocks", "1"], "--num-kv-blocks: must be at least 2, got 1"),
        ([*EXAMPLE, "--pipeline-depth", "0"], "--pipeline-depth: must be at least 1, got 0"),
        (
            [*EXAMPLE, "--batching", "bulk"],
            "--batching: must be one of continuous, static, naive, got 'bulk'",
        ),
        ([*EXAMPLE, "--no-kv-cache"], "--no-kv-cache: is for --batching naive, not continuous"),
        ([*EXAMPLE, "--boundary-latency-ms", "nan"], "--boundary-latency-ms: must be finite"),
        ([*EXAMPLE, "--bogus"], "--bogus"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(flags: list[str], told: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(flags)
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert told in error


def test_what_does_not_fit_is_one_line_and_status_1(tmp_path: Path, capsys: Capture) -> None:
    assert main([*EXAMPLE, "--max-num-batched-tokens=8"]) == 1
    told = "nanoserve simulate: --max-num-batched-tokens: 8 is less than the executor's 256 rows\n"
    assert capsys.readouterr().err == told
    assert main([*EXAMPLE, "--executor-profile", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"nanoserve simulate: {tmp_path}: Is a directory\n"


def test_the_nanoserve_command_passes_every_word_on(capfd: pytest.CaptureFixture[str]) -> None:
    assert nanoserve(["simulate", *EXAMPLE, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["num_requests"] == 30
    assert nanoserve(["simulate", "--help"]) == 0
    assert "--executor-profile F" in capfd.readouterr().out
    assert nanoserve(["simulate", "--bogus"]) == 2
    assert "nanoserve simulate: " in capfd.readouterr().err


def test_the_simulator_runs_without_torch() -> None:
    script = f"import sys; from scheduler_svc.simulate.__main__ import main; main({EXAMPLE!r}); "
    script += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_the_shipped_profiles_say_where_they_come_from() -> None:
    sources = {path.stem: read_profile(path).source for path in PROFILES.iterdir()}
    assert sources.pop("illustrative").startswith("illustrative, not measured")
    assert sources
    assert all(source.startswith("measured: ") for source in sources.values())


def test_the_shipped_trace_is_what_its_script_makes() -> None:
    script = runpy.run_path(str(TRACE.with_name("make_example.py")))
    lines = TRACE.read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(script["requests"]())
