"""Both clients against a real server whose answers are scripted: the same results, errors and cancels."""

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fake_server
import grpc
import pytest
from both_clients import KINDS, call

import nanoserve_client as ns
from nanoserve.v1 import inference_pb2 as pb


@pytest.fixture
def servicer() -> fake_server.FakeServicer:
    return fake_server.FakeServicer(fake_server.echo)


@pytest.fixture
def address(servicer: fake_server.FakeServicer) -> Iterator[str]:
    with fake_server.running(servicer) as address:
        yield address


@KINDS
def test_a_stream_yields_the_events_as_sent(kind: str, address: str) -> None:
    assert call(kind, address, "stream", "one two") == [
        ns.Started("r1", 3, 1, 7, b"\1" * 16),
        ns.Delta(0, "one ", (100,), ()),
        ns.Delta(0, "two", (101,), ()),
        ns.Finished(0, ns.FinishReason.LENGTH, None),
        ns.Completed(ns.Usage(3, 1, 2, 0), ns.Timing(0.25, 0.5, 1.0)),
    ]


@KINDS
def test_generate_folds_the_stream(kind: str, address: str, servicer: fake_server.FakeServicer) -> None:
    completion = call(kind, address, "generate", "one two", options=ns.GenerateOptions(seed=1), top_k=2)
    assert completion == ns.Completion(
        request_id="r1",
        outputs=(ns.CompletionOutput(0, "one two", (100, 101), ns.FinishReason.LENGTH, None, None),),
        num_prompt_tokens=3,
        num_cached_tokens=1,
        seed=7,
        prompt_digest=b"\1" * 16,
        prompt_logprobs=None,
        usage=ns.Usage(3, 1, 2, 0),
        timing=ns.Timing(0.25, 0.5, 1.0),
    )
    sampling = pb.SamplingParams(seed=1, top_k=2)
    assert servicer.requests == [pb.GenerateRequest(text="one two", sampling=sampling)]


@KINDS
def test_trace_headers_go_with_a_generation_and_nothing_else_does(
    kind: str, address: str, servicer: fake_server.FakeServicer
) -> None:
    headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "x=y", "baggage": "secret=1"}
    call(kind, address, "generate", "one", trace_headers=headers)
    metadata = dict(servicer.metadata[-1])
    assert {name: metadata.get(name) for name in headers} == {**headers, "baggage": None}
    for wrong in ({"traceparent": "\n"}, {"tracestate": 1}, "traceparent"):
        with pytest.raises(ns.InvalidRequest, match="trace_headers"):
            call(kind, address, "generate", "one", trace_headers=wrong)


@KINDS
def test_chat_sends_messages_and_nothing_else(
    kind: str, address: str, servicer: fake_server.FakeServicer
) -> None:
    messages = [ns.Message("system", "s"), {"role": "user", "content": "hello you"}]
    assert call(kind, address, "chat", messages).text == "hello you"
    assert [m.role for m in servicer.requests[0].chat.messages] == ["system", "user"]
    for wrong in ("hello", [], [1, 2]):
        with pytest.raises(ns.InvalidRequest, match="messages"):
            call(kind, address, "chat", wrong)
    assert len(servicer.requests) == 1


@KINDS
def test_tokens_go_both_ways(kind: str, address: str, servicer: fake_server.FakeServicer) -> None:
    assert call(kind, address, "tokenize", "aé") == (97, 195, 169)
    assert call(kind, address, "detokenize", (97, 195, 169), skip_special_tokens=True) == "aé"
    assert servicer.requests[1].skip_special_tokens


@KINDS
def test_model_and_load_are_reported_in_full(kind: str, address: str) -> None:
    info = call(kind, address, "model_info")
    assert (info.model, info.vocab_size, info.eos_token_ids, info.max_model_len) == (
        "fake",
        512,
        (1, 2),
        2048,
    )
    assert (info.default_sampling.temperature, info.default_sampling.top_k) == (0.5, 20)
    load = call(kind, address, "get_load")
    assert load.num_total_blocks == load.num_free_blocks + load.num_cached_blocks + load.num_held_blocks
    assert (load.step_stats.device_ms, load.num_prefix_hit_tokens, load.executor_epoch) == (1.5, 35, 10)


