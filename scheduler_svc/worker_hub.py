"""Between one engine and the connections of its API workers: one frame a worker a step, one queue of commands.

A step's tokens are encoded once and go to every worker that has requests, which looks for its own: cheaper than to
sort them here, where the executor's next plan waits. What begins or ends goes to the worker whose request it is.
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
from scheduler_svc.worker_commands import decode_command, decode_frame
from scheduler_svc.worker_events import encode_event
from scheduler_svc.worker_keys import MAX_WORKER_KEY, engine_key, starts_and_ends, worker_key, worker_number

# Of what the hub itself asks the engine: no connection has the number 0.
_OWN_KEY = engine_key(0, 0)


@dataclass(slots=True)
class _Worker:
    """A worker that is connected."""

    number: int
    send: Callable[[bytes], None]
    on_listening: Callable[[], None]
    live: dict[int, int] = field(default_factory=dict)
    """The number of outputs of its requests that have not ended, by the engine's key."""
    events: list[bytes] = field(default_factory=list)
    """What it has still to be told: EngineFrames, which joined are one."""


class WorkerHub:
    """See the module's docstring. `receive` takes the engine's events, `take` a worker's frames."""

    def __init__(self, send: Callable[[msg.Command], None]) -> None:
        """`send` gives a command to the engine."""
        self.serving = asyncio.Event()
        """Set once workers have been told, for the first time, that requests are accepted."""
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Ends with the bug that keeps the engine's events from the workers."""
        self._send = send
        self._numbers = count(1)
        self._workers: dict[int, _Worker] = {}
        self._events: list[msg.Event] = []
        self._is_flushing = False
        self._state = msg.EngineState(serving=False)
        self._keys: msg.ApiKeys | None = None
        self._is_open = False
        self._drained: asyncio.Future[int] | None = None

    # Workers

    def connect(self, send: Callable[[bytes], None], on_listening: Callable[[], None]) -> int:
        """Takes in a worker; returns the number of its connection."""
        worker = _Worker(next(self._numbers), send, on_listening)
        self._workers[worker.number] = worker
        if self._keys is not None:
            worker.events.append(_frame(self._keys))
        self._tell_state([worker])
        return worker.number

    def disconnect(self, number: int) -> None:
        """A worker is gone: its requests are aborted."""
        worker = self._workers.pop(number)
        for key in worker.live:
            self._send(msg.Abort(key))

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
        self._try_flush()
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
            # In the loop's next turn: the plans that the engine makes in this one are on their way by then.
            asyncio.get_running_loop().call_soon(self._try_flush)

    def _try_flush(self) -> None:
        try:
            self._flush()
        except Exception as error:
            if not self.failed.done():
                self.failed.set_exception(error)

    def _flush(self) -> None:
        """Sends what is queued, as one frame a worker."""
        self._is_flushing = False
        events, self._events = self._events, []
        for event in events:
            self._route(event)
        for worker in self._workers.values():
            if worker.events:
                worker.send(b"".join(worker.events))
                worker.events.clear()

    def _tell_state(self, workers: Iterable[_Worker]) -> None:
        state = self._state if self._is_open else replace(self._state, serving=False)
        for worker in workers:
            worker.events.append(_frame(state))
        if state.serving:
            self.serving.set()
        self._flush_soon()

    def _route(self, event: msg.Event) -> None:
        """Adds an event to what the workers that it concerns are to be told."""
        match event:
            case msg.StepBatch():
                self._route_step(event)
            case msg.EngineState():
                self._state = event
                self._tell_state(self._workers.values())
            case msg.ApiKeys():
                self._keys = event
                for connected in self._workers.values():
                    connected.events.append(_frame(event))
            case msg.Drained() if event.key == _OWN_KEY:
                if self._drained is not None and not self._drained.done():
                    self._drained.set_result(event.num_aborted_requests)
            case _:
                if (worker := self._workers.get(worker_number(event.key))) is not None:
                    worker.events.append(_frame(event))
                    if isinstance(event, msg.Refused):
                        del worker.live[event.key]

    def _route_step(self, step: msg.StepBatch) -> None:
        # A request's start comes before its tokens, its end behind them.
        parts = starts_and_ends(step) if step.started or step.ended else {}
        for number, part in parts.items():
            if part.started and (worker := self._workers.get(number)) is not None:
                worker.events.append(_frame(replace(part, ended=())))
        if step.tokens is not None:
            tokens = _frame(msg.StepBatch(step.time, tokens=step.tokens, step_id=step.step_id))
            for worker in self._workers.values():
                if worker.live:
                    worker.events.append(tokens)
        for number, part in parts.items():
            if part.ended and (worker := self._workers.get(number)) is not None:
                worker.events.append(_frame(replace(part, started=())))
                for end in part.ended:
                    del worker.live[end.key]


def _frame(event: msg.Event) -> bytes:
    """A frame of one event. Frames put one behind the other are a frame of all their events."""
    return pb.EngineFrame(events=[encode_event(event, worker_key)]).SerializeToString()


def _check(worker: _Worker, command: msg.Command) -> None:
    """FrameError for what would upset the engine; notes a request."""
    if isinstance(command, msg.Submit):
        if command.key in worker.live:
            raise FrameError("the key of a live request is used again")
        worker.live[command.key] = command.request.n
    elif isinstance(command, msg.Abort) and command.indices is not None:
        num_outputs = worker.live.get(command.key)
        if num_outputs is not None and not all(0 <= i < num_outputs for i in command.indices):
            raise FrameError("an abort of an output that is not there")
