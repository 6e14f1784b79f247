"""The requests of runs: of every kind, the same from the same seed, and each can be asked again."""

import random

from nanoserve_client import requests
from nanoserve_client.chaos.cases import make_cases, with_stop
from nanoserve_client.chaos.executors import EXECUTORS
from nanoserve_client.results import CompletionOutput, FinishReason


def test_cases_follow_from_the_seed_and_fit_into_the_contract():
    for executor in EXECUTORS.values():
        cases = make_cases(7, executor.num_cases, executor.max_tokens)
        assert cases == make_cases(7, executor.num_cases, executor.max_tokens)
        assert cases != make_cases(8, executor.num_cases, executor.max_tokens)
        assert set(executor.without) < {case.kind for case in cases}
        for case in cases:
            assert case.options.seed is not None, "its tokens are to be the same again"
            assert requests.generate_request(case.prompt, case.options).WhichOneof("prompt")


def test_there_are_prompts_of_each_sort_and_every_way_of_ending():
    options = [case.options for case in make_cases(0, 90, (48, 128))]
    prompts = [requests.generate_request(c.prompt, c.options) for c in make_cases(0, 90, (48, 128))]
    assert {prompt.WhichOneof("prompt") for prompt in prompts} == {"text", "token_ids", "chat"}
    assert {prompt.guided.WhichOneof("guide") for prompt in prompts} == {
        None,
        "choice",
        "regex",
        "json_schema",
    }
    assert any((o.n or 1) > 1 for o in options)
    assert any(o.prompt_logprobs is not None for o in options)
    assert any(o.ignore_eos is False for o in options)
    assert {o.cache_salt for o in options} == {"", "salt"}
    assert {o.priority for o in options} == {0, 1}


def test_a_stop_is_taken_from_within_the_output_that_it_is_to_end():
    cases = {case.kind: case for case in make_cases(0, 18, (48, 128)) if case.stops_within}
    output = CompletionOutput(0, "abcdefghij", tuple(range(10)), FinishReason.LENGTH, None, None)
    string = with_stop(cases["stop_string"], output, random.Random(0)).options
    token = with_stop(cases["stop_token"], output, random.Random(0)).options
    assert string.stop
    assert string.stop[0] in output.text
    assert token.stop_token_ids == (6,)
