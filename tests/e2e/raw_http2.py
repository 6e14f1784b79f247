"""What no gRPC library sends: connections of garbage, and HTTP/2 frames whose gRPC messages are no messages."""

import random
import socket
import struct

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _WINDOW_UPDATE = 0, 1, 4, 8
_END_STREAM, _END_HEADERS = 1, 4
_WAIT_SECONDS = 0.02


def send_garbage(rng: random.Random, address: str, path: str, message: bytes) -> None:
    """Opens a connection, says something wrong on it, looks a moment at what comes back, and leaves."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.settimeout(_WAIT_SECONDS)
        try:
            connection.sendall(_words(rng, path, message))
            if rng.random() < 0.3:
                connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
        except (TimeoutError, ConnectionError):
            pass  # nothing has to come back


def _words(rng: random.Random, path: str, message: bytes) -> bytes:
    opening = _PREFACE + _frame(_SETTINGS, 0, 0, b"")
    call = opening + _frame(_HEADERS, _END_HEADERS, 1, _headers(rng, path))
    match rng.randrange(8):
        case 0:
            return rng.randbytes(rng.choice((1, 24, 5000)))
        case 1:
            return b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        case 2:
            return opening + rng.randbytes(rng.choice((9, 500)))
        case 3:
            return opening + _frame(
                rng.randrange(256), rng.randrange(256), rng.randrange(9), rng.randbytes(40)
            )
        case 4:  # compressed, as it says
            return call + _frame(_DATA, _END_STREAM, 1, b"\x01" + struct.pack(">I", len(message)) + message)
        case 5:  # longer than it says, or shorter
            length = rng.choice((0, 1, 2**31, 2**32 - 1))
            return call + _frame(_DATA, _END_STREAM, 1, b"\x00" + struct.pack(">I", length) + message)
        case 6:  # two messages where one is due
            framed = b"\x00" + struct.pack(">I", len(message)) + message
            return call + _frame(_DATA, _END_STREAM, 1, framed * 2)
        case _:  # none, and a window without bounds
            return call + _frame(_WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff") * 2 + _frame(_DATA, 1, 1, b"")


def _headers(rng: random.Random, path: str) -> bytes:
    """Header fields, as HPACK has them without a table; now and then one that is wrong."""
    fields = {
        b":method": rng.choice((b"POST", b"POST", b"GET")),
        b":scheme": b"http",
        b":path": path.encode(),
        b":authority": b"x",
        b"te": b"trailers",
        b"content-type": rng.choice((b"application/grpc", b"application/grpc", b"text/html")),
        b"grpc-timeout": rng.choice((b"1S", b"0n", b"99999999H", b"-1S", b"soon")),
        b"grpc-encoding": rng.choice((b"identity", b"gzip", b"nonsense")),
        b"x-bin": rng.choice((b"AAAA", b"not base64!")),
    }
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields.items())


def _text(value: bytes) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    payload = payload[:16_384]
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
