from nanoserve.v1 import profile_pb2 as _profile_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StepStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEP_STATUS_UNSPECIFIED: _ClassVar[StepStatus]
    STEP_STATUS_OK: _ClassVar[StepStatus]
    STEP_STATUS_FAILED: _ClassVar[StepStatus]
    STEP_STATUS_SKIPPED: _ClassVar[StepStatus]

class RowStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROW_STATUS_UNSPECIFIED: _ClassVar[RowStatus]
    ROW_STATUS_OK: _ClassVar[RowStatus]
    ROW_STATUS_NON_FINITE_LOGITS: _ClassVar[RowStatus]
    ROW_STATUS_NO_TOKEN_ALLOWED: _ClassVar[RowStatus]

class StepErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEP_ERROR_CODE_UNSPECIFIED: _ClassVar[StepErrorCode]
    STEP_ERROR_CODE_INVALID_ARGUMENT: _ClassVar[StepErrorCode]
    STEP_ERROR_CODE_RESOURCE_EXHAUSTED: _ClassVar[StepErrorCode]
    STEP_ERROR_CODE_UNIMPLEMENTED: _ClassVar[StepErrorCode]
    STEP_ERROR_CODE_INTERNAL: _ClassVar[StepErrorCode]
    STEP_ERROR_CODE_DATA_LOSS: _ClassVar[StepErrorCode]
STEP_STATUS_UNSPECIFIED: StepStatus
STEP_STATUS_OK: StepStatus
STEP_STATUS_FAILED: StepStatus
STEP_STATUS_SKIPPED: StepStatus
ROW_STATUS_UNSPECIFIED: RowStatus
ROW_STATUS_OK: RowStatus
ROW_STATUS_NON_FINITE_LOGITS: RowStatus
ROW_STATUS_NO_TOKEN_ALLOWED: RowStatus
STEP_ERROR_CODE_UNSPECIFIED: StepErrorCode
STEP_ERROR_CODE_INVALID_ARGUMENT: StepErrorCode
STEP_ERROR_CODE_RESOURCE_EXHAUSTED: StepErrorCode
STEP_ERROR_CODE_UNIMPLEMENTED: StepErrorCode
STEP_ERROR_CODE_INTERNAL: StepErrorCode
STEP_ERROR_CODE_DATA_LOSS: StepErrorCode

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("description", "epoch", "session_alive", "warming_up")
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SESSION_ALIVE_FIELD_NUMBER: _ClassVar[int]
    WARMING_UP_FIELD_NUMBER: _ClassVar[int]
    description: ExecutorDescription
    epoch: int
    session_alive: bool
    warming_up: bool
    def __init__(self, description: _Optional[_Union[ExecutorDescription, _Mapping]] = ..., epoch: _Optional[int] = ..., session_alive: bool = ..., warming_up: bool = ...) -> None: ...

