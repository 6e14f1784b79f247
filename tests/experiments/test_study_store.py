"""What has been measured is kept, and measured again where it has to be."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.store import Store, StudyError, opened

HERE = {
    "gpu": None,
    "cpu": "an EPYC",
    "num_cpus": 2,
    "python": "3.11.7",
    "torch": "2.13.0",
    "commit": "abc",
    "date": "2026-11-24",
}


def store(folder: Path, model: str = "demo", **changes: Any) -> Store:
    return opened(folder, "ablation", model, HERE | changes)


def test_a_measured_case_is_found_again_by_equal_parameters(tmp_path: Path) -> None:
    first = store(tmp_path)
    first.add("whole", {"flags": ("--a", "--b"), "requests": 3}, {"tok_s": 1.5})
    again = store(tmp_path, commit="def", date="2026-11-25")
    row = again.row("whole", {"flags": ("--a", "--b"), "requests": 3})
    assert row is not None
    assert (row["tok_s"], row["commit"], row["date"]) == (1.5, "abc", "2026-11-24")


@pytest.mark.parametrize("parameters", [{"requests": 4}, {}, {"requests": 3, "flags": []}])
def test_other_parameters_are_measured_again_and_their_row_takes_the_place(
    tmp_path: Path, parameters: dict[str, Any]
) -> None:
    store(tmp_path).add("whole", {"requests": 3}, {"tok_s": 1.0})
    again = store(tmp_path)
    assert again.row("whole", parameters) is None
    again.add("whole", parameters, {"tok_s": 2.0})
    assert [row["tok_s"] for row in store(tmp_path).rows] == [2.0]


@pytest.mark.parametrize(
    "change", [{"cpu": "a Xeon"}, {"gpu": "NVIDIA H200"}, {"torch": "2.11.0"}, {"num_cpus": 16}]
)
def test_rows_of_another_machine_are_not_mixed_in(tmp_path: Path, change: dict[str, Any]) -> None:
    store(tmp_path).add("whole", {}, {"tok_s": 1.0})
    with pytest.raises(StudyError, match=next(iter(change))):
        store(tmp_path, **change)
    with pytest.raises(StudyError, match="model"):
        store(tmp_path, model="0.6b")
    assert opened(tmp_path, "ablation", "0.6b", HERE | change, fresh=True).rows == []


def test_a_failure_is_noted_and_goes_when_the_case_has_a_row(tmp_path: Path) -> None:
    first = store(tmp_path)
    first.fail("whole", "out of memory")
    again = store(tmp_path)
    assert (again.failures, again.row("whole", {})) == ({"whole": "out of memory"}, None)
    again.add("whole", {}, {"tok_s": 1.0})
    assert store(tmp_path).failures == {}


def test_a_write_that_is_cut_off_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store(tmp_path)
    first.add("one", {}, {"tok_s": 1.0})

    def fails(*_: Any) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(KeyboardInterrupt):
        first.add("two", {}, {"tok_s": 2.0})
    monkeypatch.undo()
    assert [row["case"] for row in json.loads(first.path.read_text())["rows"]] == ["one"]
    assert [row["case"] for row in store(tmp_path).rows] == ["one"]
