"""`nanoserve profile`: some steps of a running server as one Chrome trace."""

import argparse
import gzip
import json
import time
from pathlib import Path

from nanoserve.profiles import MAX_SECONDS, MAX_STEPS, Profile
from nanoserve_client.chrome_trace import chrome_trace
from nanoserve_client.commands.shared import add_server_argument, connect
from nanoserve_client.errors import NanoserveError
from nanoserve_client.sync_client import Client

_POLL_SECONDS = 0.05
# Plans on their way when the recording began are counted as steps, but not recorded.
_SLACK_STEPS = 64
_START_TIMEOUT_SECONDS, _STOP_TIMEOUT_SECONDS = 40.0, 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's flags."""
    parser.epilog = (
        "Records steps that requests of others make: the command sends none. The executor must have been started with\n"
        "--profile-dir. Open F in https://ui.perfetto.dev; docs/profiling.md says how to read it."
    )
    add_server_argument(parser, "--address")
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        default=50,
        help=f"forward passes to record, at most {MAX_STEPS} (default %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="X",
        default=20.0,
        help=f"how long to wait for them, at most {MAX_SECONDS:g} (default %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="F", default=Path("trace.json"), help="with .gz at its end: gzipped"
    )


def run(arguments: argparse.Namespace) -> int:
    """Records, and writes the trace."""
    if not 1 <= arguments.steps <= MAX_STEPS:
        arguments.parser.error(f"--steps: must be in [1, {MAX_STEPS}]")
    if not 0 < arguments.seconds <= MAX_SECONDS:
        arguments.parser.error(f"--seconds: must be in (0, {MAX_SECONDS:g}]")
    with connect(arguments) as client:
        client.start_profile(arguments.steps, timeout=_START_TIMEOUT_SECONDS)
        try:
            _wait(client, arguments.steps, arguments.seconds)
        finally:
            profile = client.stop_profile(timeout=_STOP_TIMEOUT_SECONDS)
    if not profile.num_steps:
        raise NanoserveError("no step ran: send requests while a profile is recorded")
    _write(arguments.output, profile)
    print(f"wrote {arguments.output}: {profile.num_steps} steps, {len(profile.spans)} spans")
    if profile.path and not profile.trace:
        print(
            f"without the device's own trace, too large to be sent: {profile.path} on the executor's machine"
        )
    return 0


def _wait(client: Client, num_steps: int, seconds: float) -> None:
    """Returns when so many steps have run since the start, or the time is up."""
    deadline = time.monotonic() + seconds
    first = client.get_load(timeout=10).num_steps
    while time.monotonic() < deadline:
        load = client.get_load(timeout=10)
        num_run = load.num_steps - first
        if num_run >= num_steps + _SLACK_STEPS or (num_run >= num_steps and not load.num_running_requests):
            return
        time.sleep(_POLL_SECONDS)


def _write(path: Path, profile: Profile) -> None:
    try:
        text = json.dumps(chrome_trace(profile), separators=(",", ":"))
        opened = gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w", encoding="utf-8")
        with opened as file:
            file.write(text)
    except OSError as error:
        raise NanoserveError(f"--output: cannot write {str(path)!r}: {error.strerror}") from error
    except ValueError as error:
        raise NanoserveError(f"the executor's trace cannot be read: {error}") from error
