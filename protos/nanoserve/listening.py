"""Whether an address can be listened at: gRPC would say less, in lines of its own, or take a living server's socket."""

import contextlib
import errno
import os
import socket
import stat
from typing import Any

from nanoserve.address import bound_address


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


def reserve_port(address: str) -> tuple[socket.socket, str]:
    """Takes a host:port for servers of other processes that share it; returns what holds it, and the address bound.

    Only sockets that share the port can be bound to it until the returned one, which never listens, is closed.
    ValueError, naming --listen, where it is not free.
    """
    try:
        family, kind, protocol, target = _resolve(address)
        holder = socket.socket(family, kind, protocol)
        try:
            # Bound as a server that shares nothing, so that no other may be there; open to sharing from then on.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(target)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError:
            holder.close()
            raise
    except OSError as error:
        raise ValueError(f"--listen: {address}: {error.strerror or error}") from error
    return holder, bound_address(address, holder.getsockname()[1])


class BoundSocket:
    """The socket file, where there is one, of an address that this process has just begun to listen at."""

    def __init__(self, address: str) -> None:
        self._path = address.removeprefix("unix:") if address.startswith("unix:") else None
        self._identity = _identity(self._path)

    def remove(self) -> None:
        """Removes the file, unless another server has put its own there since."""
        if self._path is not None and self._identity is not None and _identity(self._path) == self._identity:
            with contextlib.suppress(OSError):
                os.unlink(self._path)


def _identity(path: str | None) -> tuple[int, int] | None:
    """Device and inode of a file that is there."""
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _free_socket(path: str) -> None:
    if not os.path.exists(path):
        if not os.access(os.path.dirname(path) or ".", os.W_OK):
            raise ValueError(f"--listen: {path}: its directory is missing or cannot be written")
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise ValueError(f"--listen: {path} exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        error = probe.connect_ex(path)
    # Only this says that nobody listens; a living server's socket may be full, or another user's.
    if error == errno.ECONNREFUSED:
        os.unlink(path)
    elif error in (0, errno.EAGAIN):
        raise ValueError(f"--listen: {path} is in use")
    else:
        raise OSError(error, os.strerror(error))


def _probe_port(address: str) -> None:
    family, kind, protocol, target = _resolve(address)
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(target)


def _resolve(address: str) -> tuple[int, int, int, Any]:
    """Family, kind, protocol and address of a socket to be bound."""
    host, _, port = address.rpartition(":")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, target = found[0]
    return family, kind, protocol, target
