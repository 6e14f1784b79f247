"""What a caller may ask for beside the prompt. Ranges and defaults are those of protos/nanoserve/v1/inference.proto."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from nanoserve_client.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; `role` is "system", "user", "assistant" or what else the template takes."""

    role: str
    content: str


Messages = Sequence[Message | Mapping[str, str]]
Prompt = str | Sequence[int] | Messages
"""Text continued as it stands, token ids, or the messages of a chat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guided:
    """What the output must look like: exactly one of these is given."""

    json_schema: str | Mapping[str, Any] | None = None
    """JSON Schema, as JSON text or as the object itself."""
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in self.__slots__ if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidRequest(
                f"guided: give one of json_schema, regex, choice and grammar, not {given or 'none'}"
            )

    @property
    def schema_text(self) -> str:
        """json_schema as JSON text."""
        return self.json_schema if isinstance(self.json_schema, str) else json.dumps(self.json_schema)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """Everything but the prompt. None leaves the choice to the server: see `model_info().default_sampling`."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    n: int | None = None
    logit_bias: Mapping[int, float] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    include_stop_in_output: bool | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    logprobs: int | None = None
    """How many likeliest alternatives to report with each output token; 0 reports the token's own."""
    prompt_logprobs: int | None = None
    guided: Guided | None = None
    priority: int = 0
    cache_salt: str = ""
    request_id: str = ""
    model: str = ""
    trace_headers: Mapping[str, str] | None = None
    """Headers that name the caller's span, such as `opentelemetry.propagate.inject` makes; see docs/tracing.md."""
    template_options: Mapping[str, Any] | None = None
    """Variables for the chat template; chat prompts only."""
    add_generation_prompt: bool | None = None
    """Whether to open an assistant message; chat prompts only."""


class GenerateParams(TypedDict, total=False):
    """The fields of GenerateOptions as keyword arguments."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    seed: int | None
    n: int | None
    logit_bias: Mapping[int, float] | None
    max_tokens: int | None
    min_tokens: int | None
    ignore_eos: bool | None
    include_stop_in_output: bool | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    logprobs: int | None
    prompt_logprobs: int | None
    guided: Guided | None
    priority: int
    cache_salt: str
    request_id: str
    model: str
    trace_headers: Mapping[str, str] | None
    template_options: Mapping[str, Any] | None
    add_generation_prompt: bool | None


def merge_options(options: GenerateOptions | None, params: GenerateParams) -> GenerateOptions:
    """`options` with `params` on top; InvalidRequest names a parameter that does not exist."""
    unknown = set(params) - set(GenerateParams.__annotations__)
    if unknown:
        raise InvalidRequest(f"{min(unknown)}: no such parameter")
    if options is not None and not isinstance(options, GenerateOptions):
        raise InvalidRequest(f"options: GenerateOptions, not {type(options).__name__}")
    return replace(options or GenerateOptions(), **params)
