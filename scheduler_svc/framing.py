"""Messages on a byte stream: each is its length, then itself."""

import struct
from collections.abc import Iterator

MAX_FRAME_BYTES = 64 * 1024 * 1024
_LENGTH = struct.Struct("<I")


class FrameError(Exception):
    """Bytes that no frame begins with, or a frame whose message makes no sense."""


def frame(data: bytes) -> bytes:
    """The bytes that carry a message. FrameError where it is longer than a frame may be."""
    if len(data) > MAX_FRAME_BYTES:
        raise FrameError(f"a message of {len(data)} bytes is longer than {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(data)) + data


class FrameReader:
    """Cuts a byte stream into messages, however it arrives in pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Takes in the next bytes, yields the messages that they complete. FrameError where a length is too large."""
        self._buffer += data
        begin, size = 0, len(self._buffer)
        try:
            while size - begin >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, begin)
                if length > MAX_FRAME_BYTES:
                    raise FrameError(f"a frame of {length} bytes is longer than {MAX_FRAME_BYTES}")
                end = begin + _LENGTH.size + length
                if end > size:
                    return
                message = bytes(self._buffer[begin + _LENGTH.size : end])
                begin = end
                yield message
        finally:
            del self._buffer[:begin]
