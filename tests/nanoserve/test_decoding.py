"""Which bytes are taken as a message, and that the others reach no service."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from nanoserve.decoding import CheckedServer
from nanoserve.executor.v1 import executor_pb2 as executor_pb
from nanoserve.executor.v1.executor_pb2_grpc import (
    ExecutorServiceServicer,
    add_ExecutorServiceServicer_to_server,
)
from nanoserve.v1 import inference_pb2 as pb
from nanoserve.v1.inference_pb2_grpc import InferenceServiceServicer, add_InferenceServiceServicer_to_server

SERVICE = "/nanoserve.v1.InferenceService/"
EXECUTOR = "/nanoserve.executor.v1.ExecutorService/"
BYTES = 200_000


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, as protobuf writes it."""
    head = bytearray()
    for value in (number << 3 | 2, len(content)):
        while value > 127:
            head.append(value & 127 | 128)
            value >>= 7
        head.append(value)
    return bytes(head) + content


class Servicer(InferenceServiceServicer):
    """Answers with what it was given."""

    def Detokenize(self, request: pb.DetokenizeRequest, context: Any) -> pb.DetokenizeResponse:
        return pb.DetokenizeResponse(text=f"{len(request.token_ids)} {len(request.model)}")


class Executor(ExecutorServiceServicer):
    """Answers each message with whether it is a plan."""

    def Execute(
        self, request_iterator: Iterator[executor_pb.ExecuteRequest], context: Any
    ) -> Iterator[executor_pb.ExecuteResponse]:
        for request in request_iterator:
            opened = executor_pb.SessionOpened(epoch=int(request.HasField("plan")))
            yield executor_pb.ExecuteResponse(opened=opened)


@contextmanager
def serving() -> Iterator[grpc.Channel]:
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        add_InferenceServiceServicer_to_server(Servicer(), CheckedServer(server))
        add_ExecutorServiceServicer_to_server(Executor(), CheckedServer(server))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield channel
        finally:
            server.stop(0).wait()


GOOD = {
    "packed": (pb.DetokenizeRequest(token_ids=[1] * BYTES).SerializeToString(), f"{BYTES} 0"),
    "not packed": (b"\x10\x01" * BYTES, f"{BYTES} 0"),
    "one long text": (field(1, b"x" * BYTES), f"0 {BYTES}"),
    "a little of what is not known": (field(1, b"m") + field(15_000, b"x" * 60_000), "0 1"),
}
BAD = {
    "cut": field(1, b"x" * BYTES)[:-1],
    "no UTF-8": field(1, b"\xff"),
    "mostly unknown": field(1, b"m") + field(15_000, b"x" * BYTES),
    "said again and again": field(1, b"x" * 10_000) * 20,
}


@pytest.mark.parametrize("name", GOOD)
def test_a_message_is_taken_however_its_fields_are_written(name: str):
    data, answer = GOOD[name]
    with serving() as channel:
        call = channel.unary_unary(f"{SERVICE}Detokenize", None, pb.DetokenizeResponse.FromString)
        assert call(data, timeout=20).text == answer


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_message_or_mostly_none_is_refused(name: str):
    with serving() as channel:
        with pytest.raises(grpc.RpcError) as refusal:
            channel.unary_unary(f"{SERVICE}Detokenize")(BAD[name], timeout=20)
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_messages_of_a_stream_are_not_measured():
    """Plans come in one, and measuring one of many masks takes longer than its step."""
    plan = executor_pb.ExecuteRequest(plan=executor_pb.StepPlan(step_id=1)).SerializeToString()
    messages = [plan + field(15_000, b"x" * BYTES), b"\xff", plan]
    with serving() as channel:
        call = channel.stream_stream(f"{EXECUTOR}Execute", None, executor_pb.ExecuteResponse.FromString)
        assert [answer.opened.epoch for answer in call(iter(messages), timeout=20)] == [1, 0, 1]
