"""From a recording to a step log to a profile: what the plans computed and read, and what that costs."""

import json
from itertools import groupby
from pathlib import Path

import pytest
from recordings import RecordingHarness

from nanoserve.executor.v1.recording_pb2 import RecordingEntry
from nanoserve_client.cli import main as nanoserve
from scheduler_svc.core.scheduler import CoreConfig
from scheduler_svc.recording import varint
from scheduler_svc.replay.reader import RecordingError
from scheduler_svc.simulate.calibrate_command import main
from scheduler_svc.simulate.profile import read_profile
from scheduler_svc.simulate.step_log import MeasuredStep, StepLogReader

FIXED_NS, TOKEN_NS, KV_TOKEN_NS = 4_000_000, 8_000, 16
OVERHEAD_NS = 600_000
Capture = pytest.CaptureFixture[str]


def steps_of(entries: list[RecordingEntry]) -> list[MeasuredStep]:
    return list(StepLogReader().steps(entries))


def eventful() -> RecordingHarness:
    """Chunks, shared prefixes, preemption, several steps a plan, a lost session and a new executor."""
    harness = RecordingHarness(CoreConfig(max_num_batched_tokens=10), num_blocks=9)
    for seed in range(3):
        harness.add([1] * 9 + [seed], max_tokens=9, seed=seed)
    harness.run_to_end()
    harness.lose_session()
    harness.add([2] * 13, max_tokens=6, seed=7, n=2)
    harness.run_to_end(num_decode_steps=3)
    harness.lose_session(instance_id="another", num_blocks=12)
    harness.add([1] * 12, max_tokens=8)
    harness.add([1] * 11, max_tokens=8)
    harness.run_to_end(num_decode_steps=2)
    assert harness.core.stats().num_preemptions > 0
    return harness


def timed(entries: list[RecordingEntry]) -> list[RecordingEntry]:
    """The recording as a device of known costs would have made it: it runs plans one behind the other."""
    now_ns = 0
    results = iter([entry.result for entry in entries if entry.HasField("result")])
    for step in steps_of(entries):
        device_ns = FIXED_NS + TOKEN_NS * step.num_tokens + KV_TOKEN_NS * step.num_context_tokens
        next(results).timing.device_ns = device_ns
    for entry in entries:
        if entry.HasField("result"):
            now_ns += entry.result.timing.device_ns + (OVERHEAD_NS if entry.result.last else 0)
        entry.time_ns = now_ns
    return entries


def test_what_a_plan_computes_and_reads_is_what_the_core_said_of_it():
    harness = eventful()
    steps = [list(group) for _, group in groupby(steps_of(harness.entries), key=lambda step: step.step_id)]
    assert max(map(len, steps)) == 3
    assert [(group[0].step_id, len(group)) for group in steps] == [
        (plan.step_id, plan.num_decode_steps) for plan in harness.plans
    ]
    for group, plan in zip(steps, harness.plans, strict=True):
        assert sum(step.num_tokens for step in group) == plan.num_tokens
        assert sum(step.num_context_tokens for step in group) == plan.num_context_tokens
        assert [step.sub_step for step in group] == list(range(len(group)))


def test_only_a_plan_that_waited_for_no_other_tells_what_lies_between():
    harness = RecordingHarness(CoreConfig(max_num_batched_tokens=10, pipeline_depth=2))
    harness.add([1, 2, 3], max_tokens=4)
    harness.run_to_end()
    entries = timed(harness.entries)
    overheads = [step.overhead_ns for step in steps_of(entries)]
    assert overheads[0] == OVERHEAD_NS
    assert overheads[1] is None


def test_results_that_answer_no_plan_are_no_step_log():
    entries = [entry for entry in eventful().entries if not entry.HasField("plan")]
    with pytest.raises(RecordingError, match="verify-recording"):
        steps_of(entries)


def test_a_recording_becomes_a_profile_with_its_sizes_and_a_step_log(tmp_path: Path, capsys: Capture):
    recording, profile, log = (tmp_path / name for name in ("run.rec", "profile.json", "steps.jsonl"))
    messages = [entry.SerializeToString() for entry in timed(eventful().entries)]
    recording.write_bytes(b"".join(varint(len(data)) + data for data in messages))
    command = [f"--recording={recording}", f"--out={profile}", f"--write-step-log={log}", "--source=a test"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = (FIXED_NS, TOKEN_NS, KV_TOKEN_NS)
    assert (found["fixed_ns"], found["token_ns"], found["kv_token_ns"]) == pytest.approx(expected)
    written = read_profile(profile)
    assert written.source.startswith("a test: ")
    assert (written.num_kv_blocks, written.block_size, written.max_num_seqs) == (12, 4, 4)
    assert (written.max_model_len, written.max_num_decode_steps) == (40, 4)
    assert written.boundary_latency_ms == pytest.approx(OVERHEAD_NS / 2 * 1e-6)
    assert main([f"--step-log={log}", f"--out={profile}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fixed_ns"] == pytest.approx(FIXED_NS)
    assert read_profile(profile).num_kv_blocks is None


@pytest.mark.parametrize("source", ["--recording", "--step-log"])
def test_what_is_not_there_is_one_line_and_status_1(source: str, tmp_path: Path, capsys: Capture):
    assert main([f"{source}={tmp_path}/none", f"--out={tmp_path}/p"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "No such file" in error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--out=p"], "--recording"),
        (["--step-log=s", "--out=p", "--write-step-log=t"], "--write-step-log: needs --recording"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(words: list[str], told: str, capsys: Capture):
    with pytest.raises(SystemExit) as leaving:
        main(words)
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert told in error


def test_the_nanoserve_command_has_it(capfd: pytest.CaptureFixture[str]):
    assert nanoserve(["calibrate", "--help"]) == 0
    assert "--recording F" in capfd.readouterr().out
