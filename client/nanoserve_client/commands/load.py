"""`nanoserve load`: what a server is doing at this moment."""

import argparse
import dataclasses
import json

from nanoserve_client.commands.shared import add_server_argument, connect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's flags."""
    add_server_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Prints one reading, a line a figure."""
    with connect(arguments) as client:
        record = dataclasses.asdict(client.get_load(timeout=10))
    if arguments.json:
        print(json.dumps(record))
        return 0
    figures = {**record, **(record.pop("step_stats") or {})}
    figures.pop("step_stats", None)
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {f'{value:.3f}' if isinstance(value, float) else value}")
    return 0
