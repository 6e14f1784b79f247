"""Between one engine and the connections of its API workers: one frame a worker a step, one queue of commands.

A connection that is lost aborts its requests. Its number is never used again: what the engine still says of them goes
nowhere.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import count

from nanoserve.scheduler.v1 import worker_pb2 as pb
from scheduler_svc import messages as msg
from scheduler_svc.framing import FrameError
from scheduler_svc.step_splitter import MAX_WORKER_KEY, StepSplitter, engine_key, worker_key, worker_number
from scheduler_svc.worker_commands import decode_command, decode_frame
from scheduler_svc.worker_events import encode_event

# Of what the hub itself asks the engine: no connection has the number 0.
_OWN_KEY = engine_key(0, 0)


@dataclass(slots=True)
class _Request:
    num_outputs: int
    sequence_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class _Worker:
    """A worker that is connected."""

    number: int
    send: Callable[[bytes], None]
    on_listening: Callable[[], None]
    live: dict[int, _Request] = field(default_factory=dict)
    """Its requests that have not ended, by the engine's key."""
    events: list[msg.Event] = field(default_factory=list)
    """What it has still to be told."""


class WorkerHub:
    """See the module's docstring. `receive` takes the engine's events, `take` a worker's frames."""

    def __init__(self, send: Callable[[msg.Command], None]) -> None:
        """`send` gives a command to the engine."""
        self.serving = asyncio.Event()
        """Set once workers have been told, for the first time, that requests are accepted."""
        self._send = send
        self._numbers = count(1)
        self._workers: dict[int, _Worker] = {}
        self._splitter = StepSplitter()
        self._events: list[msg.Event] = []
        self._is_flushing = False
        self._state = msg.EngineState(serving=False)
        self._is_open = False
        self._drained: asyncio.Future[int] | None = None

    # Workers

    def connect(self, send: Callable[[bytes], None], on_listening: Callable[[], None]) -> int:
        """Takes in a worker; returns the number of its connection."""
        worker = _Worker(next(self._numbers), send, on_listening)
        self._workers[worker.number] = worker
        self._tell_state([worker])
        return worker.number

    def disconnect(self, number: int) -> None:
        """A worker is gone: its requests are aborted."""
        worker = self._workers.pop(number)
        for key, request in worker.live.items():
            self._send(msg.Abort(key))
            self._splitter.remove(request.sequence_ids)

    def take(self, number: int, data: bytes) -> None:
        """Hands on a frame of a worker. FrameError where it makes no sense."""
        worker = self._workers[number]
        frame = decode_frame(pb.WorkerFrame, data)
        for message in frame.commands:
            if not 0 <= message.key <= MAX_WORKER_KEY:
                raise FrameError(f"key {message.key} is out of range")
            command = decode_command(message, engine_key(number, message.key))
            _check(worker, command)
            self._send(command)
        if frame.listening:
            worker.on_listening()

    # The engine

    def open(self) -> None:
        """Lets workers accept requests as soon as the engine does; until now they are told that it does not."""
        self._is_open = True
        self._tell_state(self._workers.values())

    def stop(self) -> None:
        """Tells all workers everything there is to tell, and that it is the last."""
        self._flush()
        for worker in self._workers.values():
            worker.send(pb.EngineFrame(stopping=True).SerializeToString())

    async def drain(self, timeout_seconds: float | None) -> int:
        """Waits until no request is left; returns how many had to be ended when the time was up."""
        self._drained = asyncio.get_running_loop().create_future()
        self._send(msg.Drain(_OWN_KEY, timeout_seconds))
        return await self._drained

    def receive(self, event: msg.Event) -> None:
        """Queues an event of the engine."""
        self._events.append(event)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._is_flushing:
            self._is_flushing = True
            # Two turns of the loop from now: the plans that the engine makes in this turn are on their way by then.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._flush)

    def _flush(self) -> None:
        """Sends what is queued, as one frame a worker."""
        self._is_flushing = False
        events, self._events = self._events, []
        for event in events:
            self._route(event)
        for worker in self._workers.values():
            if worker.events:
                frame = pb.EngineFrame(events=[encode_event(event, worker_key) for event in worker.events])
                worker.events.clear()
                worker.send(frame.SerializeToString())

    def _tell_state(self, workers: Iterable[_Worker]) -> None:
        state = self._state if self._is_open else replace(self._state, serving=False)
        for worker in workers:
            worker.events.append(state)
        if state.serving:
            self.serving.set()
        self._flush_soon()

    def _route(self, event: msg.Event) -> None:
        """Adds an event to what the workers that it concerns are to be told."""
        match event:
            case msg.StepBatch():
                for number, part in self._splitter.split(event).items():
                    if (worker := self._workers.get(number)) is not None:
                        worker.events.append(part)
                        self._forget(worker, part)
            case msg.EngineState():
                self._state = event
                self._tell_state(self._workers.values())
            case msg.Drained() if event.key == _OWN_KEY:
                if self._drained is not None and not self._drained.done():
                    self._drained.set_result(event.num_aborted_requests)
            case _:
                if (worker := self._workers.get(worker_number(event.key))) is not None:
                    worker.events.append(event)
                    self._note(worker, event)

    def _note(self, worker: _Worker, event: msg.Event) -> None:
        if isinstance(event, msg.Accepted):
            worker.live[event.key].sequence_ids = event.sequence_ids
            self._splitter.add(event.sequence_ids, worker.number)
        elif isinstance(event, msg.Refused):
            del worker.live[event.key]

    def _forget(self, worker: _Worker, part: msg.StepBatch) -> None:
        for end in part.ended:
            self._splitter.remove(worker.live.pop(end.key).sequence_ids)


def _check(worker: _Worker, command: msg.Command) -> None:
    """FrameError for what would upset the engine; notes a request."""
    if isinstance(command, msg.Submit):
        if command.key in worker.live:
            raise FrameError("the key of a live request is used again")
        worker.live[command.key] = _Request(command.request.n)
    elif isinstance(command, msg.Abort) and command.indices is not None:
        request = worker.live.get(command.key)
        if request is not None and not all(0 <= i < request.num_outputs for i in command.indices):
            raise FrameError("an abort of an output that is not there")
