"""Every target in one table: measured here, beside what vLLM and nano-vllm did on an H200 (peers.jsonl).

Takes minutes on a GPU (`--only W3,W4` is quicker). A server that fails, or a case of it, is a line of the table, and
the rest goes on. The peers were driven in process but for W5; this server is always driven through gRPC. Prints the
table, then one JSON line; `--out` gets that as a file, written anew after each workload, so that a run that is cut
short leaves what it has.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measure
from benchmarks.load import add_load_arguments, load_clients
from benchmarks.report import environment, print_json, print_table
from benchmarks.server import add_server_arguments, serving

PEERS = Path(__file__).with_name("peers.jsonl")
TARGETS = Path(__file__).with_name("targets.jsonl")
_COLUMNS = (
    "workload",
    "shape",
    "case",
    "target",
    "measured",
    "vLLM",
    "nano-vllm",
    "vs target",
    "vs vLLM",
    "note",
)
# Workloads that share a server, by shape: each server is started once.
_SERVERS = {"0.6b": (("W1", "W3"), ("W4", "W5")), "14b": (("W2", "W3"), ("W4",))}

Row = dict[str, Any]


@dataclass(slots=True)
class Results:
    """What was measured, and what failed: (shape, workload) -> why."""

    rows: list[Row] = field(default_factory=list)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def figures(rows: Sequence[Row], match: Row, metric: str, peer: str | None = None) -> list[float]:
    """A figure of all rows that match. Of equal runs the first (run 0) is a warm-up; a start counts the imports."""
    found = []
    for row in rows:
        same = all(row.get(key) == wanted for key, wanted in match.items())
        if same and row.get("run") != 0 and (peer is None or row["peer"].split()[0] == peer):
            found.append(row[metric] + (row.get("import_s", 0.0) if metric == "start_s" else 0.0))
    return found


def _middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def comparison(targets: Sequence[Row], peers: Sequence[Row], results: Results) -> Iterator[Row]:
    """One line a target. Ratios are such that more is better, whichever way the figure goes; none without a GPU."""
    devices = {row["model"]: row["device"] for row in results.rows if "device" in row}
    with_peer = [row for row in peers if "peer" in row]
    for target in targets:
        match, metric = target["match"], target["metric"]
        # Of several starts the last one found its caches warm.
        ours = next(reversed(figures(results.rows, match, metric)), None)
        vllm = _middle(figures(with_peer, match, metric, "vllm"))
        higher = target["better"] == "higher"
        failure = results.failures.get((target["shape"], target["workload"]), "not measured")
        device = devices.get(target["shape"], "cuda")
        compared = ours if device.startswith("cuda") else None
        yield {
            **{key: target[key] for key in ("workload", "shape", "case", "target")},
            "measured": ours,
            "vLLM": vllm,
            "nano-vllm": _middle(figures(with_peer, match, metric, "nano-vllm")),
            "vs target": _ratio(compared, target["target"], higher),
            "vs vLLM": _ratio(compared, vllm, higher),
            "note": failure if ours is None else "" if compared is not None else f"device: {device}",
        }


def _ratio(ours: float | None, other: float | None, higher: bool) -> float | None:
    if ours is None or other is None or not ours:
        return None
    return ours / other if higher else other / ours


def run_server(shape: str, workloads: Sequence[str], arguments: argparse.Namespace, results: Results) -> None:
    """Starts one server and measures its workloads; what goes wrong is noted."""
    arguments = copy(arguments)
    arguments.model_shape = shape
    flags = measure.executor_flags(workloads[0], shape), measure.scheduler_flags(workloads[0])
    try:
        with serving(arguments, *flags) as server:
            if server.ready_seconds is not None:
                device = server.describe().device
                start = {"test": "startup", "model": shape, "start_s": server.ready_seconds, "device": device}
                given = {
                    "executor_flags": arguments.executor_flag,
                    "scheduler_flags": arguments.scheduler_flag,
                }
                results.rows.append(start | given)
            for workload in workloads:
                try:
                    with load_clients(server.address, arguments) as clients:
                        for row in measure.rows(workload, server, clients, arguments):
                            # The last of equal runs is the one that counts, whatever its number.
                            row.pop("run", None)
                            print(json.dumps(row), file=sys.stderr, flush=True)
                            results.rows.append(row)
                    server.check()
                except Exception as error:
                    results.failures[shape, workload] = _reason(error)
                write(arguments.out, results)
    except Exception as error:
        for workload in (*workloads, "start"):
            results.failures.setdefault((shape, workload), _reason(error))


def _reason(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:120]


def write(path: Path | None, results: Results) -> None:
    """Writes what there is so far."""
    if path is not None:
        failures = {f"{shape} {workload}": reason for (shape, workload), reason in results.failures.items()}
        report = {"rows": results.rows, "failures": failures} | environment()
        path.write_text(json.dumps(report, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument(
        "--shapes", default="0.6b", help="shapes to measure, such as 0.6b,14b (default: %(default)s)"
    )
    result.add_argument("--only", default="", metavar="W3,W4", help="workloads to measure (default: all)")
    result.add_argument("--out", type=Path, metavar="FILE", help="where the JSON goes too")
    add_server_arguments(result)
    add_load_arguments(result)
    measure.add_measure_arguments(result)
    return result


def main() -> int:
    """Runs the command line; 1 where something failed."""
    arguments = parser().parse_args()
    only = [name for name in arguments.only.split(",") if name] or list(measure.NAMES)
    shapes = arguments.shapes.split(",")
    results = Results()
    for shape in shapes:
        for group in _SERVERS[shape]:
            workloads = [name for name in group if name in only]
            if workloads:
                run_server(shape, workloads, arguments, results)
    targets = [
        row for row in read_rows(TARGETS) if row["shape"] in shapes and row["workload"] in (*only, "start")
    ]
    print_table(list(comparison(targets, read_rows(PEERS), results)), _COLUMNS)
    write(arguments.out, results)
    print_json(results.rows)
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
