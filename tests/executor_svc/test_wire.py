import contextlib
import random
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from executor_plans import TINY, Planner, encode_mask, encode_plan, ints, make_plan, make_start
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from executor_svc import wire
from executor_svc.plan import (
    ErrorCode,
    PromptLogprobs,
    RowLogprobs,
    RowMask,
    RowSampling,
    RowStatus,
    StepFailure,
    SubStepOutput,
)
from nanoserve.arrays import pack_int32, unpack_float32, unpack_int32
from nanoserve.executor.v1 import executor_pb2 as pb

VOCAB = TINY.vocab_size


def same(left: Any, right: Any) -> bool:
    """Equality that looks into dataclasses, tuples and arrays, with their element types."""
    if is_dataclass(left):
        return type(left) is type(right) and all(
            same(getattr(left, entry.name), getattr(right, entry.name))
            for entry in fields(left)
            if entry.compare
        )
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    return bool(left == right)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_plans_survive_the_wire(seed: int) -> None:
    planner = Planner(random.Random(seed))
    for _ in range(20):
        plan = planner.next_plan()
        data = encode_plan(plan).SerializeToString()
        decoded = wire.decode_plan(pb.StepPlan.FromString(data), VOCAB)
        assert same(decoded, plan)
        assert decoded.encode is not None
        assert decoded.encode() == data  # what other ranks are sent


def test_every_sampling_parameter_survives_the_wire() -> None:
    sampling = RowSampling(
        temperature=0.5,
        top_k=7,
        top_p=0.75,
        min_p=0.125,
        repetition_penalty=1.5,
        frequency_penalty=-0.5,
        presence_penalty=0.25,
        logit_bias_ids=ints(3, 1),
        logit_bias=np.array([-1.5, 2.0], np.float32),
        min_tokens=4,
        end_token_ids=ints(8, 9),
        logprobs=0,
        prompt_logprobs=20,
        report_gap=True,
    )
    neutral = RowSampling()
    for entry in fields(RowSampling):
        assert not same(getattr(sampling, entry.name), getattr(neutral, entry.name)), entry.name
    plan = make_plan(1, starts=(make_start(2, [1, 2], [3], sampling=sampling, seed=2**64 - 1),))
    assert same(wire.decode_plan(encode_plan(plan), VOCAB), plan)


def test_what_is_absent_is_neutral() -> None:
    plan = wire.decode_plan(
        pb.StepPlan(step_id=1, starts=[pb.StartRow(), pb.StartRow(sampling=pb.RowSampling())]), VOCAB
    )
    assert all(same(start.sampling, RowSampling()) for start in plan.starts)
    assert plan.num_decode_steps == 1


@pytest.mark.parametrize("num_decode_steps", [0, 1, 3])
def test_decode_rows_without_counts_advance_by_the_plans(num_decode_steps: int) -> None:
    message = pb.StepPlan(decode_rows=pack_int32([4, 2]), num_decode_steps=num_decode_steps)
    plan = wire.decode_plan(message, VOCAB)
    assert plan.decode_row_steps.tolist() == [max(num_decode_steps, 1)] * 2
    assert plan.decode_row_steps.dtype == np.int32


@given(bits=st.lists(st.booleans(), min_size=1, max_size=40), form=st.integers(0, 2))
def test_masks_of_all_forms_mean_the_same(bits: list[bool], form: int) -> None:
    message = encode_mask(RowMask.of(3, np.array(bits)), form, len(bits))
    (decoded,) = wire.decode_plan(pb.StepPlan(masks=[message]), len(bits)).masks
    assert decoded.row == 3
    assert decoded.allowed(len(bits)).tolist() == bits


