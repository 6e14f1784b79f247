"""What `nanoserve chaos` takes and does."""

import argparse
import asyncio
import json
import shlex
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from nanoserve.flags import OneLineParser
from nanoserve_client.chaos import goodput, kill_loop, report, soak
from nanoserve_client.chaos.executors import EXECUTORS
from nanoserve_client.chaos.profile import load_profile, profile_names
from nanoserve_client.chaos.runner import Plan, play_runs
from nanoserve_client.chaos.runs import RunRecord
from nanoserve_client.chaos.stack import ServiceLog
from nanoserve_client.chaos.trials import TrialPlan, TrialResult
from nanoserve_client.errors import InvalidRequest, NanoserveError

_TELL_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class _Trial:
    """One that is not made of runs; the figures are what it takes where nothing is said."""

    summary: str
    play: Callable[[TrialPlan, ServiceLog], Awaitable[TrialResult]]
    seconds: float
    num_streams: int


_TRIALS = {
    "kill-loop": _Trial("the executor killed 5 s after each time it serves again", kill_loop.play, 120.0, 32),
    "goodput": _Trial("five times the load that can be carried", goodput.play, 120.0, 32),
    "soak": _Trial("mixed traffic, clients that leave, for long", soak.play, 1800.0, 16),
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all its flags."""
    parser = OneLineParser(
        prog="nanoserve chaos",
        description="Try the services under faults and compare every stream with its undisturbed run.",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--profile", required=True, metavar="NAME|F", help="one of those below, or a TOML file of faults"
    )
    parser.add_argument(
        "--runs", type=int, metavar="N", default=8, help="runs of a profile (default %(default)s)"
    )
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
    parser.add_argument("--seconds", type=float, metavar="X", help="how long a trial goes on")
    parser.add_argument("--streams", type=int, metavar="N", help="requests under way at once in a trial")
    parser.add_argument("--json", type=Path, metavar="F", help="write the outcome to F, too")
    parser.add_argument("--log", type=Path, metavar="F", help="write what the services say to F")
    return parser


def _epilog() -> str:
    profiles = [f"  {name:<12} {load_profile(name).summary}" for name in profile_names()]
    trials = [
        f"  {name:<12} {trial.summary} ({trial.seconds:g} s, {trial.num_streams} streams)"
        for name, trial in _TRIALS.items()
    ]
    end = "Exits 0 where nothing was wrong. docs/reliability.md says what is checked."
    return "\n".join(["profiles, made of runs:", *profiles, "", "trials:", *trials, "", end])


def main(words: Sequence[str]) -> int:
    """Plays what the words ask for and reports; 0 where nothing was wrong."""
    parser = build_parser()
    arguments = parser.parse_args(words)
    for name in ("runs", "jobs", "streams", "seconds"):
        value = getattr(arguments, name)
        if value is not None and not value >= 1:
            parser.error(f"--{name}: must be at least 1")
    if sys.platform != "linux":
        raise NanoserveError("chaos: reads /proc, and so needs Linux")
    return asyncio.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    with ExitStack() as exits:
        log = ServiceLog()
        if arguments.log is not None:
            log.write = _writer(exits.enter_context(_opened(arguments.log)))
        trial = _TRIALS.get(arguments.profile)
        found = await (_run_profile(arguments, log) if trial is None else _run_trial(arguments, trial, log))
    report.print_problems(found["problems"])
    common = {"profile": arguments.profile, "executor": arguments.executor, "seed": arguments.seed}
    seconds = round(time.monotonic() - began, 1)
    _write(arguments.json, {**common, "seconds": seconds, **found, **report.environment()})
    return 1 if found["problems"] else 0


async def _run_profile(arguments: argparse.Namespace, log: ServiceLog) -> dict[str, Any]:
    plan = Plan(
        profile=load_profile(arguments.profile),
        executor=EXECUTORS[arguments.executor],
        seed=arguments.seed,
        runs=range(arguments.first_run, arguments.first_run + arguments.runs),
        model=arguments.model,
        executor_flags=arguments.executor_flag,
        jobs=arguments.jobs,
    )
    outcome = await play_runs(plan, log, _Teller(arguments))
    found = report.summary(outcome)
    report.print_rows(found["rows"])
    return {"first_run": arguments.first_run, **found}


async def _run_trial(arguments: argparse.Namespace, trial: _Trial, log: ServiceLog) -> dict[str, Any]:
    plan = TrialPlan(
        executor=EXECUTORS[arguments.executor],
        seed=arguments.seed,
        seconds=arguments.seconds or trial.seconds,
        num_streams=arguments.streams or trial.num_streams,
        model=arguments.model,
        executor_flags=arguments.executor_flag,
    )
    result = await trial.play(plan, log)
    figures = {name: report.rounded(value) for name, value in result.figures.items()}
    report.print_rows([{"figure": name, "value": value} for name, value in figures.items()])
    return {
        "trial_seconds": plan.seconds,
        "num_streams": plan.num_streams,
        **figures,
        "problems": result.problems,
    }


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
            print(f"  again: {again(self._arguments, record.number)}", file=sys.stderr)
        if time.monotonic() - self._told_at > _TELL_SECONDS:
            self._told_at = time.monotonic()
            print(f"{self._num_done} of {self._arguments.runs} runs", file=sys.stderr)


def again(arguments: argparse.Namespace, number: int) -> str:
    """The command that plays one run of those that were asked for."""
    model = [] if arguments.model is None else [f"--model={arguments.model}"]
    words = [
        *(f"--profile={arguments.profile}", f"--executor={arguments.executor}", *model),
        *(f"--executor-flag={flag}" for flag in arguments.executor_flag),
        *(f"--seed={arguments.seed}", f"--first-run={number}", "--runs=1"),
    ]
    return shlex.join(["nanoserve", "chaos", *words])


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
