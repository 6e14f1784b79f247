"""Addresses as flags give them, `host:port` or `unix:PATH`, and the options of every channel and server."""

# Messages between scheduler and executor stay under 2 MiB; the link allows for results with log-probabilities.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

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
    # Two servers on one port would each get some of the calls: an address in use must be an error.
    ("grpc.so_reuseport", 0),
]


def check_address(flag: str, address: str) -> str:
    """Returns `address` in the form gRPC takes; ValueError, naming `flag`, where it is neither of the two forms."""
    if address.startswith("unix:"):
        if len(address) > len("unix:"):
            return address
    else:
        host, colon, port = address.rpartition(":")
        if colon and host and port.isdecimal() and int(port) < 65536:
            return address
    raise ValueError(f"{flag}: {address!r} is neither host:port nor unix:PATH")


def bound_address(address: str, port: int) -> str:
    """The address a server got: `address` with port 0 replaced by `port`, the one that was picked."""
    if address.startswith("unix:"):
        return address
    return f"{address.rpartition(':')[0]}:{port}"
