"""The sockets between rank 0 and each other rank: plans one way, signs of life both ways.

To a rank: a length, 4 bytes little-endian, and as many bytes of a plan; lengths that no plan has mean something else.
From a rank: a byte now and then. A socket that closes unannounced, or a side that is silent for SILENCE_SECONDS, is a
rank that is lost; threads of their own notice it, so a wait within a collective hides nothing. Rank 0 may announce that
it will be silent for longer, as where it holds the interpreter.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue

_HEADER = struct.Struct("<I")
_ALIVE = 0
_RESET = 2**32 - 1
_END = 2**32 - 2
_SILENT = 2**32 - 3
_BEAT_SECONDS = 0.5
# What a rank may take to find by itself what ended another at the start, and to say it in its own words.
START_GRACE_SECONDS = 2.0
SILENCE_SECONDS = 3.0
"""How long a rank may say nothing."""
ANNOUNCED_SECONDS = 60.0
"""How long rank 0 may, having said so: as long as its parent lets it (watchdog.py)."""


class StartWatch:
    """While ranks start, which may take long and is silent: one whose connection closes is lost.

    A context manager; behind it the ends below watch the same connections.
    """

    def __init__(self, lost: Callable[[int, str], None]) -> None:
        """`lost` is called, by a thread, with the rank and the reason when one is."""
        self._lost = lost
        self._over = threading.Event()

    def __enter__(self) -> "StartWatch":
        """Ranks may be added."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nobody is said to be lost from now on."""
        self._over.set()

    def add(self, rank: int, connection: socket.socket) -> None:
        """Watches the connection to a rank, on which nothing is read meanwhile."""
        connection.settimeout(None)
        threading.Thread(
            target=self._watch, args=(rank, connection), name=f"rank-{rank}-start", daemon=True
        ).start()

    def _watch(self, rank: int, connection: socket.socket) -> None:
        reason = "its connection closed at the start"
        try:
            if connection.recv(1, socket.MSG_PEEK):
                return  # it is ready
        except OSError as error:
            reason = str(error)
        if not self._over.wait(START_GRACE_SECONDS):
            self._lost(rank, reason)


class LeaderEnd:
    """Rank 0's end of the socket to one rank."""

    def __init__(self, rank: int, connection: socket.socket, lost: Callable[[int, str], None]) -> None:
        """`lost` is called, by a thread, with the rank and the reason when it is."""
        self.rank = rank
        self._connection, self._lost = connection, lost
        self._outbox: SimpleQueue[bytes | threading.Event | None] = SimpleQueue()
        self._closing = threading.Event()
        self._silent = False
        # Held while _ALIVE and _SILENT are queued: the one after the other would take it back.
        self._beat_lock = threading.Lock()
        for work in (self._send, self._watch, self._beat):
            threading.Thread(target=work, name=f"rank-{rank}{work.__name__}", daemon=True).start()

    def plan(self, encoded: bytes) -> None:
        """Sends a plan; never blocks."""
        self._outbox.put(_HEADER.pack(len(encoded)) + encoded)

    def reset(self) -> None:
        """Has the rank forget all rows; never blocks."""
        self._outbox.put(_HEADER.pack(_RESET))

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Within it the rank is not told that this one lives, and knows it. By one thread at a time."""
        sent = threading.Event()
        with self._beat_lock:
            self._silent = True
            self._outbox.put(_HEADER.pack(_SILENT))
        self._outbox.put(sent)
        sent.wait(SILENCE_SECONDS)  # where it is lost, the watching thread ends all
        try:
            yield
        finally:
            self._silent = False
            self._outbox.put(_HEADER.pack(_ALIVE))

    def close(self) -> None:
        """Tells the rank to end, once it has got what was sent before."""
        self._closing.set()
        self._outbox.put(_HEADER.pack(_END))
        self._outbox.put(None)

    def _send(self) -> None:
        with contextlib.suppress(OSError):  # the watching thread sees it too
            while (message := self._outbox.get()) is not None:
                if isinstance(message, threading.Event):
                    message.set()
                else:
                    self._connection.sendall(message)
            self._connection.shutdown(socket.SHUT_WR)

    def _beat(self) -> None:
        while not self._closing.wait(_BEAT_SECONDS):
            with self._beat_lock:
                if not self._silent:
                    self._outbox.put(_HEADER.pack(_ALIVE))

    def _watch(self) -> None:
        reason = "its connection closed"
        try:
            self._connection.settimeout(SILENCE_SECONDS)
            while self._connection.recv(64):
                pass
        except TimeoutError:
            reason = f"it said nothing for {SILENCE_SECONDS:g} s"
        except OSError as error:
            reason = str(error)
        if not self._closing.is_set():
            self._lost(self.rank, reason)


class FollowerEnd:
    """Another rank's end of its socket to rank 0."""

    def __init__(self, connection: socket.socket, lost: Callable[[str], None]) -> None:
        """`lost` is called, by a thread, with the reason when rank 0 is."""
        self._connection, self._lost = connection, lost
        self._inbox: SimpleQueue[bytes | None] = SimpleQueue()
        threading.Thread(target=self._receive, name="rank-0-receive", daemon=True).start()
        threading.Thread(target=self._beat, name="rank-0-beat", daemon=True).start()

    def messages(self) -> Iterator[bytes | None]:
        """Plans as they come, and None for a reset. It ends when rank 0 says so."""
        while (message := self._inbox.get()) is not None:
            yield message or None

    def _receive(self) -> None:
        reason = "its connection closed"
        try:
            self._connection.settimeout(SILENCE_SECONDS)
            while (header := read_exactly(self._connection, _HEADER.size)) is not None:
                (length,) = _HEADER.unpack(header)
                if length == _SILENT:
                    self._connection.settimeout(ANNOUNCED_SECONDS)
                elif length == _ALIVE:
                    self._connection.settimeout(SILENCE_SECONDS)
                elif length == _END:
                    self._inbox.put(None)
                    return
                elif length == _RESET:
                    self._inbox.put(b"")
                else:
                    plan = read_exactly(self._connection, length)
                    if plan is None:
                        break
                    self._inbox.put(plan)
        except TimeoutError:
            reason = f"it said nothing for {self._connection.gettimeout():g} s"
        except OSError as error:
            reason = str(error)
        self._lost(reason)

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # the receiving thread sees it too
            while True:
                time.sleep(_BEAT_SECONDS)
                self._connection.sendall(b"\0")


def read_exactly(connection: socket.socket, count: int) -> bytes | None:
    """Exactly `count` bytes; None where the connection ends before."""
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(min(count - len(parts), 2**20))
        if not part:
            return None
        parts += part
    return bytes(parts)
