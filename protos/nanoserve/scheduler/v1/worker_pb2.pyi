from nanoserve.v1 import admin_pb2 as _admin_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerFrame(_message.Message):
    __slots__ = ("commands", "listening")
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    LISTENING_FIELD_NUMBER: _ClassVar[int]
    commands: _containers.RepeatedCompositeFieldContainer[Command]
    listening: bool
    def __init__(self, commands: _Optional[_Iterable[_Union[Command, _Mapping]]] = ..., listening: bool = ...) -> None: ...

class EngineFrame(_message.Message):
    __slots__ = ("events", "stopping", "ping")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    stopping: bool
    ping: bool
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., stopping: bool = ..., ping: bool = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("key", "submit", "abort", "load_query", "reset_prefix_cache", "drain", "start_profile", "stop_profile", "switch_executor")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    LOAD_QUERY_FIELD_NUMBER: _ClassVar[int]
    RESET_PREFIX_CACHE_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    START_PROFILE_FIELD_NUMBER: _ClassVar[int]
    STOP_PROFILE_FIELD_NUMBER: _ClassVar[int]
    SWITCH_EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    key: int
    submit: Submit
    abort: Abort
    load_query: LoadQuery
    reset_prefix_cache: ResetPrefixCache
    drain: Drain
    start_profile: StartProfile
    stop_profile: StopProfile
    switch_executor: SwitchExecutor
    def __init__(self, key: _Optional[int] = ..., submit: _Optional[_Union[Submit, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ..., load_query: _Optional[_Union[LoadQuery, _Mapping]] = ..., reset_prefix_cache: _Optional[_Union[ResetPrefixCache, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., start_profile: _Optional[_Union[StartProfile, _Mapping]] = ..., stop_profile: _Optional[_Union[StopProfile, _Mapping]] = ..., switch_executor: _Optional[_Union[SwitchExecutor, _Mapping]] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("request_id", "prompt_token_ids", "max_tokens", "seed", "n", "sampling", "min_tokens", "end_token_ids", "priority", "cache_salt", "guide", "tenant", "resumed")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    END_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    GUIDE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt_token_ids: bytes
    max_tokens: int
    seed: int
    n: int
    sampling: Sampling
    min_tokens: int
    end_token_ids: _containers.RepeatedScalarFieldContainer[int]
    priority: int
    cache_salt: bytes
    guide: Guide
    tenant: str
    resumed: _containers.RepeatedCompositeFieldContainer[ResumedOutput]
    def __init__(self, request_id: _Optional[str] = ..., prompt_token_ids: _Optional[bytes] = ..., max_tokens: _Optional[int] = ..., seed: _Optional[int] = ..., n: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., min_tokens: _Optional[int] = ..., end_token_ids: _Optional[_Iterable[int]] = ..., priority: _Optional[int] = ..., cache_salt: _Optional[bytes] = ..., guide: _Optional[_Union[Guide, _Mapping]] = ..., tenant: _Optional[str] = ..., resumed: _Optional[_Iterable[_Union[ResumedOutput, _Mapping]]] = ...) -> None: ...

class ResumedOutput(_message.Message):
    __slots__ = ("token_ids", "finished")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    token_ids: bytes
    finished: bool
    def __init__(self, token_ids: _Optional[bytes] = ..., finished: bool = ...) -> None: ...

class Guide(_message.Message):
    __slots__ = ("kind", "text")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    text: str
    def __init__(self, kind: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias_ids", "logit_bias", "logprobs", "prompt_logprobs")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias_ids: _containers.RepeatedScalarFieldContainer[int]
    logit_bias: _containers.RepeatedScalarFieldContainer[float]
    logprobs: int
    prompt_logprobs: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., logit_bias_ids: _Optional[_Iterable[int]] = ..., logit_bias: _Optional[_Iterable[float]] = ..., logprobs: _Optional[int] = ..., prompt_logprobs: _Optional[int] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("indices",)
    INDICES_FIELD_NUMBER: _ClassVar[int]
    indices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, indices: _Optional[_Iterable[int]] = ...) -> None: ...

class LoadQuery(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResetPrefixCache(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Drain(_message.Message):
    __slots__ = ("timeout_seconds",)
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    timeout_seconds: float
    def __init__(self, timeout_seconds: _Optional[float] = ...) -> None: ...

class StartProfile(_message.Message):
    __slots__ = ("num_steps",)
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    num_steps: int
    def __init__(self, num_steps: _Optional[int] = ...) -> None: ...

class StopProfile(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SwitchExecutor(_message.Message):
    __slots__ = ("executor",)
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    executor: str
    def __init__(self, executor: _Optional[str] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("state", "accepted", "refused", "step", "load", "prefix_cache_reset", "drained", "profile", "api_keys", "executor_switched")
    STATE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_RESET_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    API_KEYS_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_SWITCHED_FIELD_NUMBER: _ClassVar[int]
    state: EngineState
    accepted: Accepted
    refused: Refused
    step: StepBatch
    load: LoadReply
    prefix_cache_reset: PrefixCacheReset
    drained: Drained
    profile: ProfileReply
    api_keys: ApiKeys
    executor_switched: ExecutorSwitched
    def __init__(self, state: _Optional[_Union[EngineState, _Mapping]] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., step: _Optional[_Union[StepBatch, _Mapping]] = ..., load: _Optional[_Union[LoadReply, _Mapping]] = ..., prefix_cache_reset: _Optional[_Union[PrefixCacheReset, _Mapping]] = ..., drained: _Optional[_Union[Drained, _Mapping]] = ..., profile: _Optional[_Union[ProfileReply, _Mapping]] = ..., api_keys: _Optional[_Union[ApiKeys, _Mapping]] = ..., executor_switched: _Optional[_Union[ExecutorSwitched, _Mapping]] = ...) -> None: ...

class ApiKeys(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[ApiKey]
    def __init__(self, keys: _Optional[_Iterable[_Union[ApiKey, _Mapping]]] = ...) -> None: ...

class ApiKey(_message.Message):
    __slots__ = ("sha256", "tenant", "shares_prefix_cache", "is_admin")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SHARES_PREFIX_CACHE_FIELD_NUMBER: _ClassVar[int]
    IS_ADMIN_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    tenant: str
    shares_prefix_cache: bool
    is_admin: bool
    def __init__(self, sha256: _Optional[bytes] = ..., tenant: _Optional[str] = ..., shares_prefix_cache: bool = ..., is_admin: bool = ...) -> None: ...

class EngineState(_message.Message):
    __slots__ = ("serving", "max_model_len", "vocab_size", "weights_fingerprint")
    SERVING_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    serving: bool
    max_model_len: int
    vocab_size: int
    weights_fingerprint: str
    def __init__(self, serving: bool = ..., max_model_len: _Optional[int] = ..., vocab_size: _Optional[int] = ..., weights_fingerprint: _Optional[str] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("code", "description", "field", "retry_seconds")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    code: int
    description: str
    field: str
    retry_seconds: float
    def __init__(self, code: _Optional[int] = ..., description: _Optional[str] = ..., field: _Optional[str] = ..., retry_seconds: _Optional[float] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("key", "sequence_ids")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_IDS_FIELD_NUMBER: _ClassVar[int]
    key: int
    sequence_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, key: _Optional[int] = ..., sequence_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("key", "problem")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    key: int
    problem: Problem
    def __init__(self, key: _Optional[int] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ...) -> None: ...

class StepBatch(_message.Message):
    __slots__ = ("time", "started", "tokens", "ended", "step_id")
    TIME_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    time: float
    started: _containers.RepeatedCompositeFieldContainer[Started]
    tokens: TokenBatch
    ended: _containers.RepeatedCompositeFieldContainer[Ended]
    step_id: int
    def __init__(self, time: _Optional[float] = ..., started: _Optional[_Iterable[_Union[Started, _Mapping]]] = ..., tokens: _Optional[_Union[TokenBatch, _Mapping]] = ..., ended: _Optional[_Iterable[_Union[Ended, _Mapping]]] = ..., step_id: _Optional[int] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("key", "num_cached_tokens")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    key: int
    num_cached_tokens: int
    def __init__(self, key: _Optional[int] = ..., num_cached_tokens: _Optional[int] = ...) -> None: ...

class Ended(_message.Message):
    __slots__ = ("key", "num_preemptions", "problem")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    key: int
    num_preemptions: int
    problem: Problem
    def __init__(self, key: _Optional[int] = ..., num_preemptions: _Optional[int] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ...) -> None: ...

class TokenBatch(_message.Message):
    __slots__ = ("sequence_ids", "token_ids", "finishes", "logprobs", "prompt_logprobs")
    SEQUENCE_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISHES_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    sequence_ids: bytes
    token_ids: bytes
    finishes: bytes
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[PromptLogprobs]
    def __init__(self, sequence_ids: _Optional[bytes] = ..., token_ids: _Optional[bytes] = ..., finishes: _Optional[bytes] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[PromptLogprobs, _Mapping]]] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("column", "logprob", "rank", "alternative_ids", "alternative_logprobs")
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_IDS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    column: int
    logprob: float
    rank: int
    alternative_ids: bytes
    alternative_logprobs: bytes
    def __init__(self, column: _Optional[int] = ..., logprob: _Optional[float] = ..., rank: _Optional[int] = ..., alternative_ids: _Optional[bytes] = ..., alternative_logprobs: _Optional[bytes] = ...) -> None: ...

class PromptLogprobs(_message.Message):
    __slots__ = ("sequence_id", "first_position", "logprobs", "ranks", "alternative_ids", "alternative_logprobs")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_IDS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    first_position: int
    logprobs: bytes
    ranks: bytes
    alternative_ids: bytes
    alternative_logprobs: bytes
    def __init__(self, sequence_id: _Optional[int] = ..., first_position: _Optional[int] = ..., logprobs: _Optional[bytes] = ..., ranks: _Optional[bytes] = ..., alternative_ids: _Optional[bytes] = ..., alternative_logprobs: _Optional[bytes] = ...) -> None: ...

class LoadReply(_message.Message):
    __slots__ = ("key", "load")
    KEY_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    key: int
    load: _admin_pb2.Load
    def __init__(self, key: _Optional[int] = ..., load: _Optional[_Union[_admin_pb2.Load, _Mapping]] = ...) -> None: ...

class PrefixCacheReset(_message.Message):
    __slots__ = ("key", "num_blocks")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    key: int
    num_blocks: int
    def __init__(self, key: _Optional[int] = ..., num_blocks: _Optional[int] = ...) -> None: ...

class ExecutorSwitched(_message.Message):
    __slots__ = ("key", "epoch", "problem")
    KEY_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    key: int
    epoch: int
    problem: Problem
    def __init__(self, key: _Optional[int] = ..., epoch: _Optional[int] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ...) -> None: ...

class Drained(_message.Message):
    __slots__ = ("key", "num_aborted_requests")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NUM_ABORTED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    key: int
    num_aborted_requests: int
    def __init__(self, key: _Optional[int] = ..., num_aborted_requests: _Optional[int] = ...) -> None: ...

class ProfileReply(_message.Message):
    __slots__ = ("key", "problem", "profile")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    key: int
    problem: Problem
    profile: _admin_pb2.StopProfileResponse
    def __init__(self, key: _Optional[int] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ..., profile: _Optional[_Union[_admin_pb2.StopProfileResponse, _Mapping]] = ...) -> None: ...
