"""A generation cut off anywhere and resumed: the client gets what an undisturbed stream tells, each token once."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from scheduler_harness import Answer, Service, generate_request, refused, run

from nanoserve.v1 import inference_pb2 as pb

INVALID = grpc.StatusCode.INVALID_ARGUMENT
Messages = list[pb.GenerateResponse]

# Single messages a token, where nothing is held, so that there are many places to cut.
REQUESTS: list[dict[str, Any]] = [
    {"prompt": [1, 2, 3], "seed": 5, "temperature": 1.0, "max_tokens": 12, "logprobs": 2},
    {"prompt": [1, 2, 3], "max_tokens": 10, "n": 3, "temperature": 0.0, "cache_salt": "x"},
    {"prompt": "Some text, ", "seed": 6, "max_tokens": 20, "strings": ["zz", "e"], "min_tokens": 3},
    {
        "prompt": "Some text, ",
        "seed": 7,
        "max_tokens": 20,
        "strings": ["a"],
        "include_stop_in_output": True,
        "n": 2,
    },
    {
        "prompt": "A word: ",
        "guided": pb.GuidedParams(regex="[a-f]{2,9} [0-9]{3}(, [a-z]+)?"),
        **{"ignore_eos": False, "seed": 8, "n": 2, "max_tokens": 16},
    },
    {"prompt": [7] * 30, "seed": 9, "max_tokens": 3, "prompt_logprobs": 1, "n": 2},
]


async def messages_of(service: Service, request: pb.GenerateRequest) -> Messages:
    return [message async for message in service.stub.Generate(request, timeout=20)]


def resumed(request: pb.GenerateRequest, told: Messages, num_outputs: int) -> pb.GenerateRequest:
    """The request that goes on behind these messages, as any client makes it from the proto alone."""
    more = pb.GenerateRequest()
    more.CopyFrom(request)
    started = told[0].started
    more.request_id = told[0].request_id
    more.resume.seed, more.resume.prompt_digest = started.seed, started.prompt_digest
    more.resume.outputs.extend(pb.ResumedOutput() for _ in range(num_outputs))
    for message in told:
        if message.WhichOneof("event") == "delta":
            output = more.resume.outputs[message.delta.index]
            output.token_ids.extend(message.delta.token_ids)
            output.text_length += len(message.delta.text.encode())
        elif message.WhichOneof("event") == "finished":
            more.resume.outputs[message.finished.index].finished = True
    return more


def answer(*parts: Messages) -> Answer:
    """All that was told in several streams, as one: `started` of the first, and prompt log-probabilities once."""
    whole = Answer()
    for number, part in enumerate(parts):
        for message in part:
            kind = message.WhichOneof("event")
            if number and (kind == "started" or (kind == "prompt" and whole.prompt)):
                continue
            message.seq = whole.num_messages
            whole.add(message)
    return whole


def essence(whole: Answer) -> dict[str, Any]:
    """What must be equal however often the stream broke."""
    started = json_format.MessageToDict(whole.started)
    started.pop("numCachedTokens", None)
    usage = whole.completed.usage
    return {
        "started": started,
        "texts": whole.texts,
        "token_ids": whole.token_ids,
        "logprobs": {index: [str(entry) for entry in entries] for index, entries in whole.logprobs.items()},
        "prompt": [(position, str(entry)) for position, entry in whole.prompt],
        "finished": {index: str(finished) for index, finished in whole.finished.items()},
        "num_output_tokens": usage.num_output_tokens,
    }


@pytest.mark.parametrize("fields", REQUESTS, ids=range(len(REQUESTS)))
@pytest.mark.parametrize("api_workers", [0, 1])
def test_a_generation_cut_off_at_any_message_goes_on_as_if_it_had_not_been(
    fields: dict[str, Any], api_workers: int, tmp_path: Path
):
    async def test() -> None:
        async with Service(tmp_path, api_workers=api_workers) as service:
            await service.serving()
            request = generate_request(**fields)
            num_outputs = fields.get("n", 1)
            if not request.sampling.HasField("seed"):
                request.sampling.seed = 77
            whole = await messages_of(service, request)
            wanted = essence(answer(whole))
            assert all(wanted["token_ids"].values())
            whole = await messages_of(service, request)
            cuts = range(1, len(whole)) if not api_workers else [1, len(whole) // 2, len(whole) - 1]
            for cut in cuts:
                told = whole[:cut]
                rest = await messages_of(service, resumed(request, told, num_outputs))
                assert essence(answer(told, rest)) == wanted, cut
            await service.until_idle()

    run(test)


def test_tokens_that_the_guide_forbids_are_refused_by_name(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            guided = pb.GuidedParams(regex="[0-9]+")
            request = generate_request("A number: ", seed=3, guided=guided, ignore_eos=False, max_tokens=9)
            (started, *_) = await messages_of(service, request)
            ids = (await service.stub.Tokenize(pb.TokenizeRequest(text="a"))).token_ids
            letter = pb.GenerateResponse(delta=pb.GenerateDelta(text="a", token_ids=ids))
            with refused(INVALID, "resume.outputs"):
                await messages_of(service, resumed(request, [started, letter], 1))
            assert len(await messages_of(service, request)) > 2

    run(test)


def test_a_generation_cut_off_twice_goes_on_behind_both(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            request = generate_request([1, 2], seed=3, max_tokens=30, n=2, logprobs=0)
            wanted = essence(answer(await messages_of(service, request)))
            parts: list[Messages] = []
            for _ in range(3):
                told = [message for part in parts for message in part]
                call = service.stub.Generate(resumed(request, told, 2) if told else request)
                parts.append([await call.read() for _ in range(4)])
                call.cancel()
                await service.until_idle()
            told = [message for part in parts for message in part]
            parts.append(await messages_of(service, resumed(request, told, 2)))
            assert essence(answer(*parts)) == wanted

    run(test)


def test_what_met_its_stop_before_it_was_cut_off_finishes_at_once(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            request = generate_request([1, 2], seed=3, max_tokens=5, n=2)
            whole = await messages_of(service, request)
            kinds = [message.WhichOneof("event") for message in whole]
            told = [
                message for message, kind in zip(whole, kinds, strict=True) if kind in ("started", "delta")
            ]
            num_steps = (await service.load()).num_steps
            rest = await messages_of(service, resumed(request, told, 2))
            assert [message.WhichOneof("event") for message in rest] == [
                "started",
                "finished",
                "finished",
                "completed",
            ]
            assert essence(answer(told, rest)) == essence(answer(whole))
            assert (await service.load()).num_steps == num_steps

    run(test)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("resume.prompt_digest", {"prompt_digest": b"x" * 16}),
        ("resume.seed", {"seed": 4}),
        ("resume.outputs", {"outputs": []}),
        ("resume.outputs[0].token_ids[1]", {"outputs": [{"tokenIds": [1, 768]}]}),
        ("resume.outputs[0].text_length", {"outputs": [{"tokenIds": [70, 71], "textLength": 1}]}),
        ("resume.outputs[0].token_ids", {"outputs": [{"tokenIds": [70, 9, 71], "textLength": 3}]}),
        ("resume.outputs", {"outputs": [{"tokenIds": [70] * 11, "textLength": 11}]}),
    ],
)
def test_what_no_stream_has_told_is_refused_by_name(field: str, changes: dict[str, Any], tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            request = generate_request([1, 2], seed=3, max_tokens=10, stop_token_ids=[9])
            (started, *_) = await messages_of(service, request)
            more = resumed(request, [started], 1)
            outputs = changes.pop("outputs", None)
            if outputs is not None:
                del more.resume.outputs[:]
                more.resume.outputs.extend(json_format.ParseDict(one, pb.ResumedOutput()) for one in outputs)
            for name, value in changes.items():
                setattr(more.resume, name, value)
            with refused(INVALID, field):
                await messages_of(service, more)

    run(test)


def test_no_more_of_the_prompt_was_cached_than_there_is(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            request = generate_request([1, 2, 3], max_tokens=60)
            told = await messages_of(service, request)
            # What it goes on behind is in the prefix cache, with its output.
            more = resumed(request, told[: len(told) // 2], 1)
            part = answer(await messages_of(service, more))
            assert part.started.num_cached_tokens == part.started.num_prompt_tokens == 3
            assert part.completed.usage.num_cached_tokens == 3
            await service.until_idle()

    run(test)
