"""`nanoserve api-key`: makes keys for a scheduler's --api-key-file."""

import argparse
import hashlib
import math
import secrets
import sys

_NUM_RANDOM_BYTES = 32
_MAX_TENANT_CHARACTERS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's flags."""
    parser.epilog = (
        "Prints the key, which nobody can find out again, to stderr, and the entry for the file, which holds its hash\n"
        "only, to stdout:  nanoserve api-key new --tenant NAME >> keys.toml\n"
        "docs/security.md says what the fields of an entry mean."
    )
    parser.add_argument("action", choices=["new"], help="make a key")
    parser.add_argument("--tenant", required=True, metavar="NAME", help="whose key it is")
    parser.add_argument("--max-concurrency", type=int, metavar="N", help="most requests at once")
    parser.add_argument(
        "--tokens-per-second", type=float, metavar="X", help="prompt and output tokens together"
    )
    parser.add_argument(
        "--share-prefix-cache", action="store_true", help="share prefixes with other such tenants"
    )
    parser.add_argument("--admin", action="store_true", help="allow the AdminService")


def run(arguments: argparse.Namespace) -> int:
    """Prints a key and its entry."""
    if not arguments.tenant or not all(c.isascii() and (c.isalnum() or c in "._-") for c in arguments.tenant):
        arguments.parser.error("--tenant: must be letters, digits, dots, dashes and underscores")
    if len(arguments.tenant) > _MAX_TENANT_CHARACTERS:
        arguments.parser.error(f"--tenant: must have {_MAX_TENANT_CHARACTERS} characters at most")
    if arguments.max_concurrency is not None and arguments.max_concurrency < 1:
        arguments.parser.error("--max-concurrency: must be at least 1")
    rate = arguments.tokens_per_second
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        arguments.parser.error("--tokens-per-second: must be finite, and more than 0")
    key = f"nsk-{secrets.token_urlsafe(_NUM_RANDOM_BYTES)}"
    fields = {
        "sha256": f'"{hashlib.sha256(key.encode()).hexdigest()}"',
        "tenant": f'"{arguments.tenant}"',
        "max_concurrency": arguments.max_concurrency,
        "tokens_per_second": arguments.tokens_per_second,
        "share_prefix_cache": "true" if arguments.share_prefix_cache else None,
        "admin": "true" if arguments.admin else None,
    }
    lines = [f"{name} = {value}" for name, value in fields.items() if value is not None]
    print("\n".join(["[[keys]]", *lines, ""]))
    print(f"the key, shown once: {key}", file=sys.stderr)
    return 0
