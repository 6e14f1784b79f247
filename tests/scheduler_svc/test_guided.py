"""Guided requests through a whole scheduler: what comes out fits the guide, whatever happens meanwhile."""

import asyncio
import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from scheduler_harness import LIMITS, Executor, Service, demo_model, refused, run

from benchmarks.schemas import conforms, random_schema
from nanoserve.v1 import inference_pb2 as pb
from scheduler_svc import grammars, guided_params
from scheduler_svc.core.request import Guide
from scheduler_svc.grammars import Followers, GrammarCompiler, GrammarError, has_any, next_tokens

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
ROOMY = replace(LIMITS, num_blocks=513)
REGEX = "[a-d]{3,40}(-[0-9]{2}){1,3}"


def schema(value: Any) -> pb.GuidedParams:
    return pb.GuidedParams(json_schema=json.dumps(value))


def choice(*texts: str) -> pb.GuidedParams:
    return pb.GuidedParams(choice=pb.GuidedChoice(texts=texts))


def regex(pattern: str) -> pb.GuidedParams:
    return pb.GuidedParams(regex=pattern)


async def guided(service: Service, guide: pb.GuidedParams, **params: Any) -> Any:
    return await service.generate([1, 2, 3], guided=guide, **({"ignore_eos": False} | params))


COMPILER = GrammarCompiler(demo_model().tokenizer.to_json(), demo_model().eos_token_ids, LIMITS.vocab_size)


def walk(guide: Guide, choices: Sequence[int]) -> bytes | None:
    """A text made of tokens that the masks allow, an end as soon as one is; None where it has none by then."""
    matcher = COMPILER.compile(guide).matcher.deep_copy()
    table, eos, text = demo_model().tokenizer.token_bytes, demo_model().eos_token_ids, b""
    for number in choices:
        bits = int.from_bytes(next_tokens(matcher, LIMITS.vocab_size), "little")
        allowed = [token for token in range(LIMITS.vocab_size) if bits >> token & 1]
        if set(allowed) & set(eos):
            return text
        token = allowed[number % len(allowed)]
        assert matcher.consume_token(token)
        text += table[token]
    return None


numbers = st.lists(st.integers(0, 10**6), min_size=60, max_size=60)


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=6), numbers)
@settings(max_examples=100, deadline=None)
def test_a_choice_ends_only_as_one_of_its_texts(texts: list[str], choices: list[int]):
    text = walk(Guide("choice", json.dumps(texts, ensure_ascii=False)), choices)
    assert text is None or text.decode() in texts


@given(st.sampled_from([REGEX, "a+b?", "(foo|ba[rz]){2}", "[à-ü]{2,5}x", r"[0-9]{3}\.[^a-z]"]), numbers)
@settings(max_examples=100, deadline=None)
def test_what_a_regex_lets_end_it_matches(pattern: str, choices: list[int]):
    text = walk(Guide("regex", pattern), choices)
    assert text is None or re.fullmatch(pattern, text.decode())


@given(st.integers(0, 10**6), st.integers(0, 3), numbers)
@settings(max_examples=100, deadline=None)
def test_what_a_schema_lets_end_conforms_to_it(seed: int, depth: int, choices: list[int]):
    wanted = random_schema(seed, depth)
    text = walk(Guide("json_schema", json.dumps(wanted)), choices)
    assert text is None or conforms(json.loads(text), wanted)


def test_a_number_too_large_for_a_float_is_no_integer_of_a_range():
    value = json.loads("-1e999")
    assert not conforms(value, {"type": "integer", "minimum": -635, "maximum": -85})
    assert conforms(value, {"type": "number"})


