from nanoserve.v1 import profile_pb2 as _profile_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetLoadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLoadResponse(_message.Message):
    __slots__ = ("load",)
    LOAD_FIELD_NUMBER: _ClassVar[int]
    load: Load
    def __init__(self, load: _Optional[_Union[Load, _Mapping]] = ...) -> None: ...

class WatchLoadRequest(_message.Message):
    __slots__ = ("interval_seconds",)
    INTERVAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    interval_seconds: float
    def __init__(self, interval_seconds: _Optional[float] = ...) -> None: ...

class WatchLoadResponse(_message.Message):
    __slots__ = ("load",)
    LOAD_FIELD_NUMBER: _ClassVar[int]
    load: Load
    def __init__(self, load: _Optional[_Union[Load, _Mapping]] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("num_running_requests", "num_waiting_requests", "num_total_blocks", "num_free_blocks", "num_cached_blocks", "num_held_blocks", "num_preemptions", "num_prefix_query_tokens", "num_prefix_hit_tokens", "num_steps", "num_output_tokens", "step_stats", "executor_epoch", "executor_healthy", "draining", "num_plans_in_flight", "step_totals", "num_shared_blocks", "num_unused_slots", "num_late_tokens", "num_padded_tokens")
    NUM_RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_HELD_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREFIX_QUERY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREFIX_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEP_STATS_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_EPOCH_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_HEALTHY_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    NUM_PLANS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    STEP_TOTALS_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_UNUSED_SLOTS_FIELD_NUMBER: _ClassVar[int]
    NUM_LATE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PADDED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_running_requests: int
    num_waiting_requests: int
    num_total_blocks: int
    num_free_blocks: int
    num_cached_blocks: int
    num_held_blocks: int
    num_preemptions: int
    num_prefix_query_tokens: int
    num_prefix_hit_tokens: int
    num_steps: int
    num_output_tokens: int
    step_stats: StepStats
    executor_epoch: int
    executor_healthy: bool
    draining: bool
    num_plans_in_flight: int
    step_totals: StepTotals
    num_shared_blocks: int
    num_unused_slots: int
    num_late_tokens: int
    num_padded_tokens: int
    def __init__(self, num_running_requests: _Optional[int] = ..., num_waiting_requests: _Optional[int] = ..., num_total_blocks: _Optional[int] = ..., num_free_blocks: _Optional[int] = ..., num_cached_blocks: _Optional[int] = ..., num_held_blocks: _Optional[int] = ..., num_preemptions: _Optional[int] = ..., num_prefix_query_tokens: _Optional[int] = ..., num_prefix_hit_tokens: _Optional[int] = ..., num_steps: _Optional[int] = ..., num_output_tokens: _Optional[int] = ..., step_stats: _Optional[_Union[StepStats, _Mapping]] = ..., executor_epoch: _Optional[int] = ..., executor_healthy: bool = ..., draining: bool = ..., num_plans_in_flight: _Optional[int] = ..., step_totals: _Optional[_Union[StepTotals, _Mapping]] = ..., num_shared_blocks: _Optional[int] = ..., num_unused_slots: _Optional[int] = ..., num_late_tokens: _Optional[int] = ..., num_padded_tokens: _Optional[int] = ...) -> None: ...

class StepStats(_message.Message):
    __slots__ = ("device_ms", "host_ms", "queue_ms", "idle_ms", "round_trip_ms", "schedule_ms")
    DEVICE_MS_FIELD_NUMBER: _ClassVar[int]
    HOST_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    IDLE_MS_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_MS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_MS_FIELD_NUMBER: _ClassVar[int]
    device_ms: float
    host_ms: float
    queue_ms: float
    idle_ms: float
    round_trip_ms: float
    schedule_ms: float
    def __init__(self, device_ms: _Optional[float] = ..., host_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., idle_ms: _Optional[float] = ..., round_trip_ms: _Optional[float] = ..., schedule_ms: _Optional[float] = ...) -> None: ...

class StepTotals(_message.Message):
    __slots__ = ("device_seconds", "host_seconds", "queue_seconds", "idle_seconds", "round_trip_seconds", "schedule_seconds")
    DEVICE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HOST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    device_seconds: float
    host_seconds: float
    queue_seconds: float
    idle_seconds: float
    round_trip_seconds: float
    schedule_seconds: float
    def __init__(self, device_seconds: _Optional[float] = ..., host_seconds: _Optional[float] = ..., queue_seconds: _Optional[float] = ..., idle_seconds: _Optional[float] = ..., round_trip_seconds: _Optional[float] = ..., schedule_seconds: _Optional[float] = ...) -> None: ...

class ResetPrefixCacheRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResetPrefixCacheResponse(_message.Message):
    __slots__ = ("num_blocks",)
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    def __init__(self, num_blocks: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("timeout_seconds",)
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    timeout_seconds: float
    def __init__(self, timeout_seconds: _Optional[float] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("num_aborted_requests",)
    NUM_ABORTED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    num_aborted_requests: int
    def __init__(self, num_aborted_requests: _Optional[int] = ...) -> None: ...

class SwitchExecutorRequest(_message.Message):
    __slots__ = ("executor",)
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    executor: str
    def __init__(self, executor: _Optional[str] = ...) -> None: ...

class SwitchExecutorResponse(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class StartProfileRequest(_message.Message):
    __slots__ = ("num_steps",)
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    num_steps: int
    def __init__(self, num_steps: _Optional[int] = ...) -> None: ...

class StartProfileResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopProfileRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopProfileResponse(_message.Message):
    __slots__ = ("path", "num_steps", "spans", "trace")
    PATH_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    path: str
    num_steps: int
    spans: _containers.RepeatedCompositeFieldContainer[_profile_pb2.ProfileSpan]
    trace: bytes
    def __init__(self, path: _Optional[str] = ..., num_steps: _Optional[int] = ..., spans: _Optional[_Iterable[_Union[_profile_pb2.ProfileSpan, _Mapping]]] = ..., trace: _Optional[bytes] = ...) -> None: ...
