from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ProfileSpan(_message.Message):
    __slots__ = ("lane", "name", "step_id", "sub_step", "thread_id", "begin_ns", "end_ns")
    LANE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    SUB_STEP_FIELD_NUMBER: _ClassVar[int]
    THREAD_ID_FIELD_NUMBER: _ClassVar[int]
    BEGIN_NS_FIELD_NUMBER: _ClassVar[int]
    END_NS_FIELD_NUMBER: _ClassVar[int]
    lane: str
    name: str
    step_id: int
    sub_step: int
    thread_id: int
    begin_ns: int
    end_ns: int
    def __init__(self, lane: _Optional[str] = ..., name: _Optional[str] = ..., step_id: _Optional[int] = ..., sub_step: _Optional[int] = ..., thread_id: _Optional[int] = ..., begin_ns: _Optional[int] = ..., end_ns: _Optional[int] = ...) -> None: ...
