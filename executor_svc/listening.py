"""What is checked of an address before gRPC binds it, whose own errors say less."""

import os
import socket
import stat


def free_socket_path(listen: str) -> str | None:
    """The path of a unix address, None for others; ValueError where a server answers there, or it is another file.

    gRPC itself would unlink the socket of a living server.
    """
    if not listen.startswith("unix:"):
        return None
    path = listen.removeprefix("unix:")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return path
    if not stat.S_ISSOCK(mode):
        raise ValueError(f"--listen: {path} exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(path) == 0:
            raise ValueError(f"--listen: {path} is in use")
    os.unlink(path)
    return path


def check_port(listen: str) -> None:
    """ValueError where a host:port cannot be bound: gRPC would say so less clearly, and in lines of its own."""
    host, _, port = listen.rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(f"--listen: {listen}: {error.strerror or error}") from error
