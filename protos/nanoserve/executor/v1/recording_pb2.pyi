from nanoserve.executor.v1 import executor_pb2 as _executor_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecordingEntry(_message.Message):
    __slots__ = ("time_ns", "header", "opened", "plan", "result", "lost")
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    time_ns: int
    header: RecordingHeader
    opened: _executor_pb2.SessionOpened
    plan: _executor_pb2.StepPlan
    result: _executor_pb2.StepResult
    lost: RecordingLoss
    def __init__(self, time_ns: _Optional[int] = ..., header: _Optional[_Union[RecordingHeader, _Mapping]] = ..., opened: _Optional[_Union[_executor_pb2.SessionOpened, _Mapping]] = ..., plan: _Optional[_Union[_executor_pb2.StepPlan, _Mapping]] = ..., result: _Optional[_Union[_executor_pb2.StepResult, _Mapping]] = ..., lost: _Optional[_Union[RecordingLoss, _Mapping]] = ...) -> None: ...

class RecordingHeader(_message.Message):
    __slots__ = ("format_version", "scheduler_version", "scheduler_id", "model_fingerprint", "executor", "begin_unix_ns")
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_VERSION_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    BEGIN_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    scheduler_version: str
    scheduler_id: str
    model_fingerprint: str
    executor: _executor_pb2.ExecutorDescription
    begin_unix_ns: int
    def __init__(self, format_version: _Optional[int] = ..., scheduler_version: _Optional[str] = ..., scheduler_id: _Optional[str] = ..., model_fingerprint: _Optional[str] = ..., executor: _Optional[_Union[_executor_pb2.ExecutorDescription, _Mapping]] = ..., begin_unix_ns: _Optional[int] = ...) -> None: ...

class RecordingLoss(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...