class ExecutorDescription(_message.Message):
    __slots__ = ("instance_id", "num_blocks", "block_size", "max_num_seqs", "max_model_len", "max_num_batched_tokens", "max_num_decode_steps", "max_plans_in_flight", "vocab_size", "model_fingerprint", "weights_fingerprint", "device", "dtype", "version")
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_BATCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_DECODE_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_PLANS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    instance_id: str
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    max_num_decode_steps: int
    max_plans_in_flight: int
    vocab_size: int
    model_fingerprint: str
    weights_fingerprint: str
    device: str
    dtype: str
    version: str
    def __init__(self, instance_id: _Optional[str] = ..., num_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., max_model_len: _Optional[int] = ..., max_num_batched_tokens: _Optional[int] = ..., max_num_decode_steps: _Optional[int] = ..., max_plans_in_flight: _Optional[int] = ..., vocab_size: _Optional[int] = ..., model_fingerprint: _Optional[str] = ..., weights_fingerprint: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class ExecuteRequest(_message.Message):
    __slots__ = ("open", "plan")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    open: OpenSession
    plan: StepPlan
    def __init__(self, open: _Optional[_Union[OpenSession, _Mapping]] = ..., plan: _Optional[_Union[StepPlan, _Mapping]] = ...) -> None: ...

class OpenSession(_message.Message):
    __slots__ = ("scheduler_id", "expected_epoch", "take_over")
    SCHEDULER_ID_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    TAKE_OVER_FIELD_NUMBER: _ClassVar[int]
    scheduler_id: str
    expected_epoch: int
    take_over: bool
    def __init__(self, scheduler_id: _Optional[str] = ..., expected_epoch: _Optional[int] = ..., take_over: bool = ...) -> None: ...

class ExecuteResponse(_message.Message):
    __slots__ = ("opened", "result")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    opened: SessionOpened
    result: StepResult
    def __init__(self, opened: _Optional[_Union[SessionOpened, _Mapping]] = ..., result: _Optional[_Union[StepResult, _Mapping]] = ...) -> None: ...

class SessionOpened(_message.Message):
    __slots__ = ("epoch", "description")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    description: ExecutorDescription
    def __init__(self, epoch: _Optional[int] = ..., description: _Optional[_Union[ExecutorDescription, _Mapping]] = ...) -> None: ...

class StepPlan(_message.Message):
    __slots__ = ("step_id", "release_rows", "starts", "new_block_rows", "new_block_ids", "prefills", "decode_rows", "decode_row_steps", "num_decode_steps", "masks")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ROWS_FIELD_NUMBER: _ClassVar[int]
    STARTS_FIELD_NUMBER: _ClassVar[int]
    NEW_BLOCK_ROWS_FIELD_NUMBER: _ClassVar[int]
    NEW_BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    PREFILLS_FIELD_NUMBER: _ClassVar[int]
    DECODE_ROWS_FIELD_NUMBER: _ClassVar[int]
    DECODE_ROW_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_DECODE_STEPS_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    release_rows: bytes
    starts: _containers.RepeatedCompositeFieldContainer[StartRow]
    new_block_rows: bytes
    new_block_ids: bytes
    prefills: _containers.RepeatedCompositeFieldContainer[Prefill]
    decode_rows: bytes
    decode_row_steps: bytes
    num_decode_steps: int
    masks: _containers.RepeatedCompositeFieldContainer[RowMask]
    def __init__(self, step_id: _Optional[int] = ..., release_rows: _Optional[bytes] = ..., starts: _Optional[_Iterable[_Union[StartRow, _Mapping]]] = ..., new_block_rows: _Optional[bytes] = ..., new_block_ids: _Optional[bytes] = ..., prefills: _Optional[_Iterable[_Union[Prefill, _Mapping]]] = ..., decode_rows: _Optional[bytes] = ..., decode_row_steps: _Optional[bytes] = ..., num_decode_steps: _Optional[int] = ..., masks: _Optional[_Iterable[_Union[RowMask, _Mapping]]] = ...) -> None: ...

class StartRow(_message.Message):
    __slots__ = ("row", "token_ids", "num_prompt_tokens", "num_computed_tokens", "block_table", "sampling", "seed")
    ROW_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TABLE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    row: int
    token_ids: bytes
    num_prompt_tokens: int
    num_computed_tokens: int
    block_table: bytes
    sampling: RowSampling
    seed: int
    def __init__(self, row: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., num_prompt_tokens: _Optional[int] = ..., num_computed_tokens: _Optional[int] = ..., block_table: _Optional[bytes] = ..., sampling: _Optional[_Union[RowSampling, _Mapping]] = ..., seed: _Optional[int] = ...) -> None: ...

class RowSampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias_ids", "logit_bias", "min_tokens", "end_token_ids", "logprobs", "prompt_logprobs", "report_gap")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    END_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    REPORT_GAP_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias_ids: bytes
    logit_bias: bytes
    min_tokens: int
    end_token_ids: bytes
    logprobs: int
    prompt_logprobs: int
    report_gap: bool
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., logit_bias_ids: _Optional[bytes] = ..., logit_bias: _Optional[bytes] = ..., min_tokens: _Optional[int] = ..., end_token_ids: _Optional[bytes] = ..., logprobs: _Optional[int] = ..., prompt_logprobs: _Optional[int] = ..., report_gap: bool = ...) -> None: ...

class Prefill(_message.Message):
    __slots__ = ("row", "first_position", "num_tokens", "samples")
    ROW_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    row: int
    first_position: int
    num_tokens: int
    samples: bool
    def __init__(self, row: _Optional[int] = ..., first_position: _Optional[int] = ..., num_tokens: _Optional[int] = ..., samples: bool = ...) -> None: ...

