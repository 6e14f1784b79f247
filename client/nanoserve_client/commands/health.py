"""`nanoserve health`: whether a scheduler or an executor serves, for the probes of containers."""

import argparse
import math

from nanoserve_client.commands.shared import add_address_argument, add_tls_arguments
from nanoserve_client.credentials import Credentials
from nanoserve_client.health import serving_status

_DEFAULT_TIMEOUT = 4.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's flags."""
    add_address_argument(parser)
    add_tls_arguments(parser.add_argument_group("security"))
    parser.add_argument("--alive", action="store_true", help="that it answers is enough, also NOT_SERVING")
    parser.add_argument(
        "--timeout",
        type=float,
        default=_DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help="give up after this long (default %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the status, and returns 0 where it is the one to be had. Health asks for no key, so none is shown."""
    if not (math.isfinite(arguments.timeout) and arguments.timeout > 0):
        arguments.parser.error("--timeout: must be a number of seconds above 0")
    flags = (arguments.tls_ca, arguments.tls_cert, arguments.tls_key)
    with Credentials(arguments.server, None, *flags, insecure=False).channel() as channel:
        status = serving_status(channel, arguments.timeout)
    print(status or "no answer")
    return 0 if status == "SERVING" or (arguments.alive and status is not None) else 1