@KINDS
def test_a_unix_socket_serves_as_well(kind: str, tmp_path: Path) -> None:
    with fake_server.running(fake_server.FakeServicer(fake_server.echo), f"unix:{tmp_path}/s") as address:
        assert call(kind, address, "generate", "hi").text == "hi"


NAMED = {
    grpc.StatusCode.INVALID_ARGUMENT: ns.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: ns.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: ns.AlreadyExists,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ns.ResourceExhausted,
    grpc.StatusCode.UNAUTHENTICATED: ns.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: ns.PermissionDenied,
    grpc.StatusCode.UNAVAILABLE: ns.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: ns.DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: ns.Unimplemented,
    grpc.StatusCode.CANCELLED: ns.Cancelled,
    grpc.StatusCode.INTERNAL: ns.Internal,
}


@KINDS
@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_each_code_is_its_own_error_with_details(kind: str, code: grpc.StatusCode) -> None:
    def script(request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
        yield fake_server.answer("a")[0]
        fake_server.fail(context, code, "it failed", {"stop.strings[1]": "is empty"}, 2.5)

    with fake_server.running(fake_server.FakeServicer(script)) as address:
        with pytest.raises(ns.ApiError) as caught:
            call(kind, address, "generate", "x", connect={"resume_timeout": 0})
    error = caught.value
    assert type(error) is NAMED.get(code, ns.ApiError)
    assert (error.code, error.message, error.retry_after_seconds) == (code, "it failed", 2.5)
    assert error.violations == (ns.FieldViolation("stop.strings[1]", "is empty"),)
    assert str(error) == "it failed; stop.strings[1]: is empty"


@KINDS
def test_a_unary_call_fails_in_the_same_way(kind: str, address: str) -> None:
    with pytest.raises(ns.NotFound) as caught:
        call(kind, address, "model_info", model="other")
    assert [v.field for v in caught.value.violations] == ["model"]
    assert str(caught.value) == "model: fake is served"


@KINDS
def test_a_stream_cut_short_without_an_error_is_one(kind: str) -> None:
    servicer = fake_server.FakeServicer(lambda request, context: iter(fake_server.answer("a", "b")[:-1]))
    with fake_server.running(servicer) as address, pytest.raises(ns.ProtocolError, match="completed"):
        call(kind, address, "generate", "x")


@KINDS
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_a_stream_that_breaks_behind_its_last_event_is_whole(kind: str, code: grpc.StatusCode) -> None:
    calls = []

    def answer(request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
        calls.append(request)
        yield from fake_server.answer("a", "b")
        context.abort(code, "")

    with fake_server.running(fake_server.FakeServicer(answer)) as address:
        assert call(kind, address, "generate", "x").text == "ab"
    assert len(calls) == 1


@KINDS
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_a_stream_that_the_server_ends_early_goes_on(kind: str, code: grpc.StatusCode) -> None:
    calls: list[pb.GenerateRequest] = []

    def answer(request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
        calls.append(request)
        whole = fake_server.answer("a", "b")
        if len(calls) == 1:
            yield from whole[:2]
            context.abort(code, "")
        for seq, response in enumerate(response for index, response in enumerate(whole) if index != 1):
            response.seq = seq
            yield response

    with fake_server.running(fake_server.FakeServicer(answer)) as address:
        assert call(kind, address, "generate", "x").text == "ab"
    assert [list(request.resume.outputs) != [] for request in calls] == [False, True]


@KINDS
def test_a_stream_does_not_wait_to_go_on_for_longer_than_its_timeout(kind: str) -> None:
    calls: list[pb.GenerateRequest] = []

    def answer(request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
        calls.append(request)
        if len(calls) > 1:
            fake_server.fail(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_after_seconds=30.0)
        yield from fake_server.answer("a", "b")[:2]
        context.abort(grpc.StatusCode.UNAVAILABLE, "")

    with fake_server.running(fake_server.FakeServicer(answer)) as address:
        begun = time.monotonic()
        with pytest.raises(ns.ResourceExhausted, match="full"):
            call(kind, address, "generate", "x", timeout=20.0)
        assert time.monotonic() - begun < 20.0
    assert len(calls) == 2


def leave_sync(address: str, how: str) -> None:
    with ns.Client(address) as client:
        if how == "break":
            for event in client.stream("x"):
                if isinstance(event, ns.Delta):
                    break
        elif how == "with":
            with contextlib.suppress(KeyError), client.stream("x") as stream:
                next(stream)
                raise KeyError
        else:
            stream = client.stream("x")
            closer = threading.Timer(0.05, stream.close)
            closer.start()
            events = list(stream)  # ends, without an error
            assert len(events) <= 2
            assert list(stream) == []
        assert servicer_of[address].ended.wait(10)


async def leave_async(address: str, how: str) -> None:
    async with ns.AsyncClient(address) as client:
        if how == "break":
            async for event in client.stream("x"):
                if isinstance(event, ns.Delta):
                    break
        elif how == "with":
            with contextlib.suppress(KeyError):
                async with client.stream("x") as stream:
                    await anext(stream)
                    raise KeyError
        else:
            stream = client.stream("x")
            asyncio.get_running_loop().call_later(0.05, stream.close)
            events = [event async for event in stream]  # ends, without an error
            assert len(events) <= 2
            assert [event async for event in stream] == []
        assert await asyncio.to_thread(servicer_of[address].ended.wait, 10)


@KINDS
def test_a_broken_contract_cancels_the_call_and_ends_the_stream(kind: str) -> None:
    def script(request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
        yield fake_server.answer("a")[1]
        yield from fake_server.endless(request, context)

    servicer = fake_server.FakeServicer(script)

    async def read(address: str) -> None:
        async with ns.AsyncClient(address) as client:
            stream = client.stream("x")
            with pytest.raises(ns.ProtocolError):
                await anext(stream)
            assert await asyncio.to_thread(servicer.ended.wait, 10)
            assert [event async for event in stream] == []

    with fake_server.running(servicer) as address:
        if kind == "async":
            asyncio.run(read(address))
            return
        with ns.Client(address) as client:
            stream = client.stream("x")
            with pytest.raises(ns.ProtocolError):
                next(stream)
            assert servicer.ended.wait(10)
            assert list(stream) == []


servicer_of: dict[str, fake_server.FakeServicer] = {}


@KINDS
@pytest.mark.parametrize("how", ["break", "with", "close"])
def test_leaving_a_stream_cancels_the_call(kind: str, how: str) -> None:
    servicer = fake_server.FakeServicer(fake_server.endless)
    with fake_server.running(servicer) as address:
        servicer_of[address] = servicer
        if kind == "sync":
            leave_sync(address, how)
        else:
            asyncio.run(leave_async(address, how))


@KINDS
def test_a_stream_closed_while_its_call_is_made_leaves_no_call_behind(kind: str) -> None:
    servicer = fake_server.FakeServicer(fake_server.endless)

    def read(address: str) -> None:
        with ns.Client(address) as client:
            stream = client.stream("x")
            make_call = stream._start

            def close_meanwhile(*told: object) -> object:
                made = make_call(*told)
                assert servicer.begun.wait(10)
                stream.close()
                return made

            stream._start = close_meanwhile
            assert list(stream) == []
            assert servicer.ended.wait(10)

    async def read_async(address: str) -> None:
        async with ns.AsyncClient(address) as client:
            stream = client.stream("x")
            make_call = stream._start

            async def close_meanwhile(*told: object) -> object:
                made = await make_call(*told)
                assert await asyncio.to_thread(servicer.begun.wait, 10)
                stream.close()
                return made

            stream._start = close_meanwhile
            assert [event async for event in stream] == []
            assert await asyncio.to_thread(servicer.ended.wait, 10)

    with fake_server.running(servicer) as address:
        if kind == "sync":
            read(address)
        else:
            asyncio.run(read_async(address))


def test_cancelling_a_task_cancels_its_call() -> None:
    servicer = fake_server.FakeServicer(fake_server.endless)

    async def run(address: str) -> None:
        async with ns.AsyncClient(address) as client:
            task = asyncio.create_task(client.generate("x"))
            assert await asyncio.to_thread(servicer.begun.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(servicer.ended.wait, 10)

    with fake_server.running(servicer) as address:
        asyncio.run(run(address))


def test_an_async_client_may_be_made_before_its_loop_and_dropped_after(address: str) -> None:
    client = ns.AsyncClient(address)
    kept = []

    async def run() -> None:
        stream = client.stream("x")
        assert isinstance(await anext(stream), ns.Started)
        kept.append(stream)

    asyncio.run(run())
    kept.clear()  # a complaint at this point would be an error here
    gc.collect()
