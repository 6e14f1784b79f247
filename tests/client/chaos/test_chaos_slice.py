"""The whole kit, small: some seeded runs against real processes, and proof that it would notice a wrong token."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NUM_RUNS = 8

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def play(profile: Path, out: Path, *flags: str) -> tuple[int, dict[str, Any], str]:
    """Runs the command; returns its exit status, its JSON and all that it said."""
    command = [sys.executable, "-m", "nanoserve_client", "chaos", f"--profile={profile}", f"--json={out}"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False, timeout=280)
    said = done.stdout + done.stderr
    assert out.exists(), said
    return done.returncode, json.loads(out.read_text()), said


def test_under_faults_no_token_is_lost_repeated_or_changed_and_nothing_is_left(tmp_path: Path):
    slice_profile = Path(__file__).with_name("slice.toml")
    status, found, said = play(slice_profile, tmp_path / "out.json", f"--runs={NUM_RUNS}", "--jobs=2")
    assert status == 0, said
    everything = found["rows"][-1]
    assert found["num_runs"] == everything["runs"] == NUM_RUNS
    assert everything["injected"] >= NUM_RUNS
    assert everything["streams"] >= 8 * NUM_RUNS
    assert everything["wrong"] == 0


def test_a_single_wrong_token_of_the_executor_is_noticed(tmp_path: Path):
    profile = tmp_path / "liar.toml"
    profile.write_text('summary = "a lie"\n[[fault]]\nkind = "tamper"\ntarget = "executor"\nways = ["lie"]\n')
    status, found, said = play(profile, tmp_path / "out.json", "--runs=1")
    assert status == 1, said
    assert any("token" in problem and "not" in problem for problem in found["problems"]), said