def start(**values: Any) -> pb.StepPlan:
    return pb.StepPlan(starts=[pb.StartRow(), pb.StartRow(**values)])


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.StepPlan(release_rows=b"123"), "release_rows"),
        (pb.StepPlan(new_block_rows=b"1"), "new_block_rows"),
        (pb.StepPlan(new_block_ids=b"12345"), "new_block_ids"),
        (pb.StepPlan(decode_rows=b"12"), "decode_rows"),
        (pb.StepPlan(decode_row_steps=b"12"), "decode_row_steps"),
        (start(token_ids=b"1"), "starts[1].token_ids"),
        (start(block_table=b"1"), "starts[1].block_table"),
        (start(sampling=pb.RowSampling(logit_bias=b"1")), "starts[1].sampling.logit_bias"),
        (start(sampling=pb.RowSampling(logit_bias_ids=b"1")), "starts[1].sampling.logit_bias_ids"),
        (start(sampling=pb.RowSampling(end_token_ids=b"1")), "starts[1].sampling.end_token_ids"),
        (pb.StepPlan(masks=[pb.RowMask()]), "masks[0].mask"),
        (pb.StepPlan(masks=[pb.RowMask(allowed_ids=b"1")]), "masks[0].allowed_ids"),
        (pb.StepPlan(masks=[pb.RowMask(allowed_ids=pack_int32([0, VOCAB]))]), "masks[0].allowed_ids[1]"),
        (pb.StepPlan(masks=[pb.RowMask(forbidden_ids=pack_int32([-1]))]), "masks[0].forbidden_ids[0]"),
        (pb.StepPlan(masks=[pb.RowMask(allowed_bits=b"123456")]), "masks[0].allowed_bits"),
        (start(token_ids=bytes(wire.MAX_PLAN_BYTES)), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_malformed_plan_is_refused_at_the_field(message: pb.StepPlan, field: str) -> None:
    with pytest.raises(StepFailure) as caught:
        wire.decode_plan(message, VOCAB)
    assert (caught.value.code, caught.value.field) == (ErrorCode.INVALID_ARGUMENT, field)


@settings(max_examples=200)
@given(data=st.binary(max_size=200))
def test_no_bytes_that_parse_do_anything_but_decode_or_fail(data: bytes) -> None:
    message = pb.StepPlan()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return
    with contextlib.suppress(StepFailure):
        wire.decode_plan(message, VOCAB)


def test_a_result_carries_everything_that_was_sampled() -> None:
    output = SubStepOutput(
        rows=ints(4, 2),
        token_ids=ints(11, -1),
        row_statuses=ints(RowStatus.OK, RowStatus.NO_TOKEN_ALLOWED),
        logprobs=(RowLogprobs(4, -0.5, 2, ints(9, 11), np.array([-0.25, -0.5], np.float32)),),
        prompt_logprobs=(
            PromptLogprobs(
                4,
                1,
                np.array([-1, -2], np.float32),
                ints(1, 3),
                np.array([[5, 6], [7, 8]], np.int32),
                np.array([[-1, -2], [-3, -4]], np.float32),
            ),
        ),
        gaps=np.array([0.5, np.nan], np.float32),
        device_ns=7,
        idle_ns=8,
    )
    result = wire.encode_result(5, 1, True, output, 9, 10)
    assert (result.step_id, result.sub_step, result.last, result.status) == (5, 1, True, pb.STEP_STATUS_OK)
    assert unpack_int32(result.rows).tolist() == [4, 2]
    assert unpack_int32(result.token_ids).tolist() == [11, -1]
    assert unpack_int32(result.row_statuses).tolist() == [pb.ROW_STATUS_OK, pb.ROW_STATUS_NO_TOKEN_ALLOWED]
    assert result.timing == pb.StepTiming(queue_ns=9, host_ns=10, device_ns=7, idle_ns=8)
    assert np.isnan(unpack_float32(result.gaps)).tolist() == [False, True]
    (entry,) = result.logprobs
    assert (entry.row, entry.token_logprob, entry.token_rank) == (4, -0.5, 2)
    assert unpack_int32(entry.alternative_ids).tolist() == [9, 11]
    assert unpack_float32(entry.alternative_logprobs).tolist() == [-0.25, -0.5]
    (prompt,) = result.prompt_logprobs
    assert (prompt.row, prompt.first_position) == (4, 1)
    assert unpack_float32(prompt.token_logprobs).tolist() == [-1, -2]
    assert unpack_int32(prompt.token_ranks).tolist() == [1, 3]
    assert unpack_int32(prompt.alternative_ids).tolist() == [5, 6, 7, 8]
    assert unpack_float32(prompt.alternative_logprobs).tolist() == [-1, -2, -3, -4]
    assert not result.HasField("error")


def test_no_row_statuses_travel_when_all_are_ok() -> None:
    output = SubStepOutput(ints(1), ints(2), ints(RowStatus.OK))
    assert wire.encode_result(1, 0, True, output, 0, 0).row_statuses == b""


@pytest.mark.parametrize("code", list(ErrorCode))
def test_a_failure_is_told_whole(code: ErrorCode) -> None:
    result = wire.encode_failure(3, 1, StepFailure(code, "what", "starts[0].row", (5, 6)))
    assert (result.step_id, result.sub_step, result.last) == (3, 1, True)
    assert result.status == pb.STEP_STATUS_FAILED
    assert pb.StepErrorCode.Name(result.error.code) == f"STEP_ERROR_CODE_{code.name}"
    assert (result.error.field, result.error.description) == ("starts[0].row", "what")
    assert unpack_int32(result.error.rows).tolist() == [5, 6]


def test_the_numbers_of_the_row_statuses_are_the_contracts() -> None:
    for status in RowStatus:
        assert pb.RowStatus.Name(int(status)) == f"ROW_STATUS_{status.name}"
