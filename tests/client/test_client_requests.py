"""Python arguments to request messages."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from nanoserve.v1 import inference_pb2 as pb
from nanoserve_client import GenerateOptions, Guided, InvalidRequest, Message
from nanoserve_client.options import GenerateParams, merge_options
from nanoserve_client.requests import (
    check_messages,
    detokenize_request,
    generate_request,
    get_model_request,
    tokenize_request,
)

CHAT: list[Message | dict[str, str]] = [{"role": "system", "content": "Be brief."}, Message("user", "Hi")]
CHAT_PROTO = pb.Chat(
    messages=[pb.ChatMessage(role="system", content="Be brief."), pb.ChatMessage(role="user", content="Hi")]
)

# For each option a value, and what the request has then beside the prompt.
EXPECTED: dict[str, tuple[Any, dict[str, Any]]] = {
    "temperature": (0.5, {"sampling": pb.SamplingParams(temperature=0.5)}),
    "top_p": (0.25, {"sampling": pb.SamplingParams(top_p=0.25)}),
    "top_k": (0, {"sampling": pb.SamplingParams(top_k=0)}),
    "min_p": (0.125, {"sampling": pb.SamplingParams(min_p=0.125)}),
    "repetition_penalty": (1.5, {"sampling": pb.SamplingParams(repetition_penalty=1.5)}),
    "frequency_penalty": (-2, {"sampling": pb.SamplingParams(frequency_penalty=-2)}),
    "presence_penalty": (2, {"sampling": pb.SamplingParams(presence_penalty=2)}),
    "seed": (2**64 - 1, {"sampling": pb.SamplingParams(seed=2**64 - 1)}),
    "n": (3, {"sampling": pb.SamplingParams(n=3)}),
    "logit_bias": ({5: -1.0}, {"sampling": pb.SamplingParams(logit_bias={5: -1.0})}),
    "max_tokens": (0, {"stop": pb.StopParams(max_tokens=0)}),
    "min_tokens": (4, {"stop": pb.StopParams(min_tokens=4)}),
    "ignore_eos": (False, {"stop": pb.StopParams(ignore_eos=False)}),
    "include_stop_in_output": (True, {"stop": pb.StopParams(include_stop_in_output=True)}),
    "stop": ("END", {"stop": pb.StopParams(strings=["END"])}),
    "stop_token_ids": ([7, 8], {"stop": pb.StopParams(token_ids=[7, 8])}),
    "logprobs": (0, {"output": pb.OutputParams(logprobs=0)}),
    "prompt_logprobs": (20, {"output": pb.OutputParams(prompt_logprobs=20)}),
    "guided": (Guided(regex="a*"), {"guided": pb.GuidedParams(regex="a*")}),
    "priority": (-3, {"priority": -3}),
    "cache_salt": ("team", {"cache_salt": "team"}),
    "request_id": ("mine", {"request_id": "mine"}),
    "model": ("other", {"model": "other"}),
}
CHAT_ONLY = {"template_options", "add_generation_prompt"}
METADATA_ONLY = {"trace_headers"}


def test_every_option_and_no_other_is_a_keyword_and_in_these_tests() -> None:
    names = {field.name for field in dataclasses.fields(GenerateOptions)}
    assert names == set(GenerateParams.__annotations__) == set(EXPECTED) | CHAT_ONLY | METADATA_ONLY


@pytest.mark.parametrize("name", EXPECTED)
def test_an_option_sets_its_own_field_and_no_other(name: str) -> None:
    value, fields = EXPECTED[name]
    options = merge_options(None, {name: value})  # type: ignore[misc]
    assert generate_request("x", options) == pb.GenerateRequest(text="x", **fields)


def test_without_options_nothing_but_the_prompt_is_sent() -> None:
    assert generate_request("x", GenerateOptions()) == pb.GenerateRequest(text="x")


def test_params_go_before_options() -> None:
    options = merge_options(GenerateOptions(seed=1, top_k=2), {"seed": 3})
    assert options == GenerateOptions(seed=3, top_k=2)


@pytest.mark.parametrize("prompt", [[1, 2, 3], (1, 2, 3), np.array([1, 2, 3], np.int32)])
def test_token_ids_may_come_in_any_sequence(prompt: Any) -> None:
    request = generate_request(prompt, GenerateOptions())
    assert request == pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2, 3]))


def test_an_empty_prompt_is_sent_for_the_server_to_judge() -> None:
    assert generate_request([], GenerateOptions()).WhichOneof("prompt") == "token_ids"
    assert generate_request("", GenerateOptions()).WhichOneof("prompt") == "text"


def test_messages_may_be_objects_or_mappings() -> None:
    assert generate_request(CHAT, GenerateOptions()) == pb.GenerateRequest(chat=CHAT_PROTO)
    assert tokenize_request(CHAT, None, None, "m") == pb.TokenizeRequest(chat=CHAT_PROTO, model="m")


def test_template_options_travel_with_the_chat() -> None:
    options = GenerateOptions(template_options={"enable_thinking": False}, add_generation_prompt=False)
    chat = generate_request(CHAT, options).chat
    assert dict(chat.template_options) == {"enable_thinking": False}
    assert chat.HasField("add_generation_prompt")
    assert not chat.add_generation_prompt


@pytest.mark.parametrize(
    ("guided", "expected"),
    [
        (Guided(json_schema='{"type": "object"}'), pb.GuidedParams(json_schema='{"type": "object"}')),
        (Guided(json_schema={"type": "object"}), pb.GuidedParams(json_schema='{"type": "object"}')),
        (Guided(choice=["a", "b"]), pb.GuidedParams(choice=pb.GuidedChoice(texts=["a", "b"]))),
        (Guided(grammar="start: x"), pb.GuidedParams(grammar="start: x")),
    ],
)
def test_each_guide_is_sent_as_its_kind(guided: Guided, expected: pb.GuidedParams) -> None:
    assert generate_request("x", GenerateOptions(guided=guided)).guided == expected


@pytest.mark.parametrize(
    ("prompt", "params", "name"),
    [
        ("x", {"temperature": "hot"}, "temperature"),
        ("x", {"seed": -1}, "seed"),
        ("x", {"max_tokens": 2**40}, "max_tokens"),
        ("x", {"logit_bias": {"a": 1.0}}, "logit_bias"),
        ("x", {"stop_token_ids": ["a"]}, "stop_token_ids"),
        ("x", {"stop": [1]}, "stop"),
        ("x", {"best_of": 2}, "best_of"),
        ("x", {"add_generation_prompt": True}, "add_generation_prompt"),
        ([1], {"template_options": {}}, "template_options"),
        ([2**31], {}, "prompt"),
        ("\ud800", {}, "text"),
        (None, {}, "prompt"),
        (5, {}, "prompt"),
        (CHAT[0], {}, "prompt"),
        ({1, 2}, {}, "prompt"),
        (b"text", {}, "prompt"),
        (iter([1, 2]), {}, "prompt"),
        (np.array(5), {}, "prompt"),
        ([None], {}, "prompt"),
        ("x", {"guided": "a*"}, "guided"),
        ("x", {"guided": Guided(json_schema={"a": object()})}, "guided.json_schema"),
        ("x", {"temperature": 10**400}, "temperature"),
        ([{"role": "user"}], {}, "messages[0]"),
        ([Message("user", "a"), {"role": "user", "content": "b", "name": "c"}], {}, "messages[1]"),
        (CHAT, {"template_options": {"f": object()}}, "template_options"),
    ],
)
def test_what_cannot_be_sent_is_named(prompt: Any, params: Any, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        generate_request(prompt, merge_options(None, params))
    assert str(caught.value).startswith(name)


@pytest.mark.parametrize("messages", [None, 5, [], "Hi", CHAT[0], ["Hi"], {1}, iter(CHAT)])
def test_a_chat_is_a_list_of_messages(messages: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^messages: "):
        check_messages(messages)


def test_arguments_of_the_other_calls_are_named_too() -> None:
    wrong: Any = 5
    for name, attempt in (
        ("model", lambda: get_model_request(wrong)),
        ("model", lambda: tokenize_request("x", None, None, wrong)),
        ("model", lambda: detokenize_request([1], False, wrong)),
        ("skip_special_tokens", lambda: detokenize_request([1], wrong.__str__(), "")),
        ("token_ids", lambda: detokenize_request(wrong, False, "")),
        ("prompt", lambda: tokenize_request(wrong, None, None, "")),
        ("options", lambda: merge_options(wrong, {})),
    ):
        with pytest.raises(InvalidRequest, match=f"^{name}: "):
            attempt()


@pytest.mark.parametrize("fields", [{}, {"regex": "a", "grammar": "b"}])
def test_a_guide_is_exactly_one(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="guided"):
        Guided(**fields)
