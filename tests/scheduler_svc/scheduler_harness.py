"""A whole scheduler in this process, with virtual executors that tests can fail, stop and bring back."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from executor_svc.profile.profiler import Profiling
from executor_svc.runner import RunnerLimits
from executor_svc.service import ExecutorServer
from executor_svc.virtual import CostModel, RunnerHooks, VirtualModel, VirtualRunner
from executor_svc.wire import Identity
from nanoserve.address import CHANNEL_OPTIONS
from nanoserve.checkpoint import demo_checkpoint
from nanoserve.tls import ServerTls
from nanoserve.v1 import admin_pb2, inference_pb2
from nanoserve.v1.admin_pb2_grpc import AdminServiceStub
from nanoserve.v1.inference_pb2_grpc import InferenceServiceStub
from scheduler_svc.config import SchedulerConfig
from scheduler_svc.engine import EngineExit
from scheduler_svc.model import Model, load_model
from scheduler_svc.server import SchedulerServer

LIMITS = RunnerLimits(
    num_blocks=65,
    block_size=4,
    max_num_seqs=8,
    max_model_len=256,
    max_num_batched_tokens=32,
    max_num_decode_steps=1,
    max_plans_in_flight=4,
    vocab_size=768,
)
MODEL = VirtualModel(LIMITS.vocab_size)
_WAIT_SECONDS = 20.0


def demo_model() -> Model:
    """The shipped model's tokenizer and defaults, which know the virtual executor's 768 tokens."""
    return load_model(demo_checkpoint(), "demo")


class Executor:
    """A virtual executor at an address; each `start` is another instance."""

    def __init__(self, address: str, *, limits: RunnerLimits = LIMITS, step_ms: float = 0.2) -> None:
        self.address, self.limits, self.step_ms = address, limits, step_ms
        self.model = MODEL
        self.hooks = RunnerHooks()
        self.runner = VirtualRunner
        self.model_fingerprint = demo_model().fingerprint
        self.weights_fingerprint = "weights"
        self.profiling: Profiling | None = None
        self.tls: ServerTls | None = None
        self.secret: str | None = None
        self._server: ExecutorServer | None = None

    def warm_up(self) -> None:
        """Listens, and is not ready before `start`."""
        self._identity = Identity(uuid.uuid4().hex, self.model_fingerprint, self.weights_fingerprint, "test")
        self._server = ExecutorServer(self.address, self.tls, self.secret)
        self._server.warm_up(self._identity)

    def start(self) -> None:
        if self._server is None:
            self.warm_up()
        assert self._server is not None
        runner = self.runner(
            self.limits,
            self.model,
            cost=CostModel(self.step_ms * 1e6, 0.0, 0.0),
            checked=True,
            hooks=self.hooks,
        )
        self._server.start(runner, self._identity, self.profiling)

    async def stop(self) -> None:
        """Off the loop, since plans are still answered meanwhile."""
        if self._server is not None:
            server, self._server = self._server, None
            await asyncio.to_thread(server.stop, 0.0)


@dataclass
class Answer:
    """What one Generate call brought, its order and meaning checked as it came."""

    request_id: str = ""
    started: Any = None
    completed: Any = None
    texts: dict[int, str] = field(default_factory=dict)
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[Any]] = field(default_factory=dict)
    finished: dict[int, Any] = field(default_factory=dict)
    prompt: list[tuple[int, Any]] = field(default_factory=list)
    num_messages: int = 0
    num_deltas: int = 0

    def add(self, message: inference_pb2.GenerateResponse) -> None:
        assert message.seq == self.num_messages
        self.num_messages += 1
        assert self.completed is None
        self.request_id = self.request_id or message.request_id
        assert message.request_id == self.request_id != ""
        kind = message.WhichOneof("event")
        assert (kind == "started") is (message.seq == 0)
        if kind == "started":
            self.started = message.started
        elif kind == "prompt":
            entries = message.prompt.logprobs
            self.prompt += [(message.prompt.first_position + i, entry) for i, entry in enumerate(entries)]
        elif kind == "delta":
            delta = message.delta
            assert delta.index not in self.finished
            assert len(delta.logprobs) in (0, len(delta.token_ids))
            self.num_deltas += 1
            self.texts[delta.index] = self.texts.get(delta.index, "") + delta.text
            self.token_ids.setdefault(delta.index, []).extend(delta.token_ids)
            self.logprobs.setdefault(delta.index, []).extend(delta.logprobs)
        elif kind == "finished":
            assert message.finished.index not in self.finished
            self.finished[message.finished.index] = message.finished
        else:
            self.completed = message.completed


class Service:
    """`async with` starts a scheduler (and, first, its executor), and stops both."""

    def __init__(
        self, folder: Path, *, executor: Executor | None = None, owns_executor: bool = True, **config: Any
    ) -> None:
        self.executor = executor or Executor(f"unix:{folder}/executor")
        defaults = SchedulerConfig(
            listen=f"unix:{folder}/scheduler-{uuid.uuid4().hex[:6]}",
            executor=self.executor.address,
            executor_loss_timeout=_WAIT_SECONDS,
        )
        if config.get("api_workers"):
            config.setdefault("listen", "127.0.0.1:0")  # workers share a port, not a socket file
        self.config = replace(defaults, **config)
        self.model = demo_model()
        self.starts_executor, self.owns_executor = executor is None, owns_executor

    async def __aenter__(self) -> "Service":
        if self.starts_executor:
            self.executor.start()
        self.server = SchedulerServer(self.config, self.model)
        self.address = await self.server.start()
        self.channel = grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        self.stub: Any = InferenceServiceStub(self.channel)
        self.admin: Any = AdminServiceStub(self.channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.channel.close()
        await self.server.stop()
        if self.owns_executor:
            await self.executor.stop()

    async def serving(self) -> "Service":
        await asyncio.wait_for(self.server.serving.wait(), _WAIT_SECONDS)
        return self

    async def exit(self) -> EngineExit:
        return await asyncio.wait_for(self.server.wait(), _WAIT_SECONDS)

    async def stream(self, prompt: Any, **fields: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        call = self.stub.Generate(generate_request(prompt, **fields), timeout=_WAIT_SECONDS)
        try:
            async for message in call:
                yield message
        finally:
            call.cancel()  # or it would go on until somebody collects it

    async def generate(self, prompt: Any, **fields: Any) -> Answer:
        answer = Answer()
        async for message in self.stream(prompt, **fields):
            answer.add(message)
        assert answer.completed is not None
        assert len(answer.finished) == fields.get("n", 1)
        return answer

    async def load(self) -> admin_pb2.Load:
        response: admin_pb2.GetLoadResponse = await self.admin.GetLoad(admin_pb2.GetLoadRequest())
        return response.load

    async def until(self, holds: Callable[[admin_pb2.Load], bool]) -> admin_pb2.Load:
        """Waits until the load is such."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while not holds(load := await self.load()):  # noqa: ASYNC110 (nobody tells of it)
                await asyncio.sleep(0.005)
        return load

    async def until_idle(self) -> admin_pb2.Load:
        """Waits until no sequence is left; nothing may be held then."""
        load = await self.until(lambda load: not load.num_running_requests and not load.num_waiting_requests)
        assert load.num_held_blocks == 0
        assert load.num_total_blocks == load.num_free_blocks + load.num_cached_blocks
        return load