class RowMask(_message.Message):
    __slots__ = ("row", "allowed_ids", "forbidden_ids", "allowed_bits")
    ROW_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_IDS_FIELD_NUMBER: _ClassVar[int]
    FORBIDDEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_BITS_FIELD_NUMBER: _ClassVar[int]
    row: int
    allowed_ids: bytes
    forbidden_ids: bytes
    allowed_bits: bytes
    def __init__(self, row: _Optional[int] = ..., allowed_ids: _Optional[bytes] = ..., forbidden_ids: _Optional[bytes] = ..., allowed_bits: _Optional[bytes] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("step_id", "sub_step", "last", "status", "rows", "token_ids", "row_statuses", "logprobs", "prompt_logprobs", "gaps", "timing", "error")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    SUB_STEP_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ROW_STATUSES_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    sub_step: int
    last: bool
    status: StepStatus
    rows: bytes
    token_ids: bytes
    row_statuses: bytes
    logprobs: _containers.RepeatedCompositeFieldContainer[RowLogprobs]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[PromptLogprobs]
    gaps: bytes
    timing: StepTiming
    error: StepError
    def __init__(self, step_id: _Optional[int] = ..., sub_step: _Optional[int] = ..., last: bool = ..., status: _Optional[_Union[StepStatus, str]] = ..., rows: _Optional[bytes] = ..., token_ids: _Optional[bytes] = ..., row_statuses: _Optional[bytes] = ..., logprobs: _Optional[_Iterable[_Union[RowLogprobs, _Mapping]]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[PromptLogprobs, _Mapping]]] = ..., gaps: _Optional[bytes] = ..., timing: _Optional[_Union[StepTiming, _Mapping]] = ..., error: _Optional[_Union[StepError, _Mapping]] = ...) -> None: ...

class RowLogprobs(_message.Message):
    __slots__ = ("row", "token_logprob", "token_rank", "alternative_ids", "alternative_logprobs")
    ROW_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOKEN_RANK_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_IDS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    row: int
    token_logprob: float
    token_rank: int
    alternative_ids: bytes
    alternative_logprobs: bytes
    def __init__(self, row: _Optional[int] = ..., token_logprob: _Optional[float] = ..., token_rank: _Optional[int] = ..., alternative_ids: _Optional[bytes] = ..., alternative_logprobs: _Optional[bytes] = ...) -> None: ...

class PromptLogprobs(_message.Message):
    __slots__ = ("row", "first_position", "token_logprobs", "token_ranks", "alternative_ids", "alternative_logprobs")
    ROW_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_RANKS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_IDS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    row: int
    first_position: int
    token_logprobs: bytes
    token_ranks: bytes
    alternative_ids: bytes
    alternative_logprobs: bytes
    def __init__(self, row: _Optional[int] = ..., first_position: _Optional[int] = ..., token_logprobs: _Optional[bytes] = ..., token_ranks: _Optional[bytes] = ..., alternative_ids: _Optional[bytes] = ..., alternative_logprobs: _Optional[bytes] = ...) -> None: ...

class StepTiming(_message.Message):
    __slots__ = ("queue_ns", "host_ns", "device_ns", "idle_ns")
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    HOST_NS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NS_FIELD_NUMBER: _ClassVar[int]
    IDLE_NS_FIELD_NUMBER: _ClassVar[int]
    queue_ns: int
    host_ns: int
    device_ns: int
    idle_ns: int
    def __init__(self, queue_ns: _Optional[int] = ..., host_ns: _Optional[int] = ..., device_ns: _Optional[int] = ..., idle_ns: _Optional[int] = ...) -> None: ...

class StepError(_message.Message):
    __slots__ = ("code", "field", "description", "rows")
    CODE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    code: StepErrorCode
    field: str
    description: str
    rows: bytes
    def __init__(self, code: _Optional[_Union[StepErrorCode, str]] = ..., field: _Optional[str] = ..., description: _Optional[str] = ..., rows: _Optional[bytes] = ...) -> None: ...

class StartProfileRequest(_message.Message):
    __slots__ = ("num_steps", "after_step_id")
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    AFTER_STEP_ID_FIELD_NUMBER: _ClassVar[int]
    num_steps: int
    after_step_id: int
    def __init__(self, num_steps: _Optional[int] = ..., after_step_id: _Optional[int] = ...) -> None: ...

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
