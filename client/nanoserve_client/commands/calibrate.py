"""`nanoserve calibrate`: an executor profile for the simulator, in a process of its own like the simulator itself."""

import argparse
import sys

from nanoserve_client.commands import simulate

CALIBRATE_COMMAND = (sys.executable, "-P", "-m", "scheduler_svc.simulate.calibrate_command")

add_arguments = simulate.add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Calibrates; returns the exit status."""
    return simulate.run_words(CALIBRATE_COMMAND, arguments)
