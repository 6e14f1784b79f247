"""`nanoserve chaos`: the services under faults, and every stream compared with its undisturbed run."""

import argparse
import asyncio
import importlib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's flags."""
    importlib.import_module("nanoserve_client.chaos.command").add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Plays what is asked for; 0 where nothing was wrong, 1 where something was."""
    status: int = asyncio.run(importlib.import_module("nanoserve_client.chaos.command").run(arguments))
    return status
