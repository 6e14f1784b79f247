"""Several connections to one server, and which of them a generation takes.

A server with API workers spreads connections over them, not streams: all that one connection carries is one worker's.
So a client with hundreds of streams opens several. A generation goes where the fewest are under way, and a connection
is made only when every other has some: one call at a time never takes more than one.
"""

import threading
from collections.abc import Callable
from typing import Any

from nanoserve.bearer import Metadata
from nanoserve.v1 import admin_pb2_grpc, inference_pb2_grpc
from nanoserve_client.errors import InvalidRequest, closed_client

MAX_CONNECTIONS = 256


class Lane:
    """One connection. grpc makes it when the first call needs it."""

    def __init__(self, channel: Any) -> None:
        """`channel` is a grpc.Channel or a grpc.aio.Channel."""
        self.channel = channel
        self.inference: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        self.admin: Any = admin_pb2_grpc.AdminServiceStub(channel)
        self.num_streams = 0
        """Generations under way."""


class Lanes:
    """At most `connections` of them; threads may share it. InvalidRequest where that is not in [1, 256].

    NanoserveError where one is wanted of those that have been closed.
    """

    def __init__(self, make_channel: Callable[[], Any], connections: int, metadata: Metadata = ()) -> None:
        """`metadata` goes with every call."""
        is_count = isinstance(connections, int) and not isinstance(connections, bool)
        if not is_count or not 1 <= connections <= MAX_CONNECTIONS:
            raise InvalidRequest(f"connections: must be in [1, {MAX_CONNECTIONS}], got {connections!r}")
        self._make_channel, self._connections = make_channel, connections
        self.metadata = metadata
        self._lock = threading.RLock()  # a stream that is collected may be cancelled amidst all this
        self._lanes: list[Lane] = []
        self._calls: set[Any] = set()
        self._closed = False

    @property
    def first(self) -> Lane:
        """The one for calls that are answered at once."""
        with self._lock:
            return self._first()

    def generate(self, request: Any, timeout: float | None, metadata: Metadata = ()) -> Any:
        """Makes a Generate call, with more `metadata`, on the connection with the fewest under way."""
        with self._lock:
            lane = self._least_loaded()
            lane.num_streams += 1
        try:
            call = lane.inference.Generate(request, timeout=timeout, metadata=self.metadata + metadata)
        except BaseException:
            self._release(lane)
            raise
        # Called once, however the call ends, and at once where it has ended already.
        with self._lock:
            self._calls.add(call)
        call.add_done_callback(lambda _: self._end(lane, call))
        return call

    def cancel(self) -> None:
        """Ends the calls that `generate` made."""
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def close(self) -> list[Any]:
        """Makes no more connections; the channels of those that were made, to be closed."""
        with self._lock:
            self._closed = True
            return [lane.channel for lane in self._lanes]

    def _first(self) -> Lane:
        return self._lanes[0] if self._lanes else self._another()

    def _least_loaded(self) -> Lane:
        self._first()
        lane = min(self._lanes, key=lambda lane: lane.num_streams)
        if lane.num_streams and len(self._lanes) < self._connections:
            lane = self._another()
        return lane

    def _another(self) -> Lane:
        if self._closed:
            raise closed_client()
        lane = Lane(self._make_channel())
        self._lanes.append(lane)
        return lane

    def _end(self, lane: Lane, call: Any) -> None:
        with self._lock:
            self._calls.discard(call)
        self._release(lane)

    def _release(self, lane: Lane) -> None:
        with self._lock:
            lane.num_streams -= 1
