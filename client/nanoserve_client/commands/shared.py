"""Flags that several subcommands have."""

import argparse
import os
from collections.abc import Callable
from typing import Any

from nanoserve_client.connection import DEFAULT_ADDRESS, checked_address
from nanoserve_client.errors import InvalidRequest
from nanoserve_client.options import GenerateOptions
from nanoserve_client.sync_client import Client

API_KEY_VARIABLE = "NANOSERVE_API_KEY"

_OPTIONS: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("temperature", float, "0 is greedy"),
    ("top_p", float, "keep the smallest set of most likely tokens with this probability"),
    ("top_k", int, "keep the k most likely tokens; 0 keeps all"),
    ("min_p", float, "keep tokens at least this fraction as likely as the likeliest"),
    ("repetition_penalty", float, "for tokens of prompt and output"),
    ("frequency_penalty", float, "for each time that the output has a token"),
    ("presence_penalty", float, "for tokens that the output has"),
    ("seed", int, "makes sampling repeatable"),
    ("max_tokens", int, "most output tokens"),
    ("min_tokens", int, "output tokens before which no end is allowed"),
    ("priority", int, "higher runs first"),
    ("cache_salt", str, "share cached prefixes only with requests of the same salt"),
)


def address_argument(text: str) -> str:
    """The type of a flag that takes an address."""
    try:
        return checked_address(text)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("address: ")) from None


def add_server_argument(parser: argparse.ArgumentParser, *aliases: str) -> None:
    """--server, and other names for it, and how to get in there."""
    add_address_argument(parser, *aliases)
    group = parser.add_argument_group(
        "security", f"the API key, where the server asks, is ${API_KEY_VARIABLE}"
    )
    add_tls_arguments(group)
    group.add_argument("--insecure", action="store_true", help="send the key to another machine without TLS")


def add_address_argument(parser: argparse.ArgumentParser, *aliases: str) -> None:
    """--server, and other names for it."""
    parser.add_argument(
        "--server",
        *aliases,
        type=address_argument,
        metavar="ADDR",
        default=DEFAULT_ADDRESS,
        help="host:port or unix:PATH of the server (default %(default)s)",
    )


def add_tls_arguments(group: argparse._ArgumentGroup) -> None:
    """How to talk to the server over TLS."""
    group.add_argument(
        "--tls-ca", metavar="F", help="roots of the server's certificate, in PEM; turns TLS on"
    )
    group.add_argument("--tls-cert", metavar="F", help="certificate to show to the server")
    group.add_argument("--tls-key", metavar="F", help="its key")


def connect(arguments: argparse.Namespace) -> Client:
    """A client of the server that the flags of add_server_argument say."""
    return Client(
        arguments.server,
        api_key=os.environ.get(API_KEY_VARIABLE) or None,
        tls_ca=arguments.tls_ca,
        tls_cert=arguments.tls_cert,
        tls_key=arguments.tls_key,
        insecure=arguments.insecure,
    )


def add_option_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each generation option that one can say on a command line; the defaults are the server's."""
    group = parser.add_argument_group("generation")
    for name, kind, summary in _OPTIONS:
        metavar = "N" if kind is int else "X" if kind is float else "TEXT"
        group.add_argument("--" + name.replace("_", "-"), type=kind, metavar=metavar, help=summary)
    group.add_argument("--ignore-eos", action="store_true", default=None, help="go on after an end token")
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end at this text; may be given several times"
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after this long")


def options_from(arguments: argparse.Namespace) -> GenerateOptions:
    """The options that the flags of add_option_arguments say."""
    names = [name for name, _, _ in _OPTIONS] + ["ignore_eos", "stop"]
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return GenerateOptions(**given)
