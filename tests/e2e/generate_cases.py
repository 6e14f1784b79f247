"""What each field of a GenerateRequest does that a client can see; run against the shipped model."""

import re
import time
from collections.abc import Callable
from typing import Any

import grpc
from contract import Api, digest, refused

from nanoserve.v1 import admin_pb2
from nanoserve_client.results import Completion, FinishReason
from nanoserve_client.supervisor import LocalServer

Case = Callable[[Api], None]
MAX_NUM_SEQS = 4
"""Rows of the server that these run against."""
PROMPT = "1, 2, 3,"
LONG_PROMPT = "one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve"
HOT = 5.0
"""A temperature at which even this model, sure of how one counts, says something else."""
VIRTUAL = ["--virtual", "--virtual-step-ms=5", "--virtual-vocab-size=768"]
_TOKENS = 16
_QUESTION = {"messages": [{"role": "user", "content": "What is 123 + 45?"}]}


def continued(api: Api, sampling: dict[str, Any] | None = None, **fields: Any) -> Completion:
    """The prompt continued by so many tokens, greedily unless `sampling` says otherwise."""
    stop = {"max_tokens": _TOKENS, "ignore_eos": True} | fields.pop("stop", {})
    return api.generate(text=PROMPT, sampling=sampling or {}, stop=stop, **fields)


def request_id(api: Api) -> None:
    assert continued(api, request_id="mine").request_id == "mine"


def model(api: Api) -> None:
    continued(api, model=api.ask("GetModel").model)
    with refused("model", grpc.StatusCode.NOT_FOUND):
        continued(api, model="another")


def text(api: Api) -> None:
    assert continued(api).prompt_digest == digest(api.tokenize(text=PROMPT))


def token_ids(api: Api) -> None:
    ids = api.tokenize(text=LONG_PROMPT)
    assert api.generate(token_ids={"ids": ids}, stop={"max_tokens": 1}).prompt_digest == digest(ids)


def temperature(api: Api) -> None:
    assert continued(api, {"temperature": HOT, "seed": 1}).token_ids != continued(api).token_ids
    assert continued(api, {"temperature": 0, "seed": 1}).token_ids == continued(api).token_ids


def keeps_only_the_best(**narrowest: float) -> Case:
    """At its narrowest a filter makes a hot draw greedy."""

    def case(api: Api) -> None:
        hot = {"temperature": HOT, "seed": 1}
        assert continued(api, hot | narrowest).token_ids == continued(api).token_ids
        assert continued(api, hot).token_ids != continued(api).token_ids

    return case


def repeats_less(**penalty: float) -> Case:
    """A penalty brings more different tokens where a few are all but equally likely."""

    def case(api: Api) -> None:
        few = {"temperature": 100, "top_k": 4, "seed": 1}
        assert len(set(continued(api, few | penalty).token_ids)) > len(set(continued(api, few).token_ids))

    return case


def seed(api: Api) -> None:
    one, same, other = (continued(api, {"temperature": HOT, "seed": value}) for value in (7, 7, 8))
    assert (one.seed, other.seed) == (7, 8)
    assert one.token_ids == same.token_ids != other.token_ids


def n(api: Api) -> None:
    outputs = continued(api, {"n": 3, "temperature": HOT, "seed": 7}).outputs
    assert outputs[0].token_ids == continued(api, {"temperature": HOT, "seed": 7}).token_ids
    assert len({output.token_ids for output in outputs}) == 3


def logit_bias(api: Api) -> None:
    assert continued(api, {"logit_bias": {77: 100}}).token_ids == (77,) * _TOKENS


def max_tokens(api: Api) -> None:
    answer = continued(api, stop={"max_tokens": 5})
    assert (len(answer.token_ids), answer.outputs[0].finish_reason) == (5, FinishReason.LENGTH)


def min_tokens(api: Api) -> None:
    first = continued(api).token_ids[0]
    assert len(continued(api, stop={"token_ids": [first]}).token_ids) == 1
    assert len(continued(api, stop={"token_ids": [first], "min_tokens": 5}).token_ids) >= 5


