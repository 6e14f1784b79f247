"""What `nanoserve chaos` takes and does."""

import argparse
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from nanoserve_client.chaos import report
from nanoserve_client.chaos.executors import EXECUTORS
from nanoserve_client.chaos.profile import load_profile, profile_names
from nanoserve_client.chaos.runner import Plan, play_runs
from nanoserve_client.chaos.runs import RunRecord
from nanoserve_client.chaos.stack import ServiceLog
from nanoserve_client.errors import InvalidRequest, NanoserveError

_TELL_SECONDS = 15.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.epilog = _epilog()
    parser.add_argument(
        "--profile", required=True, metavar="NAME|F", help="which faults: a name below, or a TOML file"
    )
    parser.add_argument("--runs", type=int, metavar="N", default=8, help="runs to play (default %(default)s)")
    parser.add_argument("--seed", type=int, metavar="S", default=0, help="of all runs (default %(default)s)")
    parser.add_argument("--first-run", type=int, metavar="I", default=0, help="number of the first of them")
    parser.add_argument(
        "--executor", choices=sorted(EXECUTORS), default="virtual", help="(default %(default)s)"
    )
    parser.add_argument("--model", metavar="DIR|HUB_ID", help="what is served (default: the demo checkpoint)")
    parser.add_argument(
        "--executor-flag", action="append", default=[], metavar="FLAG", help="one more for the executor"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", default=1, help="pairs of services at once (default %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="F", help="write the outcome to F, too")
    parser.add_argument("--log", type=Path, metavar="F", help="write what the services say to F")


def _epilog() -> str:
    lines = ["profiles:"]
    for name in profile_names():
        lines.append(f"  {name:<12} {load_profile(name).summary}")
    return "\n".join(
        [*lines, "", "Exits 0 where nothing was wrong. docs/reliability.md says what is checked."]
    )


async def run(arguments: argparse.Namespace) -> int:
    """Plays the runs and reports; 0 where nothing was wrong."""
    for name in ("runs", "jobs"):
        if getattr(arguments, name) < 1:
            arguments.parser.error(f"--{name}: must be at least 1")
    profile = load_profile(arguments.profile)
    plan = Plan(
        profile=profile,
        executor=EXECUTORS[arguments.executor],
        seed=arguments.seed,
        runs=range(arguments.first_run, arguments.first_run + arguments.runs),
        model=arguments.model,
        executor_flags=arguments.executor_flag,
        jobs=arguments.jobs,
    )
    began = time.monotonic()
    with ExitStack() as exits:
        log = ServiceLog()
        if arguments.log is not None:
            log.write = _writer(exits.enter_context(_opened(arguments.log)))
        outcome = await play_runs(plan, log, _Teller(arguments))
    rows = report.rows_by_fault(outcome.records)
    report.print_rows(rows)
    report.print_problems(report.problems(outcome))
    result = {
        "profile": profile.name,
        "executor": plan.executor.name,
        "seed": plan.seed,
        "first_run": arguments.first_run,
        "seconds": round(time.monotonic() - began, 1),
        **report.summary(outcome),
        **report.environment(),
    }
    _write(arguments.json, result)
    return 0 if outcome.is_good else 1


class _Teller:
    """Says how far the runs are, and what was wrong as soon as it was."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._num_done = 0
        self._told_at = time.monotonic()

    def __call__(self, record: RunRecord) -> None:
        self._num_done += 1
        for problem in record.problems:
            print(f"run {record.number}: {problem}", file=sys.stderr)
        if record.problems:
            a = self._arguments
            again = f"--profile {a.profile} --executor {a.executor} --seed {a.seed}"
            print(f"  again: nanoserve chaos {again} --first-run {record.number} --runs 1", file=sys.stderr)
        if time.monotonic() - self._told_at > _TELL_SECONDS:
            self._told_at = time.monotonic()
            print(f"{self._num_done} of {self._arguments.runs} runs", file=sys.stderr)


def _opened(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"--log: cannot write {str(path)!r}: {error.strerror}") from error


def _writer(file: TextIO) -> Any:
    return lambda line: print(line, file=file, flush=True)


def _write(path: Path | None, result: dict[str, Any]) -> None:
    """Prints the outcome as the last line, and writes it where asked."""
    text = json.dumps(result)
    print(text)
    if path is not None:
        try:
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise NanoserveError(f"--json: cannot write {str(path)!r}: {error.strerror}") from error
