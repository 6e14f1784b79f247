"""The harness drives real services, with sizes of seconds and the virtual executor."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import crash_cost, harness, static_vs_continuous

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SIZES = ("--quick", "--clients=1", "--executor-flag=--virtual")


def rows(path: Path) -> dict[str, dict[str, Any]]:
    report = json.loads(path.read_text())
    assert report["failures"] == {}
    return {row["case"]: row for row in report["rows"]}


def test_static_pads_and_continuous_does_not_and_nothing_is_measured_twice(tmp_path: Path) -> None:
    def w6(sizes: harness.Sizes, arguments: Any) -> list[harness.Case]:
        found = static_vs_continuous.cases(sizes, arguments)
        return [case for case in found if case.name in ("W6: static", "W6: continuous")]

    flags = [*SIZES, f"--out={tmp_path}"]
    assert harness.main(None, static_vs_continuous.NAME, w6, flags) == 0
    path = tmp_path / "static_vs_continuous.json"
    found, written = rows(path), path.stat().st_mtime_ns
    static, continuous = found["W6: static"], found["W6: continuous"]
    assert static["padded_tokens"] > 0 == continuous["padded_tokens"]
    assert static["output_tokens"] == continuous["output_tokens"]
    assert static["steps"] > continuous["steps"]
    assert static["sequences_peak"] <= 4
    assert harness.main(None, static_vs_continuous.NAME, w6, flags) == 0
    assert path.stat().st_mtime_ns == written


def test_a_killed_executor_costs_time_and_no_token(tmp_path: Path) -> None:
    assert harness.main(None, crash_cost.NAME, crash_cost.cases, [*SIZES, f"--out={tmp_path}"]) == 0
    (row,) = rows(tmp_path / "crash_cost.json").values()
    assert row["output_tokens"] == 2 * 200
    assert 0 < row["away_s"] <= row["crashed_s"]
    assert row["longest_pause_s_p50"] > row["usual_pause_s_p50"]
