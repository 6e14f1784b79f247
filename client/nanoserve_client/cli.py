"""The `nanoserve` command."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from nanoserve.flags import OneLineParser
from nanoserve_client.commands import (
    api_key,
    calibrate,
    chaos,
    chat,
    generate,
    health,
    load,
    profile,
    replay,
    serve,
    simulate,
    switch_executor,
    top,
    verify_recording,
)
from nanoserve_client.connection import NOBODY
from nanoserve_client.errors import ConnectionFailed, NanoserveError, Unavailable

_COMMANDS = {
    "serve": (serve, "start a server on this machine and supervise it"),
    "generate": (generate, "continue a prompt"),
    "chat": (chat, "talk with the served model"),
    "load": (load, "show the load of a server"),
    "health": (health, "tell whether a scheduler or an executor serves, for probes"),
    "top": (top, "watch what a server does, live"),
    "switch-executor": (switch_executor, "move what runs to another executor, dropping nothing"),
    "api-key": (api_key, "make an API key and its entry for the scheduler's key file"),
    "chaos": (chaos, "try the services under faults and compare every stream with its undisturbed run"),
    "profile": (profile, "record some steps of a server as one Chrome trace"),
    "replay": (replay, "play a scheduler's recording against an executor and compare the tokens"),
    "verify-recording": (verify_recording, "check a scheduler's recording without an executor"),
    "simulate": (simulate, "play a trace against the scheduler, in virtual time"),
    "calibrate": (calibrate, "make an executor profile for simulate from a scheduler's recording"),
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; the result's `run` and `parser` are the chosen subcommand's."""
    parser = OneLineParser(
        prog="nanoserve", description="An LLM inference engine in two processes.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"nanoserve {version('nanoserve')}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, summary) in _COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run, parser=subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    try:
        arguments, unknown = build_parser().parse_known_args(argv)
        if unknown:
            arguments.parser.error(f"unknown flag or argument {unknown[0]!r}")
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except SystemExit as leaving:  # argparse's: help, version, usage
        return leaving.code if isinstance(leaving.code, int) else 1
    except ConnectionFailed as error:
        hint = ": start one with `nanoserve serve`" if error.message.startswith(NOBODY) else ""
        return _fail(f"{error}{hint}")
    except Unavailable as error:
        return _fail(f"the server became unavailable: {error}")
    except NanoserveError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of stdout left; nothing may be flushed to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _fail(message: str) -> int:
    print(f"nanoserve: {' '.join(message.split())}", file=sys.stderr)
    return 1
