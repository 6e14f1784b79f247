"""`nanoserve replay`: a scheduler's recording, played against an executor."""

import argparse
import importlib

from nanoserve_client.commands.shared import address_argument

_EXECUTOR_FLAGS = ("--executor-tls-ca", "--executor-tls-cert", "--executor-tls-key", "--executor-secret-file")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's flags."""
    parser.epilog = (
        "F is what nanoserve-scheduler --record wrote. Its sessions are played on the executor, which must be of the\n"
        "same model and at least the same sizes, and the tokens compared.\n"
        "Exits 0 where none differs, 1 at a divergence, 2 where the recording could not be played."
    )
    parser.add_argument("recording", metavar="F", help="the recording")
    parser.add_argument(
        "--executor", type=address_argument, metavar="ADDR", required=True, help="host:port or unix:PATH"
    )
    for name in _EXECUTOR_FLAGS:
        parser.add_argument(name, metavar="F", help="as of nanoserve-scheduler")
    parser.add_argument("--take-over", action="store_true", help="end another scheduler's session first")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Plays it; returns the exit status."""
    values = {name: getattr(arguments, name[2:].replace("-", "_")) for name in _EXECUTOR_FLAGS}
    flags = [
        f"--executor={arguments.executor}",
        *(f"{name}={value}" for name, value in values.items() if value is not None),
        *(["--take-over"] if arguments.take_over else []),
    ]
    return forward(arguments, flags)


def forward(arguments: argparse.Namespace, flags: list[str]) -> int:
    """Runs `python -m scheduler_svc.replay` in this process; a client has no need of that package before."""
    replay = importlib.import_module("scheduler_svc.replay.__main__")
    as_json = ["--json"] if arguments.json else []
    status: int = replay.main([*flags, *as_json, "--", arguments.recording])
    return status