_SAMPLING = inference_pb2.SamplingParams.DESCRIPTOR.fields_by_name
_STOP = inference_pb2.StopParams.DESCRIPTOR.fields_by_name
_OUTPUT = inference_pb2.OutputParams.DESCRIPTOR.fields_by_name


def generate_request(prompt: Any, **fields: Any) -> inference_pb2.GenerateRequest:
    """Sorts keyword arguments into the parts of a request; `stop_token_ids` are `stop.token_ids`.

    Model ends are ordinary tokens unless `ignore_eos` says otherwise, so that lengths are certain.
    """
    request = inference_pb2.GenerateRequest()
    if isinstance(prompt, str):
        request.text = prompt
    elif isinstance(prompt, inference_pb2.Chat):
        request.chat.CopyFrom(prompt)
    elif prompt is not None:
        request.token_ids.ids.extend(prompt)
        request.token_ids.SetInParent()
    request.stop.ignore_eos = True
    for name, value in fields.items():
        if name == "stop_token_ids":
            request.stop.token_ids.extend(value)
        elif name == "logit_bias":
            request.sampling.logit_bias.update(value)
        elif name == "strings":
            request.stop.strings.extend(value)
        elif isinstance(
            getattr(request, name, None), inference_pb2.ResumeParams | inference_pb2.GuidedParams
        ):
            getattr(request, name).CopyFrom(value)
        else:
            groups = [(_SAMPLING, request.sampling), (_STOP, request.stop), (_OUTPUT, request.output)]
            target = next((part for names, part in groups if name in names), request)
            setattr(target, name, value)
    return request


def run(test: Callable[[], Any]) -> None:
    """Runs an async test to its end."""
    asyncio.run(asyncio.wait_for(test(), 60))


def retry_seconds(error: grpc.aio.AioRpcError) -> float:
    """When to try again, as the RetryInfo of an error's status says; there is no other detail before it."""
    status = rpc_status.from_call(error)
    assert status is not None
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    return float(retry.retry_delay.ToTimedelta().total_seconds())


@contextlib.contextmanager
def refused(code: grpc.StatusCode, field: str = "") -> Iterator[Any]:
    """The block ends with this status; `field` is what its BadRequest details name."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        yield failure
    assert failure.value.code() is code, failure.value
    if field:
        status = rpc_status.from_call(failure.value)
        assert status is not None
        bad = error_details_pb2.BadRequest()
        assert any(detail.Is(bad.DESCRIPTOR) and detail.Unpack(bad) for detail in status.details)
        assert [violation.field for violation in bad.field_violations] == [field]
