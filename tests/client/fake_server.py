"""A real gRPC server whose answers are scripted, for the client's tests."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from nanoserve.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc
from nanoserve.v1 import inference_pb2 as pb

Script = Callable[[pb.GenerateRequest, grpc.ServicerContext], Iterator[pb.GenerateResponse]]
Event = pb.GenerateStarted | pb.GeneratePrompt | pb.GenerateDelta | pb.GenerateFinished | pb.GenerateCompleted

MODEL = pb.GetModelResponse(
    model="fake",
    architecture="Qwen3ForCausalLM",
    vocab_size=512,
    max_model_len=2048,
    eos_token_ids=[1, 2],
    default_sampling=pb.SamplingParams(temperature=0.5, top_p=0.75, top_k=20, repetition_penalty=1, n=1),
    model_fingerprint="ab",
    weights_fingerprint="cd",
    has_chat_template=True,
    server_version="0.1.0",
)
LOAD = admin_pb2.Load(
    num_running_requests=1,
    num_waiting_requests=2,
    num_total_blocks=12,
    num_free_blocks=3,
    num_cached_blocks=4,
    num_held_blocks=5,
    num_shared_blocks=2,
    num_preemptions=6,
    num_prefix_query_tokens=70,
    num_prefix_hit_tokens=35,
    num_steps=8,
    num_output_tokens=9,
    step_stats=admin_pb2.StepStats(device_ms=1.5, round_trip_ms=2.5),
    executor_epoch=10,
    executor_healthy=True,
    num_plans_in_flight=2,
)
_FIELDS = {
    pb.GenerateStarted: "started",
    pb.GeneratePrompt: "prompt",
    pb.GenerateDelta: "delta",
    pb.GenerateFinished: "finished",
    pb.GenerateCompleted: "completed",
}


def messages(*events: Event, request_id: str = "r1") -> list[pb.GenerateResponse]:
    """The events as a server sends them."""
    responses = []
    for seq, event in enumerate(events):
        response = pb.GenerateResponse(request_id=request_id, seq=seq)
        getattr(response, _FIELDS[type(event)]).CopyFrom(event)
        responses.append(response)
    return responses


def answer(*texts: str, finish_reason: Any = pb.FINISH_REASON_LENGTH) -> list[pb.GenerateResponse]:
    """A whole stream of one output, a delta and a token for each text."""
    deltas = [pb.GenerateDelta(text=text, token_ids=[100 + i]) for i, text in enumerate(texts)]
    return messages(
        pb.GenerateStarted(num_prompt_tokens=3, num_cached_tokens=1, seed=7, prompt_digest=b"\1" * 16),
        *deltas,
        pb.GenerateFinished(finish_reason=finish_reason),
        pb.GenerateCompleted(
            usage=pb.Usage(num_prompt_tokens=3, num_cached_tokens=1, num_output_tokens=len(texts)),
            timing=pb.Timing(queue_seconds=0.25, first_token_seconds=0.5, total_seconds=1.0),
        ),
    )


def echo(request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
    """Answers with the words of the prompt, or of the last message."""
    text = request.text if request.WhichOneof("prompt") == "text" else request.chat.messages[-1].content
    yield from answer(*text.replace(" ", " \0").split("\0"))


def endless(request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
    """Sends one delta and then nothing, until the call ends."""
    yield from answer("one ", "two")[:2]
    ended = threading.Event()
    if context.add_callback(ended.set):
        ended.wait()


def fail(
    context: grpc.ServicerContext,
    code: grpc.StatusCode,
    message: str,
    violations: dict[str, str] | None = None,
    retry_after_seconds: float | None = None,
) -> None:
    """Ends a call as the service does, with google.rpc details."""
    details = []
    if violations:
        bad_request = error_details_pb2.BadRequest()
        for field, description in violations.items():
            bad_request.field_violations.add(field=field, description=description)
        details.append(bad_request)
    if retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(retry_after_seconds * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = [any_pb2.Any() for _ in details]
    for target, detail in zip(packed, details, strict=True):
        target.Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    context.abort_with_status(rpc_status.to_status(status))


class FakeServicer(inference_pb2_grpc.InferenceServiceServicer, admin_pb2_grpc.AdminServiceServicer):
    """Plays `script` for each Generate, and keeps the requests."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.load = LOAD
        self.requests: list[Any] = []
        self.metadata: list[Any] = []
        """Of Generate and Tokenize."""
        self.begun = threading.Event()
        """Set when a Generate has been received."""
        self.ended = threading.Event()
        """Set when a Generate has ended, by its end or a cancel."""

    def Generate(self, request: pb.GenerateRequest, context: Any) -> Iterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.metadata.append(context.invocation_metadata())
        context.add_callback(self.ended.set)
        self.begun.set()
        yield from self.script(request, context)

    def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        self.requests.append(request)
        self.metadata.append(context.invocation_metadata())
        return pb.TokenizeResponse(token_ids=request.text.encode())

    def Detokenize(self, request: pb.DetokenizeRequest, context: Any) -> pb.DetokenizeResponse:
        self.requests.append(request)
        return pb.DetokenizeResponse(text=bytes(request.token_ids).decode())

    def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        if request.model not in ("", MODEL.model):
            fail(context, grpc.StatusCode.NOT_FOUND, "model: fake is served", {"model": "fake is served"})
        return MODEL

    def GetLoad(self, request: admin_pb2.GetLoadRequest, context: Any) -> admin_pb2.GetLoadResponse:
        return admin_pb2.GetLoadResponse(load=self.load)


@contextmanager
def running(servicer: FakeServicer, address: str = "127.0.0.1:0") -> Iterator[str]:
    """Serves, and yields the address."""
    server = grpc.server(ThreadPoolExecutor(max_workers=8))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield address if address.startswith("unix:") else f"127.0.0.1:{port}"
    finally:
        server.stop(grace=None).wait()
