"""Reads recordings: entries one by one, and plans with their arrays unpacked."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError

from nanoserve.address import MAX_MESSAGE_BYTES
from nanoserve.arrays import unpack_int32
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.recording_pb2 import RecordingEntry
from scheduler_svc.recording import FORMAT_VERSION


class RecordingError(Exception):
    """A file that is no recording, or one that this version cannot read."""


def read_recording(path: Path) -> Iterator[RecordingEntry]:
    """Yields a recording's entries, the header first; one that was cut short at the end is left out.

    RecordingError where the file cannot be read, is no recording, or is of another version.
    """
    try:
        with path.open("rb") as file:
            offset, is_first = 0, True
            while (data := _read_message(file, path, offset)) is not None:
                entry = _parse(data, path, offset)
                _check_header(entry, path, is_first)
                yield entry
                offset, is_first = file.tell(), False
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror}") from error
    if is_first:
        raise RecordingError(f"{path}: holds no entry")


def _read_message(file: BinaryIO, path: Path, offset: int) -> bytes | None:
    """The next message; None at the end of the file, be it in the middle of a message."""
    size = shift = 0
    while True:
        byte = file.read(1)
        if not byte:
            return None
        size |= (byte[0] & 127) << shift
        if size > MAX_MESSAGE_BYTES or shift > 28:
            raise RecordingError(
                f"{path}: no recording: an entry of over {MAX_MESSAGE_BYTES} bytes at {offset}"
            )
        if byte[0] < 128:
            break
        shift += 7
    data = file.read(size)
    return data if len(data) == size else None


def _parse(data: bytes, path: Path, offset: int) -> RecordingEntry:
    try:
        entry = RecordingEntry.FromString(data)
    except DecodeError as error:
        raise RecordingError(f"{path}: no recording: the entry at byte {offset} is malformed") from error
    if entry.WhichOneof("entry") is None:
        raise RecordingError(f"{path}: no recording: the entry at byte {offset} is of no known kind")
    return entry


def _check_header(entry: RecordingEntry, path: Path, is_first: bool) -> None:
    if entry.HasField("header") is not is_first:
        raise RecordingError(f"{path}: the header is not the first entry and only there")
    if is_first and entry.header.format_version != FORMAT_VERSION:
        found = entry.header.format_version
        raise RecordingError(f"{path}: format version {found}, this reader knows {FORMAT_VERSION}")


@dataclass(frozen=True, slots=True)
class StartView:
    """A StartRow, unpacked."""

    row: int
    token_ids: list[int]
    num_prompt_tokens: int
    num_computed_tokens: int
    block_table: list[int]


@dataclass(frozen=True, slots=True)
class PlanView:
    """A StepPlan, unpacked, absent values resolved."""

    step_id: int
    release_rows: list[int]
    starts: list[StartView]
    new_block_rows: list[int]
    new_block_ids: list[int]
    prefills: list[pb.Prefill]
    decode_rows: list[int]
    decode_row_steps: list[int]
    num_decode_steps: int
    num_masks: int
    num_bytes: int

    @classmethod
    def of(cls, plan: pb.StepPlan) -> "PlanView":
        """Unpacks a plan; ValueError where an array is not of whole numbers."""
        num_decode_steps, decode_rows = plan.num_decode_steps or 1, unpack_int32(plan.decode_rows).tolist()
        steps = unpack_int32(plan.decode_row_steps).tolist()
        return cls(
            step_id=plan.step_id,
            release_rows=unpack_int32(plan.release_rows).tolist(),
            starts=[_start(start) for start in plan.starts],
            new_block_rows=unpack_int32(plan.new_block_rows).tolist(),
            new_block_ids=unpack_int32(plan.new_block_ids).tolist(),
            prefills=list(plan.prefills),
            decode_rows=decode_rows,
            decode_row_steps=steps or [num_decode_steps] * len(decode_rows),
            num_decode_steps=num_decode_steps,
            num_masks=len(plan.masks),
            num_bytes=plan.ByteSize() - sum(mask.ByteSize() for mask in plan.masks),
        )

    def sampling_rows(self, sub_step: int) -> list[int]:
        """The rows that a sub-step samples for, in the order of its result."""
        prefilled = [run.row for run in self.prefills if run.samples and sub_step == 0]
        steps = zip(self.decode_rows, self.decode_row_steps, strict=True)
        return prefilled + [row for row, count in steps if count > sub_step]


def _start(start: pb.StartRow) -> StartView:
    return StartView(
        row=start.row,
        token_ids=unpack_int32(start.token_ids).tolist(),
        num_prompt_tokens=start.num_prompt_tokens,
        num_computed_tokens=start.num_computed_tokens,
        block_table=unpack_int32(start.block_table).tolist(),
    )
