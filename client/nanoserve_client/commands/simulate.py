"""`nanoserve simulate`: the scheduler's simulator, in a process of its own, because the client imports no service."""

import argparse
import subprocess
import sys
from collections.abc import Sequence

SIMULATE_COMMAND = (sys.executable, "-P", "-m", "scheduler_svc.simulate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Takes every word as it stands, --help too: the simulator has a parser of its own."""
    parser.prefix_chars = ""  # so that no word is a flag of this parser
    parser.add_argument("words", nargs=argparse.REMAINDER)


def run(arguments: argparse.Namespace) -> int:
    """Runs the simulator; its exit status."""
    return run_words(SIMULATE_COMMAND, arguments)


def run_words(command: Sequence[str], arguments: argparse.Namespace) -> int:
    """Runs a command with the words that add_arguments took; its exit status."""
    return subprocess.run([*command, *arguments.words], check=False).returncode
