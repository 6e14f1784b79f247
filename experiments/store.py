"""One experiment's file of JSON: written anew after each case, and read again to go on from there."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# What may not differ between the rows of a file: its ratios are of one kind of machine.
_SAME = ("gpu", "cpu", "num_cpus", "python", "torch")


class StudyError(Exception):
    """The study cannot go on; the message is one line."""


@dataclass(slots=True)
class Store:
    """One experiment's file. A case that has a row is done; one that failed is not."""

    path: Path
    experiment: str
    model: str
    environment: Row
    """What report.environment says of this machine."""
    rows: list[Row] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    """Case -> why it has no row."""

    def row(self, case: str, parameters: Mapping[str, Any]) -> Row | None:
        """The row of a case with just these parameters; None where it has to be measured."""
        wanted = json.loads(json.dumps(parameters))  # as they come back from a file
        for row in self.rows:
            if row["case"] == case and row["parameters"] == wanted:
                return row
        return None

    def add(self, case: str, parameters: Mapping[str, Any], figures: Row) -> None:
        """Takes in a measured case, in the place of what was known of it, and writes the file."""
        made = {name: self.environment[name] for name in ("commit", "date")}
        self.rows = [row for row in self.rows if row["case"] != case]
        self.rows.append({"case": case, "parameters": json.loads(json.dumps(parameters)), **figures, **made})
        self.failures.pop(case, None)
        self.write()

    def fail(self, case: str, reason: str) -> None:
        """Notes why a case has no row, and writes the file."""
        self.failures[case] = reason
        self.write()

    def write(self) -> None:
        """Writes the file whole, so that whoever is cut off in between leaves the one before."""
        report = {
            "experiment": self.experiment,
            "model": self.model,
            "environment": self.environment,
            "rows": self.rows,
            "failures": self.failures,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)


def opened(folder: Path, experiment: str, model: str, environment: Row, *, fresh: bool = False) -> Store:
    """The experiment's file in the folder, with what it holds unless `fresh`.

    StudyError where that was measured on another machine, with other versions or for another model.
    """
    store = Store(folder / f"{experiment}.json", experiment, model, environment)
    if fresh or not store.path.exists():
        return store
    report = json.loads(store.path.read_text(encoding="utf-8"))
    before = {"model": report["model"]} | {name: report["environment"].get(name) for name in _SAME}
    now = {"model": model} | {name: environment.get(name) for name in _SAME}
    for name, value in now.items():
        if before[name] != value:
            reason = f"it has rows with {name} {before[name]!r}, and here it is {value!r}"
            raise StudyError(f"{store.path}: {reason}: take another --out, or --fresh")
    store.rows, store.failures = report["rows"], report["failures"]
    return store