@given(st.lists(st.integers(0, 10**6), min_size=5, max_size=12), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_many_followed_together_are_told_what_each_is_alone(seeds: list[int], seed: int):
    """Of random guides, by random tokens, of which some are not allowed."""
    rng, followers = random.Random(seed), Followers(2)
    guides = [Guide("json_schema", json.dumps(random_schema(seed, seed % 3))) for seed in seeds]
    alone, together = ([COMPILER.compile(guide).matcher.deep_copy() for guide in guides] for _ in range(2))
    known: list[bytes | str] = [COMPILER.compile(guide).bits for guide in guides]
    for _ in range(12):
        tokens = [a_token_of(bits, rng) for bits in known]
        known = [followed(matcher, token) for matcher, token in zip(alone, tokens, strict=True)]
        found = followers.advance(together, tokens, LIMITS.vocab_size)
        assert [bits if isinstance(bits, bytes) else str(bits) for bits in found] == known


@given(st.binary(max_size=40) | st.integers(0, 19_000).map(bytes))
def test_masks_that_allow_nothing_are_told_from_others(bits: bytes):
    assert has_any(bits) == has_any(bytearray(bits)) == any(bits)


def test_that_none_of_many_can_go_on_is_told_of_each():
    matchers = [COMPILER.compile(Guide("regex", "a")).matcher.deep_copy() for _ in range(4)]
    not_allowed = LIMITS.vocab_size
    found = Followers(2).advance(matchers, [not_allowed] * 4, LIMITS.vocab_size)
    assert [type(bits) for bits in found] == [GrammarError] * 4


def a_token_of(bits: bytes | str, rng: random.Random) -> int:
    """One that is allowed, mostly."""
    if isinstance(bits, str) or rng.random() < 0.02:
        return rng.randrange(LIMITS.vocab_size)
    allowed = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little").nonzero()[0]
    return int(rng.choice(allowed.tolist()))


def followed(matcher: LLMatcher, token_id: int) -> bytes | str:
    """What may follow a token, or why nothing may."""
    matcher.consume_token(token_id)
    try:
        return next_tokens(matcher, LIMITS.vocab_size)
    except GrammarError as error:
        return str(error)


def test_each_kind_of_guide_is_followed_to_its_end(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            for seed in range(5):
                answer = await guided(service, regex("[a-c]{3,6}x"), seed=seed, max_tokens=40)
                assert re.fullmatch("[a-c]{3,6}x", answer.texts[0])
                answer = await guided(service, choice("yes", 'n"o\n', "möglich"), seed=seed, n=3)
                assert set(answer.texts.values()) <= {"yes", 'n"o\n', "möglich"}
                answer = await guided(service, schema({"enum": [1, "b", None]}), seed=seed)
                assert json.loads(answer.texts[0]) in (1, "b", None)
                grammar = 'start: "a" item+ "z"\nitem: /[0-9]{2}/ ";"'
                answer = await guided(
                    service, pb.GuidedParams(grammar=grammar), seed=seed, max_tokens=90, logprobs=2
                )
                assert re.fullmatch("a([0-9]{2};)+z|a([0-9]{2};)*[0-9]{0,2}", answer.texts[0])
                assert len(answer.logprobs[0]) == len(answer.token_ids[0])
                assert answer.finished[0].finish_reason in (pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH)
            await service.until_idle()

    run(test)


def test_min_tokens_puts_off_an_end_only_while_the_guide_allows_more(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            answer = await guided(service, regex("a*"), min_tokens=9, max_tokens=30, seed=7)
            assert len(answer.token_ids[0]) >= 9
            answer = await guided(service, regex("ab"), min_tokens=9, max_tokens=30)
            assert answer.texts[0] == "ab"
            assert answer.finished[0].finish_reason == pb.FINISH_REASON_STOP
            answer = await guided(service, regex("ab{50}"), max_tokens=2)
            assert answer.finished[0].finish_reason == pb.FINISH_REASON_LENGTH
            answer = await guided(service, regex("abcd{9}e"), strings=["cd"])
            assert answer.texts[0] == "ab"
            answer = await guided(service, regex("abcd"), stop_token_ids=[66])
            assert "abcd".startswith(answer.texts[0])
            await service.until_idle()

    run(test)


BAD = [
    ("guided.regex", regex("(a")),
    ("guided.regex", regex("")),
    ("guided.regex", regex("a" * 70_000)),
    ("guided.regex", regex("[a&&b]")),
    ("guided.regex", regex("(" * 30_000 + "a" + ")" * 30_000)),
    ("guided.json_schema", pb.GuidedParams(json_schema="{")),
    ("guided.json_schema", pb.GuidedParams(json_schema="3")),
    ("guided.json_schema", schema({"type": "nope"})),
    ("guided.json_schema", schema(False)),
    ("guided.json_schema", schema({"$ref": "#"})),
    ("guided.json_schema", schema({"$ref": "http://example.org/schema"})),
    ("guided.json_schema", pb.GuidedParams(json_schema='{"items":' * 5000 + "{}" + "}" * 5000)),
    ("guided.choice", choice()),
    ("guided.choice", choice(*["a"] * 1025)),
    ("guided.choice.texts[1]", choice("a", "")),
    ("guided.grammar", pb.GuidedParams(grammar="start: nothing")),
    ("guided.grammar", pb.GuidedParams(grammar="start: start")),
    ("guided.grammar", pb.GuidedParams(grammar="start: " + "(" * 20_000)),
]
CATASTROPHES = [
    regex("(a{1,1000}){1,1000}"),
    regex("(x+x+)+y"),
    regex("(.*a.{200}){20}"),
    regex("(?:a?){5000}a{5000}"),
    regex("|".join(f"word{i}x" for i in range(5000))),
    schema({"enum": [f"value {i}" for i in range(4000)]}),
    schema({"type": "array", "items": {"type": "string", "maxLength": 10_000}, "minItems": 10_000}),
    pb.GuidedParams(grammar='start: start start | "a" | '),
    pb.GuidedParams(grammar="start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(4000)) + 'a4000: "x"'),
]


@pytest.mark.parametrize("api_workers", [0, 1])
def test_a_bad_guide_is_refused_by_field_and_disturbs_nobody(api_workers: int, tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path, api_workers=api_workers) as service:
            await service.serving()
            running = asyncio.ensure_future(service.generate([9, 9, 9], seed=1, max_tokens=200))
            for field, guide in BAD:
                with refused(INVALID, field):
                    await guided(service, guide)
            with refused(INVALID, "stop.ignore_eos"):
                await guided(service, regex("a"), ignore_eos=True)
            assert (await guided(service, regex("ab"))).texts[0] == "ab"
            assert len((await running).token_ids[0]) == 200
            await service.until_idle()

    run(test)


def test_a_catastrophic_guide_ends_and_stalls_nobody(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            calls = [
                asyncio.ensure_future(guided(service, guide, max_tokens=3))
                for guide in CATASTROPHES
                for _ in range(4)
            ]
            while not all(call.done() for call in calls):
                await service.generate([5], max_tokens=3)  # has a time limit of its own
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(outcome, grpc.aio.AioRpcError):
                    assert outcome.code() in (INVALID, grpc.StatusCode.RESOURCE_EXHAUSTED)
                else:
                    assert len(outcome.token_ids[0]) <= 3
            await service.until_idle()

    run(test)


def test_guided_outputs_are_the_same_when_the_executor_is_lost(tmp_path: Path):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/executor", limits=ROOMY, step_ms=1.0)
        executor.start()
        async with Service(tmp_path, executor=executor) as service:
            await service.serving()
            pattern = "[a-z]{150}"

            def calls() -> list[Any]:
                return [guided(service, regex(pattern), seed=i, max_tokens=190) for i in range(4)]

            alone = [await call for call in calls()]
            num_tokens = (await service.load()).num_output_tokens
            together = [asyncio.ensure_future(call) for call in calls()]
            for target in (60, 200):
                wanted = num_tokens + target
                await service.until(lambda load, wanted=wanted: load.num_output_tokens >= wanted)
                await executor.stop()
                await service.until(lambda load: not load.executor_healthy)
                executor.start()
                await service.until(lambda load: load.executor_healthy)
            for before, after in zip(alone, await asyncio.gather(*together), strict=True):
                assert before.token_ids == after.token_ids
                assert re.fullmatch(pattern, after.texts[0])
            await service.until_idle()

    run(test)


def test_guided_outputs_are_the_same_when_preempted(tmp_path: Path):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/executor", limits=replace(LIMITS, num_blocks=65))
        executor.start()
        async with Service(tmp_path, executor=executor) as service:
            await service.serving()
            guide = regex("([a-z]{9} ){12}")
            alone = [await guided(service, guide, seed=i, max_tokens=180) for i in range(6)]
            calls = [guided(service, guide, seed=i, max_tokens=180) for i in range(6)]
            free = [service.generate([i, 7], seed=i, max_tokens=120) for i in range(2)]
            together = await asyncio.gather(*calls, *free)
            assert any(answer.completed.usage.num_preemptions for answer in together[:6])
            for before, after in zip(alone, together, strict=False):
                assert before.token_ids == after.token_ids
            await service.until_idle()

    run(test)


def test_a_client_that_leaves_while_its_grammar_is_compiled_leaves_nothing(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path, api_workers=1) as service:
            await service.serving()
            for seconds in (0.0, 0.001, 0.004, 0.02):
                calls = [
                    asyncio.ensure_future(guided(service, regex("|".join(f"w{i}{j}" for i in range(3000)))))
                    for j in range(6)
                ]
                await asyncio.sleep(seconds)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            assert (await guided(service, regex("ab"))).texts[0] == "ab"
            await service.until_idle()

    run(test)


def test_without_its_extra_a_guide_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def test() -> None:
        monkeypatch.setattr(guided_params, "_IS_AVAILABLE", False)
        async with Service(tmp_path) as service:
            await service.serving()
            with refused(UNIMPLEMENTED, "guided.regex"):
                await guided(service, regex("a"))

    run(test)


def test_a_grammar_is_compiled_once():
    guide = Guide("regex", "only once")
    assert COMPILER.cached(guide) is None
    grammar = COMPILER.compile(guide)
    assert COMPILER.cached(guide) is grammar
    assert COMPILER.compile(guide) is grammar
    with pytest.raises(GrammarError):
        COMPILER.compile(Guide("regex", "(never"))


def test_a_grammar_that_is_used_up_is_compiled_anew_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Each state of the lexer counts for all that share the grammar, and a random text makes many of this one.
    monkeypatch.setattr(grammars, "_MAX_LEXER_STATES", 800)
    guide = schema({"type": "string", "pattern": "^(?:.*[A-Z]){2,6}.{8,64}$"})

    async def many(service: Service) -> None:
        for seed in range(50):
            await guided(service, guide, max_tokens=60, temperature=100.0, seed=seed)

    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            with pytest.raises(grpc.aio.AioRpcError, match="too many states"):
                await many(service)
            assert len((await guided(service, guide, max_tokens=3)).token_ids[0]) <= 3
            await service.until_idle()

    run(test)
