"""Plans and results over the wire, with the executor's own reading and writing at the other end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor_svc import plan as ex
from executor_svc import wire as executor_wire
from nanoserve.arrays import pack_int32
from nanoserve.executor.v1 import executor_pb2 as pb
from scheduler_svc.core.request import Request, Sampling
from scheduler_svc.core.scheduler import CoreConfig, Scheduler
from scheduler_svc.core.step import PrefillChunk, SequenceStart, Session, StepPlan
from scheduler_svc.wire import StepFailed, StepReport, WireError, decode_result, decode_session, encode_plan

VOCAB_SIZE = 1000
int32s = st.lists(st.integers(0, 2**31 - 1), max_size=5)
float32s = st.floats(0, 1, width=32)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0, 100, width=32),
    top_k=st.integers(0, 100),
    top_p=float32s,
    min_p=float32s,
    repetition_penalty=st.floats(0, 10, width=32),
    frequency_penalty=st.floats(-2, 2, width=32),
    presence_penalty=st.floats(-2, 2, width=32),
    logit_bias=st.lists(st.tuples(st.integers(0, 999), st.floats(-100, 100, width=32)), max_size=3).map(
        tuple
    ),
    logprobs=st.none() | st.integers(0, 20),
    prompt_logprobs=st.none() | st.integers(0, 20),
)
starts = st.builds(
    SequenceStart,
    row=st.integers(0, 255),
    sequence_id=st.integers(1, 2**40),
    token_ids=int32s.map(lambda ids: np.array(ids, np.int32)),
    num_prompt_tokens=st.integers(1, 100),
    num_computed_tokens=st.integers(0, 100),
    block_table=int32s,
    sampling=samplings,
    seed=st.integers(0, 2**64 - 1),
    min_tokens=st.integers(0, 5),
    end_token_ids=st.lists(st.integers(0, 999), max_size=3).map(tuple),
    is_restart=st.booleans(),
)
plans = st.builds(
    StepPlan,
    step_id=st.integers(1, 2**62),
    release_rows=int32s,
    starts=st.lists(starts, max_size=3),
    new_block_rows=int32s,
    new_block_ids=int32s,
    prefills=st.lists(
        st.builds(
            PrefillChunk, st.integers(0, 255), st.integers(0, 2**31 - 1), st.integers(1, 99), st.booleans()
        ),
        max_size=3,
    ),
    decode_rows=st.just(np.array([3, 1], np.int32)),
    decode_row_steps=st.just(np.array([1, 2], np.int32)),
    decode_ends=st.just(np.array([7, 9], np.int64)),
    num_decode_steps=st.just(2),
    packed_decode_rows=st.none(),
    masks=st.just(()),
)


@given(plans)
def test_the_executor_reads_what_the_scheduler_plans(plan: StepPlan):
    message = pb.ExecuteRequest.FromString(encode_plan(plan).SerializeToString())
    read = executor_wire.decode_plan(message.plan, VOCAB_SIZE)
    assert (read.step_id, read.num_decode_steps) == (plan.step_id, plan.num_decode_steps)
    for name in ("release_rows", "new_block_rows", "new_block_ids", "decode_rows", "decode_row_steps"):
        assert getattr(read, name).tolist() == list(getattr(plan, name))
    assert [(p.row, p.first_position, p.num_tokens, p.samples) for p in read.prefills] == plan.prefills
    assert len(read.starts) == len(plan.starts)
    for got, sent in zip(read.starts, plan.starts, strict=True):
        assert (got.row, got.seed) == (sent.row, sent.seed)
        assert got.token_ids.tolist() == sent.token_ids.tolist()
        assert got.block_table.tolist() == sent.block_table
        assert (got.num_prompt_tokens, got.num_computed_tokens) == (
            sent.num_prompt_tokens,
            sent.num_computed_tokens,
        )
        check_sampling(got.sampling, sent)


def check_sampling(got: ex.RowSampling, sent: SequenceStart) -> None:
    sampling = sent.sampling
    for name in ("temperature", "top_k", "top_p", "min_p", "logprobs", "prompt_logprobs"):
        assert getattr(got, name) == getattr(sampling, name), name
    for name in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
        assert getattr(got, name) == getattr(sampling, name), name
    assert list(zip(got.logit_bias_ids, got.logit_bias, strict=True)) == list(sampling.logit_bias)
    assert got.min_tokens == sent.min_tokens
    if sent.min_tokens:
        assert tuple(got.end_token_ids.tolist()) == sent.end_token_ids


def test_a_single_step_plan_needs_no_step_counts():
    one = np.ones(2, np.int32)
    plan = StepPlan(1, [], [], [], [], [], np.array([4, 5], np.int32), one, np.array([7, 9]), 1)
    message = encode_plan(plan)
    assert message.plan.decode_row_steps == b""
    assert executor_wire.decode_plan(message.plan, VOCAB_SIZE).decode_row_steps.tolist() == [1, 1]


def test_rows_packed_for_an_earlier_plan_are_sent_as_they_are():
    rows, one = np.array([4, 5], np.int32), np.ones(2, np.int32)
    plan = StepPlan(1, [], [], [], [], [], rows, one, np.array([7, 9]), 1)
    assert encode_plan(plan._replace(packed_decode_rows=pack_int32(rows))) == encode_plan(plan)


def sub_step_output() -> ex.SubStepOutput:
    logprobs = ex.RowLogprobs(7, -0.5, 3, np.array([1, 2], np.int32), np.array([-0.1, -0.2], np.float32))
    prompt = ex.PromptLogprobs(
        9,
        4,
        np.array([-1, -2, -3], np.float32),
        np.array([1, 5, 9], np.int32),
        np.array([[1, 2], [3, 4], [5, 6]], np.int32),
        np.array([[-1, -2], [-3, -4], [-5, -6]], np.float32),
    )
    statuses = np.array([ex.RowStatus.OK, ex.RowStatus.NON_FINITE_LOGITS], np.int32)
    return ex.SubStepOutput(
        np.array([7, 8], np.int32),
        np.array([42, -1], np.int32),
        statuses,
        (logprobs,),
        (prompt,),
        device_ns=5,
        idle_ns=6,
    )


def test_the_scheduler_reads_what_the_executor_answers():
    message = executor_wire.encode_result(3, 1, True, sub_step_output(), queue_ns=7, host_ns=8)
    report = decode_result(pb.StepResult.FromString(message.SerializeToString()))
    assert isinstance(report, StepReport)
    result = report.result
    assert (result.step_id, result.sub_step, result.last) == (3, 1, True)
    assert (result.rows.tolist(), result.token_ids.tolist()) == ([7, 8], [42, -1])
    assert result.failed is not None
    assert result.failed.tolist() == [False, True]
    assert report.row_errors == {8: "NON_FINITE_LOGITS"}
    logprobs = report.logprobs[7]
    assert (logprobs.logprob, logprobs.rank, logprobs.alternative_ids.tolist()) == (-0.5, 3, [1, 2])
    assert result.prompt_slices == ((9, 4, 3),)
    rest = report.prompt_logprobs[0].without(1)
    assert (rest.first_position, rest.logprobs.tolist(), rest.ranks.tolist()) == (5, [-2, -3], [5, 9])
    assert rest.alternative_ids.tolist() == [[3, 4], [5, 6]]
    assert rest.alternative_logprobs.tolist() == [[-3, -4], [-5, -6]]
    timing = report.timing
    assert (timing.queue_ns, timing.host_ns, timing.device_ns, timing.idle_ns) == (7, 8, 5, 6)


def test_the_scheduler_reads_failures_and_skips():
    failure = ex.StepFailure(ex.ErrorCode.DATA_LOSS, "another token", "prefills[2]", (4, 5))
    failed = decode_result(executor_wire.encode_failure(9, 0, failure))
    assert failed == StepFailed(9, "DATA_LOSS", "prefills[2]", "another token", (4, 5))
    assert decode_result(executor_wire.encode_skipped(10)) is None


@pytest.mark.parametrize(
    "message",
    [
        pb.StepResult(step_id=1),
        pb.StepResult(step_id=1, status=pb.STEP_STATUS_OK, rows=b"123"),
        pb.StepResult(step_id=1, status=pb.STEP_STATUS_OK, rows=pack_int32([1])),
        pb.StepResult(
            step_id=1,
            status=pb.STEP_STATUS_OK,
            rows=pack_int32([1]),
            token_ids=pack_int32([1]),
            row_statuses=pack_int32([1, 1]),
        ),
        pb.StepResult(
            status=pb.STEP_STATUS_OK, logprobs=[pb.RowLogprobs(row=1, alternative_ids=pack_int32([1]))]
        ),
        pb.StepResult(status=pb.STEP_STATUS_OK, prompt_logprobs=[pb.PromptLogprobs(row=1)]),
    ],
)
def test_a_malformed_result_is_an_error_and_no_result(message: pb.StepResult):
    with pytest.raises(WireError):
        decode_result(message)


@pytest.mark.parametrize("num_biases", [0, 1024])
def test_256_short_prompts_start_in_plans_under_two_mebibytes(num_biases: int):
    session = Session("x", 200_000, 16, 256, 32_768, 8192, 151_936)
    core = Scheduler(CoreConfig(8192, pipeline_depth=8), session)
    sampling = Sampling(logit_bias=tuple((token_id, 1.0) for token_id in range(num_biases)))
    for index in range(256):
        core.add_request(
            Request(str(index), np.full(32, index, np.int32), max_tokens=64, sampling=sampling), 0
        )
    sizes = []
    num_starts = 0
    while num_starts < 256:
        plan = core.schedule(0.0)
        assert plan is not None
        num_starts += len(plan.starts)
        sizes.append(encode_plan(plan).plan.ByteSize())
    assert max(sizes) <= 2 * 1024 * 1024
    assert len(sizes) <= 4


@pytest.mark.parametrize(
    "field", [field.name for field in pb.ExecutorDescription.DESCRIPTOR.fields if field.type == 5]
)
def test_an_executor_of_sizes_that_cannot_serve_is_refused_by_name(field: str):
    sizes = {
        other.name: 2 for other in pb.ExecutorDescription.DESCRIPTOR.fields if other.type == other.TYPE_INT32
    }
    assert decode_session(pb.ExecutorDescription(**sizes)).num_blocks == 2
    with pytest.raises(WireError, match=field):
        decode_session(pb.ExecutorDescription(**(sizes | {field: 0})))
