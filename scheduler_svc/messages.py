"""All that the API and the engine say to each other: plain data, so that either end can live in another process.

Commands go in, events come out, each through one ordered queue. An API names a request by a `key` of its own choosing,
unique among its live requests; the engine answers with sequence ids, by which the columns of a TokenBatch go. Times are
seconds of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from nanoserve.profiles import Profile
from scheduler_svc.core.request import Int32Array, Int64Array, Request

Float32Array = NDArray[np.float32]


class Code(IntEnum):
    """Kinds of failure; the numbers are those of google.rpc.Code."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something is refused or ended, as the client is told."""

    code: Code
    description: str
    """One line for people; of an INTERNAL problem it holds the id that is in the log."""
    field: str = ""
    """Path of the request's field at fault, such as "stop.max_tokens"; empty where none is."""
    retry_seconds: float = 0.0
    """When trying again makes sense; 0 says nothing."""


# Commands


@dataclass(frozen=True, slots=True)
class Submit:
    """Queues a request. Answered by Accepted or Refused, and once accepted, in the end, by Ended or Failed."""

    key: int
    request: Request
    tenant: str = ""
    """Whose request it is; empty where API keys are not asked for."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Ends outputs of a request: those with these indices, or all for None. What has ended already is left alone.

    The request is over when its last output is, and answered by Ended.
    """

    key: int
    indices: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class LoadQuery:
    """Asks for the load. Answered by LoadReply."""

    key: int


@dataclass(frozen=True, slots=True)
class ResetPrefixCache:
    """Forgets cached prefixes. Answered by PrefixCacheReset."""

    key: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Refuses requests from now on; ends those left after `timeout_seconds` (None: never). Answered by Drained."""

    key: int
    timeout_seconds: float | None


@dataclass(frozen=True, slots=True)
class StartProfile:
    """Begins a profile of `num_steps` forward passes (0: as many as may be). Answered by ProfileReply."""

    key: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class StopProfile:
    """Ends the profile. Answered by ProfileReply."""

    key: int


@dataclass(frozen=True, slots=True)
class SwitchExecutor:
    """Goes on with the executor at an address, between two steps. Answered by ExecutorSwitched."""

    key: int
    executor: str


Command = Submit | Abort | LoadQuery | ResetPrefixCache | Drain | StartProfile | StopProfile | SwitchExecutor


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What one tenant may do at once and over time."""

    tenant: str
    max_concurrency: int | None = None
    """Most requests that wait or run; None: no limit."""
    tokens_per_second: float | None = None
    """Prompt and output tokens together; None: no limit."""


@dataclass(frozen=True, slots=True)
class SetLimits:
    """From now on tenants have these limits, and others none. Of the engine's own process, not of an API: no answer."""

    limits: tuple[TenantLimits, ...]


# Events


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the engine can do from now on. Sent first of all, and at each change."""

    serving: bool
    """Whether requests are accepted. The rest is 0 or empty before the first session with an executor."""
    max_model_len: int = 0
    vocab_size: int = 0
    weights_fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that lets in whoever shows it, known by its hash alone."""

    sha256: bytes
    tenant: str
    shares_prefix_cache: bool = False
    """Whether the tenant's prefixes are in the cache that all such tenants share, and not in one of its own."""
    is_admin: bool = False
    """Whether AdminService may be called."""


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The keys that are good from now on, where keys are asked for. Until the first of these none is."""

    keys: tuple[ApiKey, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request waits; `sequence_ids` are those of its outputs, in the order of their indices."""

    key: int
    sequence_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """The request was not accepted."""

    key: int
    problem: Problem


