"""`python -m scheduler_svc.replay`, which `nanoserve replay` and `nanoserve verify-recording` call."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nanoserve.address import check_address
from scheduler_svc.executor_access import EXECUTOR_FLAGS, executor_access, executor_tls
from scheduler_svc.replay.player import Comparison, Divergence, PlayError, play
from scheduler_svc.replay.reader import RecordingError, read_recording
from scheduler_svc.replay.verifier import Report, verify


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="nanoserve replay",
        description="Plays a recording of nanoserve-scheduler --record against an executor, or checks it offline.",
        epilog="Exits 0 where nothing differs or is wrong, 1 where something is, 2 where it could not be found out.",
        allow_abbrev=False,
    )
    parser.add_argument("recording", metavar="F", type=Path, help="the recording")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--executor", metavar="ADDR", help="play it on the executor at host:port or unix:PATH")
    what.add_argument("--verify-only", action="store_true", help="check its plans and results offline")
    parser.add_argument("--take-over", action="store_true", help="end another scheduler's session first")
    for name in EXECUTOR_FLAGS:
        parser.add_argument(name, metavar="F", help="as of nanoserve-scheduler")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status, see the parser's epilog."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.take_over and arguments.verify_only:
        parser.error("--take-over: there is no executor with --verify-only")
    try:
        entries = read_recording(arguments.recording)
        if arguments.verify_only:
            outcome: Report | Comparison = verify(entries)
        else:
            address = check_address("--executor", arguments.executor)
            tls = executor_tls(
                arguments.executor_tls_ca, arguments.executor_tls_cert, arguments.executor_tls_key
            )
            executor = executor_access(address, tls, arguments.executor_secret_file)
            outcome = play(entries, executor, take_over=arguments.take_over)
    except (RecordingError, PlayError, ValueError) as error:
        name = "nanoserve verify-recording" if arguments.verify_only else parser.prog
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(outcome)) if arguments.json else "\n".join(_lines(outcome)))
    return 0 if _is_good(outcome) else 1


def _is_good(outcome: Report | Comparison) -> bool:
    return (outcome.fault if isinstance(outcome, Report) else outcome.divergence) is None


def _lines(outcome: Report | Comparison) -> list[str]:
    """What people read: the counts, then the verdict."""
    counts = {name: value for name, value in asdict(outcome).items() if isinstance(value, int)}
    width = max(map(len, counts))
    return [*(f"{name:<{width}}  {value}" for name, value in counts.items()), _verdict(outcome)]


def _verdict(outcome: Report | Comparison) -> str:
    if isinstance(outcome, Comparison):
        return f"first divergence: {_where(outcome.divergence)}" if outcome.divergence else "no divergence"
    fault = outcome.fault
    if fault is None:
        return "no fault"
    return f"fault: session {fault.session}, step {fault.step_id}: {fault.kind}: {fault.description}"


def _where(divergence: Divergence) -> str:
    place = f"session {divergence.session}, step {divergence.step_id}.{divergence.sub_step}"
    if divergence.row is not None:
        place += f", row {divergence.row}, position {divergence.position}"
    return f"{place}: {divergence.what}: expected {divergence.expected}, got {divergence.got}"


if __name__ == "__main__":
    sys.exit(main())
