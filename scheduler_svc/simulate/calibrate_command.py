"""`python -m scheduler_svc.simulate.calibrate_command` is `nanoserve calibrate`: from a recording to a profile."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from json import dumps
from pathlib import Path
from statistics import median
from typing import Any

from nanoserve.flags import OneLineParser
from scheduler_svc.replay.reader import RecordingError, read_recording
from scheduler_svc.simulate.calibrate import Calibration, calibrate, read_step_log
from scheduler_svc.simulate.profile import SIZES, ExecutorProfile, write_profile
from scheduler_svc.simulate.public_traces import read_text
from scheduler_svc.simulate.step_log import MeasuredStep, StepLogReader


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(
        prog="nanoserve calibrate",
        description="Finds what a step costs from measured steps, and writes a profile for nanoserve simulate.",
        epilog="Prints the costs and how well they tell the steps, then one JSON object as the last line.",
        allow_abbrev=False,
    )
    steps = parser.add_mutually_exclusive_group(required=True)
    steps.add_argument(
        "--recording", type=Path, metavar="F", help="what nanoserve-scheduler --record wrote: steps and sizes"
    )
    steps.add_argument(
        "--step-log", type=Path, metavar="F", help="steps as JSON lines, see docs/simulator.md"
    )
    parser.add_argument("--out", type=Path, metavar="PROFILE", required=True, help="the profile to write")
    parser.add_argument(
        "--write-step-log", type=Path, metavar="F", help="write the recording's steps as a step log too"
    )
    parser.add_argument("--source", metavar="TEXT", help="what the profile says of where it comes from")
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 1 with one line on stderr. Wrong usage exits with 2."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.write_step_log and not arguments.recording:
        parser.error("--write-step-log: needs --recording")
    try:
        result, profile = _calibrate(arguments)
        write_profile(arguments.out, profile)
    except (RecordingError, OSError, ValueError) as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    if not arguments.json:
        print(
            f"a step takes {profile.fixed_ms:.4g} ms, {profile.token_us:.4g} us more for each token computed,"
        )
        print(f"{profile.kv_token_ns:.4g} ns more for each KV position read; wrote {arguments.out}")
        print(f"median error {result.median_error:.1%} over the {result.num_steps} steps themselves")
    print(dumps(asdict(result) | {"boundary_latency_ms": profile.boundary_latency_ms}))
    return 0


def _calibrate(arguments: argparse.Namespace) -> tuple[Calibration, ExecutorProfile]:
    if arguments.step_log:
        name, lines = arguments.step_log, read_text(arguments.step_log).split("\n")
        steps, sizes = [], {}
    else:
        reader = StepLogReader()
        steps = list(reader.steps(read_recording(arguments.recording)))
        name, lines, sizes = arguments.recording, [step.to_line() for step in steps], _sizes(reader)
    if arguments.write_step_log:
        arguments.write_step_log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    result = calibrate(read_step_log(str(name), lines))
    profile = result.profile(arguments.source or f"calibrated from {name.name}")
    return result, replace(profile, boundary_latency_ms=_boundary_latency_ms(steps), **sizes)


def _sizes(reader: StepLogReader) -> dict[str, Any]:
    """The executor's sizes, by their names in a profile."""
    names = {"num_kv_blocks": "num_blocks"}
    return {name: getattr(reader.executor, names.get(name, name)) for name in SIZES}


def _boundary_latency_ms(steps: list[MeasuredStep]) -> float:
    """Half of what a plan that waited for no other typically took beyond its device time; 0 where none is known."""
    overheads = [step.overhead_ns for step in steps if step.overhead_ns is not None]
    return median(overheads) / 2 * 1e-6 if overheads else 0.0


if __name__ == "__main__":
    sys.exit(main())
