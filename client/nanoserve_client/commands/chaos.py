"""`nanoserve chaos`: the services under faults, and every stream compared with its undisturbed run."""

import argparse

from nanoserve_client.commands import simulate

add_arguments = simulate.add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Plays what is asked for; 0 where nothing was wrong, 1 where something was."""
    # At this point, because no other command is to wait for the whole kit.
    from nanoserve_client.chaos.command import main

    return main(arguments.words)
