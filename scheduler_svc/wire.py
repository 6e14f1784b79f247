"""Between the core's types and the executor's protobuf: the one file that knows both."""

from collections.abc import Sequence
from dataclasses import dataclass

from nanoserve.arrays import pack_float32, pack_int32, unpack_float32, unpack_int32
from nanoserve.executor.v1 import executor_pb2 as pb
from scheduler_svc.core.request import Int32Array, Sampling
from scheduler_svc.core.step import PromptSlice, SequenceStart, Session, StepOutputs, StepPlan, StepResult
from scheduler_svc.messages import PromptLogprobs, TokenBatch, TokenLogprobs

_LEAST_SIZES = {
    "num_blocks": 2,
    "block_size": 1,
    "max_num_seqs": 1,
    "max_model_len": 2,
    "max_num_batched_tokens": 1,
    "max_num_decode_steps": 1,
    "max_plans_in_flight": 1,
    "vocab_size": 1,
}
_STATUS_OK = int(pb.STEP_STATUS_OK)
_ROW_OK = int(pb.ROW_STATUS_OK)


class WireError(Exception):
    """A message from the executor that breaks the contract."""


@dataclass(frozen=True, slots=True)
class StepTiming:
    """Where a step's time went, in nanoseconds; see StepTiming in executor.proto."""

    queue_ns: int
    host_ns: int
    device_ns: int
    idle_ns: int


@dataclass(frozen=True, slots=True)
class StepReport:
    """A sub-step that ran: what the core takes in, and what goes round it."""

    result: StepResult
    logprobs: dict[int, TokenLogprobs]
    """By row."""
    prompt_logprobs: tuple[PromptLogprobs, ...]
    """One for each of `result.prompt_slices`."""
    row_errors: dict[int, str]
    """Why rows could not sample."""
    timing: StepTiming


@dataclass(frozen=True, slots=True)
class StepFailed:
    """A plan that was refused or failed."""

    step_id: int
    code: str
    field: str
    description: str
    rows: tuple[int, ...]
    """Rows known to be at fault."""


def decode_session(description: pb.ExecutorDescription) -> Session:
    """The sizes of an executor; WireError where they could not serve."""
    for name, least in _LEAST_SIZES.items():
        if getattr(description, name) < least:
            raise WireError(f"description.{name} is {getattr(description, name)}, must be at least {least}")
    return Session(
        instance_id=description.instance_id,
        num_blocks=description.num_blocks,
        block_size=description.block_size,
        max_num_seqs=description.max_num_seqs,
        max_model_len=description.max_model_len,
        max_num_batched_tokens=description.max_num_batched_tokens,
        vocab_size=description.vocab_size,
        max_num_decode_steps=description.max_num_decode_steps,
        max_plans_in_flight=description.max_plans_in_flight,
    )


def encode_plan(plan: StepPlan) -> pb.ExecuteRequest:
    """The message that sends a plan."""
    request = pb.ExecuteRequest()
    message = request.plan  # filled in place: a message given to another is copied
    message.step_id = plan.step_id
    message.num_decode_steps = plan.num_decode_steps
    # Most plans only decode, most of them the rows of the plan before.
    packed = plan.packed_decode_rows
    message.decode_rows = pack_int32(plan.decode_rows) if packed is None else packed
    if plan.num_decode_steps > 1:
        message.decode_row_steps = pack_int32(plan.decode_row_steps)
    if plan.release_rows:
        message.release_rows = pack_int32(plan.release_rows)
    if plan.new_block_rows:
        message.new_block_rows = pack_int32(plan.new_block_rows)
    if plan.new_block_ids:
        message.new_block_ids = pack_int32(plan.new_block_ids)
    if plan.starts:
        message.starts.extend(map(_encode_start, plan.starts))
    for row, first, count, samples in plan.prefills:
        message.prefills.add(row=row, first_position=first, num_tokens=count, samples=samples)
    for row, mask in plan.masks:
        message.masks.add(row=row, **{mask.form.value: mask.data})
    return request


def _encode_start(start: SequenceStart) -> pb.StartRow:
    return pb.StartRow(
        row=start.row,
        token_ids=pack_int32(start.token_ids),
        num_prompt_tokens=start.num_prompt_tokens,
        num_computed_tokens=start.num_computed_tokens,
        block_table=pack_int32(start.block_table),
        sampling=_encode_sampling(start.sampling, start.min_tokens, start.end_token_ids),
        seed=start.seed,
    )


