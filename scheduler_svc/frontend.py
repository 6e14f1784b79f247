"""The API's end of the conversation with the engine: sends commands, brings each event to whom it concerns."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from nanoserve.profiles import Profile
from scheduler_svc import messages as msg
from scheduler_svc.core.request import Finish, Request
from scheduler_svc.errors import ServiceError, internal_problem
from scheduler_svc.messages import Code, Problem
from scheduler_svc.stream import RequestStream

Reply = msg.LoadReply | msg.PrefixCacheReset | msg.Drained | msg.ProfileReply | msg.ExecutorSwitched
_FINISHES = tuple(Finish)
_BUSY_SHARE = 0.5
# Fewer streams than this cost too little to keep a first token waiting for.
_MANY_STREAMS = 16
# Shorter rests are not worth a timer, which the loop rounds up to a millisecond.
_LEAST_REST_SECONDS = 0.5e-3
_MOST_REST_SECONDS = 20e-3
_STOPPING = Problem(Code.UNAVAILABLE, "the server is stopping")


@dataclass(slots=True)
class _LiveStream:
    """A stream whose request the engine has not ended."""

    key: int
    stream: RequestStream
    sequence_ids: tuple[int, ...] = ()


class Frontend:
    """Knows the live streams by key and by sequence. `run` is its task; `receive` takes the engine's events."""

    def __init__(self, send: Callable[[msg.Command], None], on_serving: Callable[[bool], None]) -> None:
        """`on_serving` is called whenever the engine begins or ceases to accept requests."""
        self.state = msg.EngineState(serving=False)
        self.keys: tuple[msg.ApiKey, ...] | None = None
        """Those that are good, where keys are asked for; None before the engine has told."""
        self.closed = asyncio.Event()
        """Set when nothing is answered any more."""
        self._send, self._on_serving = send, on_serving
        self._events: asyncio.Queue[msg.Event] = asyncio.Queue()
        self._keys = count(1)
        self._live: dict[int, _LiveStream] = {}
        self._sequences: dict[int, tuple[_LiveStream, int]] = {}
        """By sequence id, with the index of the output."""
        self._num_told = 0
        """Tokens handed to streams in the last round."""
        # Those that wait for an answer: to Submit (None: accepted), or to a query.
        self._accepting: dict[int, asyncio.Future[Problem | None]] = {}
        self._querying: dict[int, asyncio.Future[Reply]] = {}

    def receive(self, event: msg.Event) -> None:
        """Queues an event of the engine."""
        self._events.put_nowait(event)

    async def run(self) -> None:
        """Brings events to streams, for ever, at a pace that leaves the loop's thread idle half of the time.

        Each round of writing costs processor time by the number of streams, however many tokens it carries: tokens that
        come faster than that are written together, in fewer messages, and whoever shares the processor is not starved.
        """
        last_time, last_used = time.monotonic(), time.thread_time()
        while True:
            event = await self._events.get()
            if self._num_told >= _MANY_STREAMS:
                rest = (time.thread_time() - last_used) / _BUSY_SHARE - (time.monotonic() - last_time)
                if rest > _LEAST_REST_SECONDS:
                    await asyncio.sleep(min(rest, _MOST_REST_SECONDS))
            last_time, last_used, self._num_told = time.monotonic(), time.thread_time(), 0
            self._dispatch(event)
            for _ in range(self._events.qsize()):
                self._dispatch(self._events.get_nowait())

    def close(self) -> None:
        """The engine answers no more: whoever waits for an answer that has not come, now or later, gets UNAVAILABLE."""
        for _ in range(self._events.qsize()):
            self._dispatch(self._events.get_nowait())
        self.closed.set()
        for accepting in self._accepting.values():
            _settle(accepting, _STOPPING)
        for querying in self._querying.values():
            if not querying.done():
                querying.set_exception(ServiceError(_STOPPING))

    async def submit(self, request: Request, stream: RequestStream, tenant: str = "") -> int:
        """Hands a request of a tenant to the engine, whose events then go to `stream`; returns its key.

        ServiceError where the engine refuses it. `leave` has to be called with the key in the end.
        """
        self._check_open()
        key = next(self._keys)
        accepted = asyncio.get_running_loop().create_future()
        self._live[key], self._accepting[key] = _LiveStream(key, stream), accepted
        self._send(msg.Submit(key, request, tenant))
        try:
            problem = await accepted
        except asyncio.CancelledError:
            self.leave(key)
            raise
        finally:
            del self._accepting[key]
        if problem is not None:
            del self._live[key]
            raise ServiceError(problem)
        return key

    def leave(self, key: int) -> None:
        """Nobody reads the stream any more: what is left of its request is aborted."""
        if self._forget(key) is not None:
            self._send(msg.Abort(key))

    def _forget(self, key: int) -> "_LiveStream | None":
        live = self._live.pop(key, None)
        if live is not None:
            for sequence_id in live.sequence_ids:
                del self._sequences[sequence_id]
        return live

    async def load(self) -> msg.LoadReply:
        """Asks the engine for its load."""
        reply = await self._query(msg.LoadQuery)
        assert isinstance(reply, msg.LoadReply)
        return reply

    async def reset_prefix_cache(self) -> int:
        """Returns how many blocks no longer count as cached."""
        reply = await self._query(msg.ResetPrefixCache)
        assert isinstance(reply, msg.PrefixCacheReset)
        return reply.num_blocks

    async def drain(self, timeout_seconds: float | None) -> int:
        """Waits until no request is left; returns how many had to be ended when the time was up."""
        reply = await self._query(lambda key: msg.Drain(key, timeout_seconds))
        assert isinstance(reply, msg.Drained)
        return reply.num_aborted_requests

    async def switch_executor(self, executor: str) -> int:
        """Goes on with another executor; returns its session's epoch. ServiceError where that cannot be."""
        reply = await self._query(lambda key: msg.SwitchExecutor(key, executor))
        assert isinstance(reply, msg.ExecutorSwitched)
        if reply.problem is not None:
            raise ServiceError(reply.problem)
        return reply.epoch

    async def start_profile(self, num_steps: int) -> None:
        """Begins a profile; see StartProfile. ServiceError where that cannot be."""
        await self._query_profile(lambda key: msg.StartProfile(key, num_steps))

    async def stop_profile(self) -> Profile:
        """Ends the profile; ServiceError where that cannot be."""
        profile = await self._query_profile(msg.StopProfile)
        assert profile is not None
        return profile

    async def _query_profile(self, command: Callable[[int], msg.Command]) -> Profile | None:
        reply = await self._query(command)
        assert isinstance(reply, msg.ProfileReply)
        if reply.problem is not None:
            raise ServiceError(reply.problem)
        return reply.profile

    async def _query(self, command: Callable[[int], msg.Command]) -> Reply:
        self._check_open()
        key = next(self._keys)
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._querying[key] = reply
        self._send(command(key))
        try:
            return await reply
        finally:
            del self._querying[key]

    def _check_open(self) -> None:
        if self.closed.is_set():
            raise ServiceError(_STOPPING)

    def _dispatch(self, event: msg.Event) -> None:
        match event:
            case msg.StepBatch():
                self._take_batch(event)
            case msg.Accepted():
                self._accept(event)
            case msg.Refused():
                _settle(self._accepting.get(event.key), event.problem)
            case msg.EngineState():
                changed = event.serving != self.state.serving
                self.state = event
                if changed:
                    self._on_serving(event.serving)
            case msg.ApiKeys():
                self.keys = event.keys
            case _:
                _settle(self._querying.get(event.key), event)

    def _accept(self, event: msg.Accepted) -> None:
        _settle(self._accepting.get(event.key), None)
        live = self._live.get(event.key)
        if live is not None:
            live.sequence_ids = event.sequence_ids
            self._sequences |= {ident: (live, index) for index, ident in enumerate(event.sequence_ids)}

    def _take_batch(self, batch: msg.StepBatch) -> None:
        for started in batch.started:
            if (live := self._live.get(started.key)) is not None:
                live.stream.start(started.num_cached_tokens, batch.time, batch.step_id)
        if batch.tokens is not None:
            self._take_tokens(batch.tokens, batch.time, batch.step_id)
        for end in batch.ended:
            live = self._forget(end.key)
            if live is not None and isinstance(end, msg.Failed):
                live.stream.fail(end.problem)
            elif live is not None and isinstance(end, msg.Ended):
                live.stream.end(end.num_preemptions, batch.time)

    def _take_tokens(self, tokens: msg.TokenBatch, time: float, step_id: int) -> None:
        for sequence_id, piece in tokens.prompt_logprobs:
            if (entry := self._sequences.get(sequence_id)) is not None:
                entry[0].stream.add_prompt_logprobs(piece)
        columns = zip(
            tokens.sequence_ids.tolist(), tokens.token_ids.tolist(), tokens.finishes.tolist(), strict=True
        )
        for column, (sequence_id, token_id, finish) in enumerate(columns):
            entry = self._sequences.get(sequence_id)
            if entry is None or finish >= Finish.FAILED:
                continue
            live, index = entry
            self._num_told += 1
            try:
                stopped = live.stream.add_token(
                    index, token_id, _FINISHES[finish], tokens.logprobs.get(column), time, step_id
                )
            except Exception:
                # A bug shows in one stream; the others must not stop with it.
                live.stream.fail(internal_problem("stream failed", request_id=live.stream.request_id))
                self.leave(live.key)
                continue
            if stopped:
                self._send(msg.Abort(live.key, (index,)))


async def cancel_task(task: "asyncio.Task[Any]") -> None:
    """Cancels a task and waits until it has ended; what it has raised is for others to see."""
    task.cancel()
    await asyncio.wait([task])


def _settle(future: "asyncio.Future[Any] | None", result: object) -> None:
    """Answers whoever still waits."""
    if future is not None and not future.done():
        future.set_result(result)
