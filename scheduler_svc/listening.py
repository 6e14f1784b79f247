"""Whether an address can be listened at: gRPC would say less, in lines of its own, or take a living server's socket."""

import contextlib
import os
import socket
import stat


def check_free(address: str) -> None:
    """Makes `address` (host:port or unix:PATH) ready to be bound; ValueError, naming --listen, where it is not free.

    A socket file that nobody listens at any more is removed.
    """
    try:
        if address.startswith("unix:"):
            _free_socket(address.removeprefix("unix:"))
        else:
            _probe_port(address)
    except OSError as error:
        raise ValueError(f"--listen: {address}: {error.strerror or error}") from error


def remove_socket(address: str) -> None:
    """Removes the socket file of an address that is listened at no more."""
    if address.startswith("unix:"):
        with contextlib.suppress(OSError):
            os.unlink(address.removeprefix("unix:"))


def _free_socket(path: str) -> None:
    if not os.path.exists(path):
        if not os.access(os.path.dirname(path) or ".", os.W_OK):
            raise ValueError(f"--listen: {path}: its directory is missing or cannot be written")
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise ValueError(f"--listen: {path} exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(path) == 0:
            raise ValueError(f"--listen: {path} is in use")
    os.unlink(path)


def _probe_port(address: str) -> None:
    host, _, port = address.rpartition(":")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, target = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(target)
