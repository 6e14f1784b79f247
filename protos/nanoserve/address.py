"""Addresses as flags give them, `host:port` or `unix:PATH`, and the options of every channel and server."""

import os

# Plans stay under 2 MiB, but for masks; the link allows for those, and for results with log-probabilities.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# What a client may send at once to the API, which answers RESOURCE_EXHAUSTED to more: a prompt of a million token ids
# is under 4 MiB. Answers have the limit above.
MAX_REQUEST_BYTES = 8 * 1024 * 1024
# What a caller may hold open over one connection, and say about each call.
MAX_STREAMS_PER_CONNECTION = 1024
MAX_METADATA_BYTES = 16 * 1024
# How long a connection may take to say, and to prove where TLS asks for it, what it is.
_HANDSHAKE_SECONDS = 20
# As the kernel has it: sun_path is 108 bytes, the last of them 0.
_MAX_SOCKET_PATH_BYTES = 107

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
]
SERVER_OPTIONS: list[tuple[str, int]] = [
    *CHANNEL_OPTIONS,
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.server_handshake_timeout_ms", _HANDSHAKE_SECONDS * 1000),
    # Two servers on one port would each get some of the calls: an address in use must be an error.
    ("grpc.so_reuseport", 0),
]


def check_address(flag: str, address: str) -> str:
    """Returns `address` in the form gRPC takes; ValueError, naming `flag`, where it is neither of the two forms."""
    if address.startswith("unix:"):
        num_bytes = len(os.fsencode(address.removeprefix("unix:")))
        if num_bytes > _MAX_SOCKET_PATH_BYTES:
            rule = f"a socket's path may have {_MAX_SOCKET_PATH_BYTES} bytes, this one has {num_bytes}"
            raise ValueError(f"{flag}: {address}: {rule}")
        if num_bytes:
            return address
    else:
        host, colon, port = address.rpartition(":")
        if colon and host and "/" not in host and port.isdecimal() and int(port) < 65536:
            return address
    raise ValueError(f"{flag}: {address!r} is neither host:port nor unix:PATH")


def bound_address(address: str, port: int) -> str:
    """The address a server got: `address` with port 0 replaced by `port`, the one that was picked."""
    if address.startswith("unix:"):
        return address
    return f"{address.rpartition(':')[0]}:{port}"
