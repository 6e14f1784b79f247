"""What is refused, by field, over a real channel; and that refusals disturb nothing."""

import asyncio
import math
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from scheduler_harness import LIMITS, Executor, Service, refused, retry_seconds, run

from nanoserve.v1 import admin_pb2
from nanoserve.v1 import inference_pb2 as pb
from scheduler_svc.errors import handler

INVALID = grpc.StatusCode.INVALID_ARGUMENT
USER = [pb.ChatMessage(role="user", content="x")]


def chat(**fields: Any) -> pb.Chat:
    made = pb.Chat(messages=fields.pop("messages", USER))
    made.template_options.update(fields)
    return made


CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("prompt", None, {}),
    ("prompt", "", {}),
    ("prompt", [], {}),
    ("prompt", [1] * 256, {}),
    ("prompt", "x" * 1_000_000, {}),
    ("token_ids.ids[2]", [0, 767, 768], {}),
    ("token_ids.ids[0]", [-1], {}),
    ("chat.messages", chat(messages=[]), {}),
    ("chat.messages[1].role", chat(messages=[*USER, pb.ChatMessage(content="x")]), {}),
    ("chat.template_options.eos_token", chat(eos_token="x"), {}),
    ("chat.template_options.add_generation_prompt", chat(add_generation_prompt=True), {}),
    ("chat.messages", chat(messages=USER * 10_001), {}),
    ("chat.template_options", chat(note="x" * 65_536), {}),
    ("request_id", "x", {"request_id": "i" * 257}),
    ("cache_salt", "x", {"cache_salt": "s" * 257}),
    ("sampling.temperature", "x", {"temperature": math.nan}),
    ("sampling.temperature", "x", {"temperature": math.inf}),
    ("sampling.temperature", "x", {"temperature": -0.5}),
    ("sampling.temperature", "x", {"temperature": 101}),
    ("sampling.top_p", "x", {"top_p": 0}),
    ("sampling.top_p", "x", {"top_p": 1.5}),
    ("sampling.top_p", "x", {"top_p": math.nan}),
    ("sampling.top_k", "x", {"top_k": -1}),
    ("sampling.min_p", "x", {"min_p": -0.1}),
    ("sampling.repetition_penalty", "x", {"repetition_penalty": 0}),
    ("sampling.frequency_penalty", "x", {"frequency_penalty": 2.5}),
    ("sampling.presence_penalty", "x", {"presence_penalty": -math.inf}),
    ("sampling.n", "x", {"n": 0}),
    ("sampling.n", "x", {"n": 129}),
    ("sampling.logit_bias[768]", "x", {"logit_bias": {768: 1.0}}),
    ("sampling.logit_bias[3]", "x", {"logit_bias": {3: math.nan}}),
    ("sampling.logit_bias", "x", {"logit_bias": {i: 1.0 for i in range(1025)}}),
    ("stop.max_tokens", "x", {"max_tokens": 0}),
    ("stop.max_tokens", "x", {"max_tokens": -3}),
    ("stop.max_tokens", [1] * 200, {"max_tokens": 57}),
    ("stop.min_tokens", "x", {"min_tokens": -1}),
    ("stop.min_tokens", "x", {"min_tokens": 5, "max_tokens": 4}),
    ("stop.min_tokens", [1] * 200, {"min_tokens": 57}),
    ("stop.strings[1]", "x", {"strings": ["a", ""]}),
    ("stop.strings[0]", "x", {"strings": ["é" * 513]}),
    ("stop.strings", "x", {"strings": ["a"] * 17}),
    ("stop.token_ids[0]", "x", {"stop_token_ids": [768]}),
    ("stop.token_ids", "x", {"stop_token_ids": [1] * 65}),
    ("output.logprobs", "x", {"logprobs": 21}),
    ("output.prompt_logprobs", "x", {"prompt_logprobs": -1}),
]
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
METHODS = [
    method
    for file in (pb.DESCRIPTOR, admin_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
]


def test_every_bad_request_names_its_field_and_disturbs_nothing(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            running = asyncio.ensure_future(service.generate([9, 9, 9], seed=1, max_tokens=200))
            for field, prompt, params in CASES:
                with refused(INVALID, field):
                    await service.generate(prompt, **params)
            with refused(grpc.StatusCode.NOT_FOUND, "model"):
                await service.generate("x", model="other")
            answer = await running
            assert len(answer.token_ids[0]) == 200
            load = await service.until_idle()
            assert load.num_output_tokens == 200

    run(test)


@pytest.mark.parametrize(
    ("prompt", "params"),
    [
        ([1] * 255, {"max_tokens": 1}),
        ([0, 767], {"max_tokens": 254}),
        ("x", {"max_tokens": 4, "min_tokens": 4, "temperature": 100, "top_p": 1, "n": 8, "logprobs": 20}),
        (
            "x",
            {
                "max_tokens": 1,
                "guided": pb.GuidedParams(),
                "strings": ["é" * 512] * 16,
                "request_id": "i" * 256,
            },
        ),
        ("x", {"max_tokens": 1, "logit_bias": {i % 768: 100.0 for i in range(768)}, "frequency_penalty": -2}),
        (chat(enable_thinking=False, depth=2), {"max_tokens": 1}),
    ],
)
def test_what_is_just_within_the_limits_is_served(prompt: Any, params: dict[str, Any], tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            answer = await service.generate(prompt, **params)
            assert answer.completed.usage.num_output_tokens >= 1

    run(test)


def test_a_live_request_id_cannot_be_used_again_until_it_ends(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            running = asyncio.ensure_future(service.generate([1], max_tokens=200, request_id="a"))
            await service.until(lambda load: load.num_running_requests == 1)
            with refused(grpc.StatusCode.ALREADY_EXISTS, "request_id"):
                await service.generate([1], request_id="a")
            await running
            await service.generate([1], max_tokens=1, request_id="a")

    run(test)


def test_a_full_queue_refuses_quickly_with_a_time_to_retry(tmp_path: Path):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/ex", step_ms=5)
        executor.start()
        async with Service(tmp_path, executor=executor, max_queue_size=3) as service:
            await service.serving()
            calls = []
            for count in range(1, 12):
                calls.append(asyncio.ensure_future(service.generate([count], max_tokens=60)))
                await service.until(
                    lambda load, count=count: load.num_running_requests + load.num_waiting_requests == count
                )
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as refusal:
                await service.generate([1], max_tokens=60)
            assert 0 < retry_seconds(refusal.value) <= 30
            for answer in await asyncio.gather(*calls):
                assert len(answer.token_ids[0]) == 60

    run(test)


def test_other_calls_name_what_is_wrong_too(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            stub, admin = service.stub, service.admin
            with refused(grpc.StatusCode.NOT_FOUND, "model"):
                await stub.GetModel(pb.GetModelRequest(model="other"))
            with refused(INVALID, "token_ids[1]"):
                await stub.Detokenize(pb.DetokenizeRequest(token_ids=[1, 768]))
            limit = 16 * LIMITS.max_model_len
            with refused(INVALID, "token_ids"):
                await stub.Detokenize(pb.DetokenizeRequest(token_ids=[-1] * (limit + 1)))
            for count in (10, limit):
                with refused(INVALID, f"token_ids[{count - 1}]"):
                    await stub.Detokenize(pb.DetokenizeRequest(token_ids=[1] * (count - 1) + [-1]))
            with refused(INVALID, "prompt"):
                await stub.Tokenize(pb.TokenizeRequest())
            assert not (await stub.Tokenize(pb.TokenizeRequest(text=""))).token_ids
            long = "x" * 2**20
            with refused(INVALID, "text"):
                await stub.Tokenize(pb.TokenizeRequest(text=long))
            with refused(INVALID, "chat"):
                messages = [pb.ChatMessage(role="user", content=long)]
                await stub.Tokenize(pb.TokenizeRequest(chat=pb.Chat(messages=messages)))
            with refused(INVALID, "interval_seconds"):
                await admin.WatchLoad(admin_pb2.WatchLoadRequest(interval_seconds=0.01)).read()
            with refused(INVALID, "timeout_seconds"):
                await admin.Drain(admin_pb2.DrainRequest(timeout_seconds=math.nan))
            with refused(INVALID, "executor"):
                await admin.SwitchExecutor(admin_pb2.SwitchExecutorRequest())

    run(test)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_bytes_that_are_no_message_are_refused_and_logged_nowhere(
    method: MethodDescriptor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            call = service.channel.stream_stream(f"/{method.containing_service.full_name}/{method.name}")
            with refused(INVALID):
                await call(iter([b"\xff\xff"]), timeout=20).read()

    run(test)
    assert "Traceback" not in capfd.readouterr().err


def test_a_reflection_stream_goes_on_behind_bytes_that_are_no_message(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            call = service.channel.stream_stream(REFLECTION)
            good = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
            answers = [data async for data in call(iter([b"\xff", good]), timeout=20)]
            first, second = map(reflection_pb2.ServerReflectionResponse.FromString, answers)
            assert first.error_response.error_code == INVALID.value[0]
            assert len(second.list_services_response.service) == 4

    run(test)


def test_a_request_of_more_than_8_mib_is_refused_whole(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            for size in (8 * 2**20, 60 * 2**20):
                with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
                    await service.stub.Tokenize(pb.TokenizeRequest(text="x" * size))

    run(test)


@pytest.mark.parametrize("letter", ["x", "\n", "\U0001f600"])
def test_what_a_client_is_told_is_short_however_long_its_words_are(letter: str, tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await service.stub.GetModel(pb.GetModelRequest(model=letter * 20_000))
            assert failure.value.code() is grpc.StatusCode.NOT_FOUND
            details = failure.value.details() or ""
            assert len(details) <= 250
            assert details.startswith("model: ")
            assert details.endswith("is not served here, 'demo' is")

    run(test)


class Writer:
    """A method like those of the services, whose client has gone."""

    @handler
    async def Write(self, request: bytes, context: Any) -> None:
        raise grpc.aio.InternalError('Failed "execute_batch"')


def test_a_client_that_vanishes_during_a_write_is_no_bug(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(Writer().Write(b"", None))
    logged = capfd.readouterr()
    assert "a handler failed" not in logged.out + logged.err


def test_a_bug_shows_as_an_id_and_no_stack(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            service.model.tokenizer.encode = None  # type: ignore[assignment,method-assign]
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await service.generate("x")
            assert failure.value.code() is grpc.StatusCode.INTERNAL
            words = (failure.value.details() or "").split()
            assert words[:2] == ["internal", "error"]
            logged = capfd.readouterr()
            assert words[2] in logged.err + logged.out
            assert "TypeError" not in str(failure.value.details())

    run(test)