def ignore_eos(api: Api) -> None:
    ended = api.generate(chat=_QUESTION, stop={"max_tokens": 30})
    assert ended.outputs[0].stop == ended.token_ids[-1] in api.ask("GetModel").eos_token_ids
    assert len(api.generate(chat=_QUESTION, stop={"max_tokens": 30, "ignore_eos": True}).token_ids) == 30


def strings(api: Api) -> None:
    whole = continued(api)
    answer = continued(api, stop={"strings": ["never", whole.text[5:9]]})
    assert answer.outputs[0].stop == whole.text[5:9]
    assert answer.text == whole.text[: whole.text.index(whole.text[5:9])]


def stop_token_ids(api: Api) -> None:
    whole = continued(api)
    answer = continued(api, stop={"token_ids": [0, whole.token_ids[5]]})
    assert answer.outputs[0].stop == whole.token_ids[5]
    assert answer.token_ids == whole.token_ids[: whole.token_ids.index(whole.token_ids[5]) + 1]


def include_stop_in_output(api: Api) -> None:
    stop = {"strings": [continued(api).text[5:9]]}
    without, included = (
        continued(api, stop=stop),
        continued(api, stop=stop | {"include_stop_in_output": True}),
    )
    assert included.text == without.text + stop["strings"][0]


def logprobs(api: Api) -> None:
    entries = continued(api, output={"logprobs": 3}).outputs[0].logprobs
    assert entries is not None
    assert [len(entry.alternatives) for entry in entries] == [3] * _TOKENS
    assert all(entry.alternatives[0].token_id == entry.token_id for entry in entries), (
        "greedy is the likeliest"
    )


def prompt_logprobs(api: Api) -> None:
    answer = continued(api, output={"prompt_logprobs": 2})
    assert answer.prompt_logprobs is not None
    entries = [entry for entry in answer.prompt_logprobs if entry is not None]
    assert [entry.token_id for entry in entries] == api.tokenize(text=PROMPT)[1:]
    assert all(len(entry.alternatives) == 2 for entry in entries)


def looks_like(pattern: str, **guide: Any) -> Case:
    """A hot draw under this guide is such a text, as a whole."""

    def case(api: Api) -> None:
        for number in range(3):
            answer = api.generate(text="x", guided=guide, sampling={"temperature": HOT, "seed": number})
            assert re.fullmatch(pattern, answer.text), answer.text

    return case


def priority(_: Api) -> None:
    """Each of the three takes every row: the last to come, being higher, runs before the one that came before it.

    On a server of its own, whose steps take as long on any machine.
    """
    with LocalServer(executor_flags=[*VIRTUAL, f"--max-num-seqs={MAX_NUM_SEQS}"]) as server:
        api, streams = Api(server.address), []
        for level, is_seen in ((0, is_running), (-1, is_waiting), (5, all_wait)):
            stop = {"max_tokens": 100 if level == 0 else 20, "ignore_eos": True}
            sampling = {"n": MAX_NUM_SEQS}
            streams.append(api.stream("Generate", text="x", priority=level, sampling=sampling, stop=stop))
            until(api, is_seen)
        _, low, high = (api.finish(stream).timing.queue_seconds for stream in streams)
        api.close()
    assert low > high


def is_running(load: admin_pb2.Load) -> bool:
    return load.num_running_requests == MAX_NUM_SEQS


def is_waiting(load: admin_pb2.Load) -> bool:
    return load.num_waiting_requests == MAX_NUM_SEQS


def all_wait(load: admin_pb2.Load) -> bool:
    return load.num_waiting_requests == 2 * MAX_NUM_SEQS


def until(api: Api, holds: Callable[[admin_pb2.Load], bool]) -> None:
    """Waits until the load is such."""
    for _ in range(10_000):
        if holds(api.load()):
            return
        time.sleep(0.001)
    raise AssertionError(holds)


def cache_salt(api: Api) -> None:
    def cached(salt: str) -> int:
        return api.generate(text=LONG_PROMPT, cache_salt=salt, stop={"max_tokens": 1}).num_cached_tokens

    cached("one")
    assert cached("one") > 0
    assert cached("two") == 0
