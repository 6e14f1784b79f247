"""What the library returns. Field meanings and units are those of protos/nanoserve/v1/{inference,admin}.proto."""

from dataclasses import dataclass
from enum import StrEnum


class FinishReason(StrEnum):
    """Why an output ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class TokenAlternative:
    """A token that might have been, and the natural logarithm of its probability."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural logarithm of a token's probability by the raw logits; `rank` counts from 1."""

    token_id: int
    logprob: float
    rank: int
    alternatives: tuple[TokenAlternative, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request, all outputs together."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_preemptions: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a request's time went, in seconds from its arrival at the server."""

    queue_seconds: float
    first_token_seconds: float
    """0 where there was no token."""
    total_seconds: float


@dataclass(frozen=True, slots=True)
class Started:
    """Event: the request runs. First of a stream."""

    request_id: str
    num_prompt_tokens: int
    num_cached_tokens: int
    seed: int
    prompt_digest: bytes


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Event: log-probabilities of the prompt's tokens from `first_position` (at least 1) on."""

    first_position: int
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """Event: more of output `index`. Text and ids of all deltas so far cover the same tokens."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    """One for each of token_ids where asked; empty otherwise."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Event: output `index` ended. `stop` is the stop string or the stop token id, None unless the reason is STOP."""

    index: int
    finish_reason: FinishReason
    stop: str | int | None


@dataclass(frozen=True, slots=True)
class Completed:
    """Event: all outputs ended. Last of a stream."""

    usage: Usage
    timing: Timing


Event = Started | PromptLogprobs | Delta | Finished | Completed


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One of the n outputs of a request."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop: str | int | None
    """The stop string found or the stop token sampled; None unless finish_reason is STOP."""
    logprobs: tuple[TokenLogprob, ...] | None
    """One for each of token_ids; None where not asked."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request: its outputs by index, at least one."""

    request_id: str
    outputs: tuple[CompletionOutput, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    seed: int
    prompt_digest: bytes
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None
    """One for each prompt token, None for the first, which nothing precedes; None as a whole where not asked."""
    usage: Usage
    timing: Timing

    @property
    def text(self) -> str:
        """Text of the first output."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Token ids of the first output."""
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first output ended."""
        return self.outputs[0].finish_reason


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a request gets where it sets nothing."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    n: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is served."""

    model: str
    architecture: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    default_sampling: SamplingDefaults
    model_fingerprint: str
    weights_fingerprint: str
    has_chat_template: bool
    server_version: str


@dataclass(frozen=True, slots=True)
class StepStats:
    """Where the time of recent steps went: means in milliseconds."""

    device_ms: float
    host_ms: float
    queue_ms: float
    idle_ms: float
    round_trip_ms: float
    schedule_ms: float


@dataclass(frozen=True, slots=True)
class Load:
    """The load of one moment. num_total_blocks = num_free_blocks + num_cached_blocks + num_held_blocks."""

    num_running_requests: int
    num_waiting_requests: int
    num_total_blocks: int
    num_free_blocks: int
    num_cached_blocks: int
    num_held_blocks: int
    num_shared_blocks: int
    """Of those held, by several sequences."""
    num_preemptions: int
    num_prefix_query_tokens: int
    num_prefix_hit_tokens: int
    num_steps: int
    num_output_tokens: int
    step_stats: StepStats | None
    """None before the first step."""
    executor_epoch: int
    """0 while there is no session."""
    executor_healthy: bool
    draining: bool
    num_plans_in_flight: int
