"""`nanoserve verify-recording`: a scheduler's recording, checked without an executor."""

import argparse

from nanoserve_client.commands.replay import forward


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's flags."""
    parser.epilog = (
        "F is what nanoserve-scheduler --record wrote. Checks that no block is written by two sequences or read\n"
        "before it is written, that positions are contiguous, rows used only while held, limits kept, epochs rise,\n"
        "and that results answer their plans; tells the first fault.\n"
        "Exits 0 where there is none, 1 at a fault, 2 where the recording could not be read."
    )
    parser.add_argument("recording", metavar="F", help="the recording")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Checks it; returns the exit status."""
    return forward(arguments, ["--verify-only"])
