"""Steps are told apart by what their plans computed."""

from benchmarks.step_mix import step_mix
from nanoserve.arrays import pack_int32
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.recording_pb2 import RecordingEntry


def plan(
    step_id: int, decode_rows: int = 0, prefill_tokens: int = 0, row_steps: tuple[int, ...] = ()
) -> RecordingEntry:
    prefills = [pb.Prefill(row=200, num_tokens=prefill_tokens)] if prefill_tokens else []
    rows, counts = pack_int32(range(decode_rows)), pack_int32(row_steps)
    return RecordingEntry(
        plan=pb.StepPlan(step_id=step_id, decode_rows=rows, decode_row_steps=counts, prefills=prefills)
    )


def result(step_id: int, device_ms: float, sub_step: int = 0, last: bool = True) -> RecordingEntry:
    timing = pb.StepTiming(device_ns=round(device_ms * 1e6))
    status = pb.STEP_STATUS_OK
    return RecordingEntry(
        result=pb.StepResult(step_id=step_id, sub_step=sub_step, last=last, status=status, timing=timing)
    )


def test_steps_fall_into_kinds_and_buckets() -> None:
    entries = [
        *(plan(1, prefill_tokens=100), plan(2, decode_rows=3, prefill_tokens=50), result(1, 5.0)),
        *(plan(3, decode_rows=4), result(2, 3.0), result(3, 1.0), plan(4, decode_rows=5), result(4, 1.0)),
    ]
    rows = {(row["kind"], row["decode_rows"]): row for row in step_mix(entries)}
    assert set(rows) == {("prefill", 0), ("mixed", 4), ("decode", 4), ("decode", 8)}
    assert rows["prefill", 0]["prefill_tokens"] == 100
    assert rows["mixed", 4]["device_share"] == 0.3
    assert sum(row["share"] for row in rows.values()) == 1.0


def test_each_decode_step_of_a_plan_counts_the_rows_it_advances() -> None:
    entries = [plan(1, decode_rows=2, row_steps=(1, 3))]
    entries += [result(1, 1.0, sub_step, last=sub_step == 2) for sub_step in range(3)]
    assert [(row["decode_rows"], row["steps"]) for row in step_mix(entries)] == [(1, 2), (2, 1)]


def test_what_failed_is_left_out() -> None:
    failed = RecordingEntry(result=pb.StepResult(step_id=1, last=True, status=pb.STEP_STATUS_FAILED))
    assert step_mix([plan(1, decode_rows=1), failed]) == []