def _encode_sampling(sampling: Sampling, min_tokens: int, end_token_ids: Sequence[int]) -> pb.RowSampling:
    message = pb.RowSampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
    )
    if sampling.logit_bias:
        message.logit_bias_ids = pack_int32([token_id for token_id, _ in sampling.logit_bias])
        message.logit_bias = pack_float32([bias for _, bias in sampling.logit_bias])
    if min_tokens > 0:
        message.min_tokens = min_tokens
        message.end_token_ids = pack_int32(end_token_ids)
    return message


def decode_result(message: pb.StepResult) -> StepReport | StepFailed | None:
    """What a result says; None for a plan skipped behind a failed one. WireError where it is malformed."""
    if message.status == pb.STEP_STATUS_SKIPPED:
        return None
    try:
        if message.status == pb.STEP_STATUS_FAILED:
            return _decode_failure(message)
        if message.status != _STATUS_OK:
            raise WireError(f"step {message.step_id}: status {message.status} is unknown")
        return _decode_report(message)
    except ValueError as error:
        raise WireError(f"step {message.step_id}: {error}") from error


def _decode_failure(message: pb.StepResult) -> StepFailed:
    error = message.error
    code = pb.StepErrorCode.Name(error.code).removeprefix("STEP_ERROR_CODE_")
    rows = tuple(unpack_int32(error.rows).tolist())
    return StepFailed(message.step_id, code, error.field, error.description, rows)


def _decode_report(message: pb.StepResult) -> StepReport:
    rows, token_ids = unpack_int32(message.rows), unpack_int32(message.token_ids)
    statuses = unpack_int32(message.row_statuses)
    if len(token_ids) != len(rows) or len(statuses) not in (0, len(rows)):
        raise WireError(f"step {message.step_id}: rows, token_ids and row_statuses differ in length")
    failed = statuses != _ROW_OK if len(statuses) else None
    prompts = tuple(map(_decode_prompt_logprobs, message.prompt_logprobs))
    slices = tuple(
        PromptSlice(piece.row, piece.first_position, len(prompt.logprobs))
        for piece, prompt in zip(message.prompt_logprobs, prompts, strict=True)
    )
    result = StepResult(
        message.step_id, message.sub_step, message.last, rows, token_ids, failed, prompt_slices=slices
    )
    logprobs = {entry.row: _decode_logprobs(entry) for entry in message.logprobs}
    timing = message.timing
    times = StepTiming(timing.queue_ns, timing.host_ns, timing.device_ns, timing.idle_ns)
    return StepReport(result, logprobs, prompts, _row_errors(rows, statuses), times)


def _row_errors(rows: Int32Array, statuses: Int32Array) -> dict[int, str]:
    if not len(statuses):
        return {}  # all are OK
    names = {value: name.removeprefix("ROW_STATUS_") for name, value in pb.RowStatus.items()}
    return {
        row: names.get(status, str(status))
        for row, status in zip(rows.tolist(), statuses.tolist(), strict=False)
        if status != _ROW_OK
    }


def _decode_logprobs(entry: pb.RowLogprobs) -> TokenLogprobs:
    ids, logprobs = unpack_int32(entry.alternative_ids), unpack_float32(entry.alternative_logprobs)
    if len(ids) != len(logprobs):
        raise WireError(f"logprobs of row {entry.row}: alternatives differ in length")
    return TokenLogprobs(entry.token_logprob, entry.token_rank, ids, logprobs)


def _decode_prompt_logprobs(piece: pb.PromptLogprobs) -> PromptLogprobs:
    logprobs, ranks = unpack_float32(piece.token_logprobs), unpack_int32(piece.token_ranks)
    ids, alternatives = unpack_int32(piece.alternative_ids), unpack_float32(piece.alternative_logprobs)
    num_positions = len(logprobs)
    if not num_positions or len(ranks) != num_positions or len(ids) != len(alternatives):
        raise WireError(f"prompt_logprobs of row {piece.row}: lengths differ")
    if len(ids) % num_positions:
        raise WireError(f"prompt_logprobs of row {piece.row}: not as many alternatives for each position")
    shape = (num_positions, len(ids) // num_positions)
    return PromptLogprobs(
        piece.first_position, logprobs, ranks, ids.reshape(shape), alternatives.reshape(shape)
    )


def token_batch(outputs: StepOutputs, report: StepReport) -> TokenBatch:
    """The columns of a result, with the log-probabilities that belong to them."""
    logprobs = {}
    if report.logprobs:
        rows = report.result.rows[outputs.result_indices].tolist()
        logprobs = {i: report.logprobs[row] for i, row in enumerate(rows) if row in report.logprobs}
    prompts = tuple(
        (sequence_id, report.prompt_logprobs[index].without(num_known))
        for sequence_id, index, num_known in outputs.prompt_slices
    )
    return TokenBatch(outputs.sequence_ids, outputs.token_ids, outputs.finishes, logprobs, prompts)