@dataclass(frozen=True, slots=True)
class Started:
    """The first tokens of the first output that is not over are planned."""

    key: int
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of a sampled token, its rank from 1, and those of the likeliest tokens."""

    logprob: float
    rank: int
    alternative_ids: Int32Array
    alternative_logprobs: Float32Array


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of consecutive prompt positions; alternatives are [num_positions, num_alternatives]."""

    first_position: int
    logprobs: Float32Array
    ranks: Int32Array
    alternative_ids: Int32Array
    alternative_logprobs: Float32Array

    def without(self, num_positions: int) -> "PromptLogprobs":
        """The slice without its first `num_positions`."""
        return PromptLogprobs(
            self.first_position + num_positions,
            self.logprobs[num_positions:],
            self.ranks[num_positions:],
            self.alternative_ids[num_positions:],
            self.alternative_logprobs[num_positions:],
        )


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What one result made known: columns of one length, a sequence at most once."""

    sequence_ids: Int64Array
    token_ids: Int32Array
    finishes: NDArray[np.int8]
    """A core `Finish` for each. FAILED and NO_ROOM come with the Failed of their request."""
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    """By index into the columns, for the sequences that asked."""
    prompt_logprobs: tuple[tuple[int, PromptLogprobs], ...] = ()
    """With the sequence id of each."""


@dataclass(frozen=True, slots=True)
class Ended:
    """All outputs of the request are over. Those that neither finished nor were aborted by command are given up."""

    key: int
    num_preemptions: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The request is over, with all its outputs, because of a problem."""

    key: int
    problem: Problem


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Everything that one turn of the engine has to say about requests, in the order of the fields."""

    time: float
    started: tuple[Started, ...] = ()
    tokens: TokenBatch | None = None
    ended: tuple[Ended | Failed, ...] = ()
    step_id: int = 0
    """Of the step that plans the starts or has brought the tokens; 0 where it is of none."""


@dataclass(frozen=True, slots=True)
class StepMeans:
    """Means over recent steps, in milliseconds; see StepStats in admin.proto."""

    device_ms: float
    host_ms: float
    queue_ms: float
    idle_ms: float
    round_trip_ms: float
    schedule_ms: float


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Sums over all steps, in seconds; see StepTotals in admin.proto."""

    device_seconds: float
    host_seconds: float
    queue_seconds: float
    idle_seconds: float
    round_trip_seconds: float
    schedule_seconds: float


@dataclass(frozen=True, slots=True)
class LoadReply:
    """The load of this moment; see Load in admin.proto."""

    key: int
    num_running_requests: int = 0
    num_waiting_requests: int = 0
    num_total_blocks: int = 0
    num_free_blocks: int = 0
    num_cached_blocks: int = 0
    num_held_blocks: int = 0
    num_shared_blocks: int = 0
    num_unused_slots: int = 0
    num_preemptions: int = 0
    num_prefix_query_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_steps: int = 0
    num_output_tokens: int = 0
    num_late_tokens: int = 0
    num_padded_tokens: int = 0
    num_plans_in_flight: int = 0
    step_means: StepMeans | None = None
    step_totals: StepTotals | None = None
    executor_epoch: int = 0
    executor_healthy: bool = False
    draining: bool = False


@dataclass(frozen=True, slots=True)
class PrefixCacheReset:
    """How many blocks no longer count as cached."""

    key: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Drained:
    """No request is left; `num_aborted_requests` had to be ended."""

    key: int
    num_aborted_requests: int


@dataclass(frozen=True, slots=True)
class ProfileReply:
    """A profile has begun or ended, or could not because of a problem."""

    key: int
    problem: Problem | None = None
    profile: Profile | None = None
    """What was recorded, where one has ended."""


@dataclass(frozen=True, slots=True)
class ExecutorSwitched:
    """The requests are on the other executor, whose session has this epoch; or a problem keeps them where they are."""

    key: int
    epoch: int = 0
    problem: Problem | None = None


Event = (
    EngineState
    | ApiKeys
    | Accepted
    | Refused
    | StepBatch
    | LoadReply
    | PrefixCacheReset
    | Drained
    | ProfileReply
    | ExecutorSwitched
)
