"""The requests that runs send: every way of sampling and stopping, from a seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from nanoserve_client.options import GenerateOptions, Guided, Message, Prompt
from nanoserve_client.results import CompletionOutput

_WORDS = "the plan scheduler block cache token row step count reverse letters of a red green river seven nine".split()
_SHARED_PREFIX = "You keep a ledger of blocks and rows, and answer in one short line. " * 3
_GUIDES = (
    Guided(choice=["a red block", "seven green rows", "nine rivers of tokens, in order"]),
    Guided(regex="(row|block) [0-9]{3,12}"),
    Guided(json_schema={"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A request with a seed of its own, so that it can be asked again."""

    number: int
    kind: str
    prompt: Prompt
    options: GenerateOptions
    stops_within: bool = False
    """Whether it is to get a stop string or token that its own undisturbed output has."""


def make_cases(seed: int, count: int, max_tokens: tuple[int, int]) -> list[Case]:
    """`count` cases of all kinds in turn, with between `max_tokens` output tokens each; guided ones are among them."""
    draw = random.Random(f"cases/{seed}")
    kinds = list(_KINDS)
    return [_make(number, kinds[number % len(kinds)], draw, max_tokens) for number in range(count)]


def with_stop(case: Case, output: CompletionOutput, draw: random.Random) -> Case:
    """The case, stopped within the output that it gave without."""
    ids, text = output.token_ids, output.text
    if case.kind == "stop_token":
        return replace(case, options=replace(case.options, stop_token_ids=(ids[len(ids) * 2 // 3],)))
    begin = min(len(text) * 2 // 3, max(0, len(text) - 3))
    stop = text[begin : begin + draw.randint(1, 5)]
    include = draw.random() < 0.5
    return replace(case, options=replace(case.options, stop=(stop,), include_stop_in_output=include))


def _make(number: int, kind: str, draw: random.Random, max_tokens: tuple[int, int]) -> Case:
    text = " ".join(draw.choices(_WORDS, k=draw.randint(3, 30)))
    prefix = _SHARED_PREFIX if draw.random() < 0.4 else ""
    prompt: Prompt = prefix + text
    if kind == "chat" or draw.random() < 0.3:
        prompt = [Message("system", prefix or "Be brief."), Message("user", text)]
    elif draw.random() < 0.2:
        prompt = [draw.randrange(1, 700) for _ in range(draw.randint(1, 60))]
    common = GenerateOptions(
        seed=draw.getrandbits(64),
        temperature=draw.choice([0.0, 0.7, 1.0]),
        max_tokens=draw.randint(*max_tokens),
        ignore_eos=True,
        logprobs=0,
        cache_salt=draw.choice(["", "", "salt"]),
        priority=draw.choice([0, 0, 0, 1]),
    )
    return Case(
        number, kind, prompt, _KINDS[kind](common, draw), stops_within=kind in ("stop_string", "stop_token")
    )


def _greedy(common: GenerateOptions, draw: random.Random) -> GenerateOptions:
    return replace(common, temperature=0.0)


def _seeded(common: GenerateOptions, draw: random.Random) -> GenerateOptions:
    return replace(common, temperature=draw.choice([0.8, 1.2]))


def _filtered(common: GenerateOptions, draw: random.Random) -> GenerateOptions:
    return replace(common, temperature=1.0, top_p=draw.choice([None, 0.9]), top_k=draw.choice([20, 50]))


def _several(common: GenerateOptions, draw: random.Random) -> GenerateOptions:
    tokens = max(4, (common.max_tokens or 0) // 2)
    return replace(common, n=draw.randint(2, 4), temperature=1.0, max_tokens=tokens)


def _logprobs(common: GenerateOptions, draw: random.Random) -> GenerateOptions:
    return replace(common, logprobs=draw.randint(1, 20), prompt_logprobs=draw.choice([None, 0, 3]))


def _penalties(common: GenerateOptions, draw: random.Random) -> GenerateOptions:
    return replace(common, repetition_penalty=1.3, presence_penalty=0.5)


def _stops(common: GenerateOptions, draw: random.Random) -> GenerateOptions:
    return common


def _ends(common: GenerateOptions, draw: random.Random) -> GenerateOptions:
    return replace(common, ignore_eos=False, min_tokens=draw.choice([None, 8]))


def _guided(common: GenerateOptions, draw: random.Random) -> GenerateOptions:
    return replace(common, ignore_eos=False, guided=draw.choice(_GUIDES))


_KINDS: dict[str, Callable[[GenerateOptions, random.Random], GenerateOptions]] = {
    "greedy": _greedy,
    "seeded": _seeded,
    "filtered": _filtered,
    "several": _several,
    "logprobs": _logprobs,
    "stop_string": _stops,
    "chat": _ends,
    "penalties": _penalties,
    "guided": _guided,
    "stop_token": _stops,
}
