"""`nanoserve switch-executor`: an executor's upgrade with no stream dropped."""

import argparse

from nanoserve_client.commands.shared import add_server_argument, address_argument, connect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's flags."""
    parser.epilog = (
        "The other executor must be warm and hold the same model. The scheduler opens a session with it, lets the\n"
        "steps under way end on the present one, and goes on there. The present one goes on running: end it when this\n"
        "command has. Give the scheduler the new address at its next start."
    )
    parser.add_argument(
        "executor",
        type=address_argument,
        metavar="ADDR",
        help="host:port or unix:PATH, as the scheduler sees it",
    )
    add_server_argument(parser)
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", default=60.0, help="(default %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Switches, and says so."""
    with connect(arguments) as client:
        epoch = client.switch_executor(arguments.executor, timeout=arguments.timeout)
    print(f"on {arguments.executor} now, epoch {epoch}")
    return 0
