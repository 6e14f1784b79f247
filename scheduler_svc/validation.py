"""Checks each field of a GenerateRequest and resolves its defaults. Errors name the field by its path."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nanoserve.v1 import inference_pb2 as pb
from scheduler_svc.core.request import Int32Array, Sampling
from scheduler_svc.errors import InvalidRequest
from scheduler_svc.output import OutputRules
from scheduler_svc.stop_strings import StopPattern

MAX_ALTERNATIVES = 20
_MAX_REQUEST_ID_CHARACTERS = 256
# Each block of a cached prefix keeps the salt that it was computed with.
_MAX_CACHE_SALT_CHARACTERS = 256
_MAX_OUTPUTS = 128
_MAX_LOGIT_BIASES = 1024
_MAX_STOP_STRINGS = 16
_MAX_STOP_STRING_BYTES = 1024
_MAX_STOP_TOKENS = 64


@dataclass(frozen=True, slots=True)
class StopRules:
    """When outputs stop; `max_tokens` None is as many as fit."""

    max_tokens: int | None
    min_tokens: int
    end_token_ids: tuple[int, ...]
    output_rules: OutputRules


def check_names(request: pb.GenerateRequest) -> None:
    """Checks what is neither prompt nor parameter."""
    if len(request.request_id) > _MAX_REQUEST_ID_CHARACTERS:
        raise InvalidRequest("request_id", f"must have at most {_MAX_REQUEST_ID_CHARACTERS} characters")
    if len(request.cache_salt) > _MAX_CACHE_SALT_CHARACTERS:
        raise InvalidRequest("cache_salt", f"must have at most {_MAX_CACHE_SALT_CHARACTERS} characters")


def check_token_ids(path: str, token_ids: Sequence[int], vocab_size: int) -> Int32Array:
    """Each id, which is an int32, is in [0, vocab_size); returns them as an array."""
    # A repeated field gives its slice as a list, faster than item by item.
    ids = np.array(token_ids[:], np.int32)
    wrong = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if len(wrong):
        index = int(wrong[0])
        raise InvalidRequest(f"{path}[{index}]", f"is {ids[index]}, must be in [0, {vocab_size})")
    return ids


def resolve_sampling(
    request: pb.GenerateRequest, defaults: Sampling, vocab_size: int
) -> tuple[Sampling, int]:
    """How to choose tokens, and how many outputs to make."""
    given = request.sampling

    def real(name: str, low: float, high: float, *, open_low: bool = False) -> float:
        value: float = getattr(given, name) if given.HasField(name) else getattr(defaults, name)
        _check_range(f"sampling.{name}", value, low, high, open_low=open_low)
        return value

    top_k = given.top_k if given.HasField("top_k") else defaults.top_k
    if top_k < 0:
        raise InvalidRequest("sampling.top_k", f"is {top_k}, must be at least 0")
    num_outputs = given.n if given.HasField("n") else 1
    if not 1 <= num_outputs <= _MAX_OUTPUTS:
        raise InvalidRequest("sampling.n", f"is {num_outputs}, must be in [1, {_MAX_OUTPUTS}]")
    sampling = Sampling(
        temperature=real("temperature", 0, 100),
        top_k=top_k,
        top_p=real("top_p", 0, 1, open_low=True),
        min_p=real("min_p", 0, 1),
        repetition_penalty=real("repetition_penalty", 0, 10, open_low=True),
        frequency_penalty=real("frequency_penalty", -2, 2),
        presence_penalty=real("presence_penalty", -2, 2),
        logit_bias=_logit_bias(given, vocab_size),
        logprobs=_alternatives(request.output, "logprobs", vocab_size),
        prompt_logprobs=_alternatives(request.output, "prompt_logprobs", vocab_size),
    )
    return sampling, num_outputs


def resolve_stops(stop: pb.StopParams, eos_token_ids: tuple[int, ...], vocab_size: int) -> StopRules:
    """When outputs stop."""
    max_tokens = stop.max_tokens if stop.HasField("max_tokens") else None
    if max_tokens is not None and max_tokens < 1:
        raise InvalidRequest("stop.max_tokens", f"is {max_tokens}, must be at least 1")
    if stop.min_tokens < 0 or (max_tokens is not None and stop.min_tokens > max_tokens):
        limit = "max_tokens" if max_tokens is None else max_tokens
        raise InvalidRequest("stop.min_tokens", f"is {stop.min_tokens}, must be in [0, {limit}]")
    if len(stop.token_ids) > _MAX_STOP_TOKENS:
        raise InvalidRequest("stop.token_ids", f"must be at most {_MAX_STOP_TOKENS}")
    check_token_ids("stop.token_ids", stop.token_ids, vocab_size)
    eos = () if stop.ignore_eos else tuple(token_id for token_id in eos_token_ids if token_id < vocab_size)
    rules = OutputRules(_patterns(stop), stop.include_stop_in_output, stop.min_tokens)
    return StopRules(max_tokens, stop.min_tokens, tuple(dict.fromkeys((*eos, *stop.token_ids))), rules)


def resolve_max_tokens(stops: StopRules, num_prompt_tokens: int, max_model_len: int) -> int:
    """Most output tokens behind a prompt of so many."""
    room = max_model_len - num_prompt_tokens
    if not num_prompt_tokens:
        raise InvalidRequest("prompt", "must come to at least one token")
    if room < 1:
        raise InvalidRequest(
            "prompt", f"has {num_prompt_tokens} tokens, must have {max_model_len - 1} at most"
        )
    max_tokens = room if stops.max_tokens is None else stops.max_tokens
    if max_tokens > room:
        rule = f"must be at most {room} behind a prompt of {num_prompt_tokens} tokens"
        raise InvalidRequest("stop.max_tokens", f"is {max_tokens}, {rule}")
    if stops.min_tokens > max_tokens:
        raise InvalidRequest("stop.min_tokens", f"is {stops.min_tokens}, must be in [0, {max_tokens}]")
    return max_tokens


def _patterns(stop: pb.StopParams) -> tuple[StopPattern, ...]:
    if len(stop.strings) > _MAX_STOP_STRINGS:
        raise InvalidRequest("stop.strings", f"must be at most {_MAX_STOP_STRINGS}")
    for index, text in enumerate(stop.strings):
        if not 1 <= len(text.encode()) <= _MAX_STOP_STRING_BYTES:
            raise InvalidRequest(f"stop.strings[{index}]", f"must have 1 to {_MAX_STOP_STRING_BYTES} bytes")
    return tuple(StopPattern(text) for text in dict.fromkeys(stop.strings))


def _logit_bias(given: pb.SamplingParams, vocab_size: int) -> tuple[tuple[int, float], ...]:
    if len(given.logit_bias) > _MAX_LOGIT_BIASES:
        raise InvalidRequest("sampling.logit_bias", f"must have at most {_MAX_LOGIT_BIASES} entries")
    biases = sorted(given.logit_bias.items())
    for token_id, bias in biases:
        path = f"sampling.logit_bias[{token_id}]"
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(path, f"the token id must be in [0, {vocab_size})")
        _check_range(path, bias, -100, 100)
    return tuple(biases)


def _alternatives(output: pb.OutputParams, name: str, vocab_size: int) -> int | None:
    if not output.HasField(name):
        return None
    count: int = getattr(output, name)
    limit = min(MAX_ALTERNATIVES, vocab_size)
    if not 0 <= count <= limit:
        raise InvalidRequest(f"output.{name}", f"is {count}, must be in [0, {limit}]")
    return count


def _check_range(path: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    if not math.isfinite(value) or not low <= value <= high or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise InvalidRequest(path, f"is {value:g}, must be in {bracket}{low:g}, {high:g}]")
