"""Cases are measured once, one after the other, whatever becomes of each."""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import harness
from experiments.harness import UNFINISHED, Case, Experiment, checked_run, parser
from experiments.progress import Progress
from experiments.sizes import sizes_of
from experiments.store import Row
from experiments.study import EXPERIMENTS
from experiments.tp_scaling import add_arguments


def arguments(*flags: str) -> argparse.Namespace:
    command = parser(None)
    add_arguments(command)
    return command.parse_args(flags)


def experiment(names: str, measure: Callable[[str], Row], size: int = 1) -> Experiment:
    """Cases of these names that want no services."""

    def case(name: str) -> Case:
        return Case(name, {"size": size}, None, alone=lambda _: measure(name))

    return lambda sizes, given: [case(name) for name in names]


def test_the_same_command_again_measures_only_what_is_missing(tmp_path: Path) -> None:
    measured: list[str] = []

    def measure(name: str) -> Row:
        measured.append(name)
        if name == "b" and measured.count("b") == 1:
            raise ValueError("not this time\nsecond line")
        return {"figure": len(measured)}

    given = arguments(f"--out={tmp_path}")
    assert checked_run({"one": experiment("abc", measure)}, given) == 1
    assert '"b": "ValueError: not this time"' in (tmp_path / "one.json").read_text()
    assert checked_run({"one": experiment("abc", measure)}, given) == 0
    assert checked_run({"one": experiment("abc", measure)}, given) == 0
    assert measured == ["a", "b", "c", "b"]
    assert checked_run({"one": experiment("abc", measure, size=2)}, given) == 0
    assert measured[4:] == ["a", "b", "c"]


def test_no_case_begins_when_the_minutes_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(harness.time, "monotonic", lambda: now[0])
    measured: list[str] = []

    def measure(name: str) -> Row:
        measured.append(name)
        now[0] += 50.0
        return {}

    given, cases = arguments(f"--out={tmp_path}", "--minutes=1.5"), {"one": experiment("abcd", measure)}
    assert checked_run(cases, given) == UNFINISHED
    assert measured == ["a", "b"]
    assert checked_run(cases, given) == 0
    assert measured == ["a", "b", "c", "d"]


def test_what_another_machine_measured_ends_the_command_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {"one": experiment("a", lambda name: {})}
    assert checked_run(cases, arguments(f"--out={tmp_path}")) == 0
    elsewhere = harness.environment() | {"gpu": "NVIDIA H200, 580"}
    monkeypatch.setattr(harness, "environment", lambda: elsewhere)
    assert checked_run(cases, arguments(f"--out={tmp_path}")) == 2
    assert "another --out" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("shape", ["demo", "0.6b", "14b"])
def test_every_experiment_has_cases_of_different_names(shape: str, device: str) -> None:
    given = arguments(f"--model-shape={shape}", f"--device={device}", "--sizes", "1", "2")
    for name, cases in EXPERIMENTS.items():
        found = cases(sizes_of(shape, shape), given)
        assert found or (name, device) == ("cuda_graphs", "cpu")
        assert len({case.name for case in found}) == len(found)


def test_what_is_left_is_estimated_from_what_was_measured_now(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(harness.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(num_cases=10, num_done=4, stream=stream)
    progress.show("fifth")
    now[0] = 30.0
    progress.done()
    progress.show("sixth")
    first, second = stream.getvalue().splitlines()
    assert first.endswith("4/10 0:00  fifth")
    assert second.endswith("5/10 0:30, about 2:30 left  sixth")
