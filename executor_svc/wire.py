"""Protobuf to plans, and results to protobuf: the one file that knows both. What values mean is not judged here."""

from dataclasses import dataclass

import numpy as np

from executor_svc.plan import (
    Prefill,
    PromptLogprobs,
    RowLogprobs,
    RowMask,
    RowSampling,
    RowStatus,
    StartRow,
    StepFailure,
    StepPlan,
    SubStepOutput,
)
from executor_svc.plan_checks import check_ids, invalid
from executor_svc.runner import RunnerLimits
from nanoserve.arrays import Float32Array, Int32Array, pack_float32, pack_int32, unpack_float32, unpack_int32
from nanoserve.executor.v1 import executor_pb2 as pb

# Numpy compares with an int in a tenth of the time that it takes with an IntEnum.
_ROW_OK = int(RowStatus.OK)
MAX_PLAN_BYTES = 2 * 1024 * 1024
_DEFAULT_SAMPLING = RowSampling()
_NO_INTS = unpack_int32(b"")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who an executor is: what its description says beside the runner's limits."""

    instance_id: str
    model_fingerprint: str
    weights_fingerprint: str
    version: str


def decode_plan(plan: pb.StepPlan, vocab_size: int) -> StepPlan:
    """Decodes a plan; StepFailure INVALID_ARGUMENT, naming the field, where it is malformed.

    Malformed: over 2 MiB without its masks, arrays that are not whole numbers of elements, masks that do not fit the
    vocabulary. The ranges of the values, which depend on the limits and on the rows, are RowTable's to check.
    """
    # A mask has no more bits than there are tokens, and a row no more than one: they are bounded without it.
    size = plan.ByteSize() - sum(mask.ByteSize() for mask in plan.masks)
    if size > MAX_PLAN_BYTES:
        raise invalid("", f"a plan of {size} bytes, above {MAX_PLAN_BYTES}")
    num_decode_steps = plan.num_decode_steps or 1
    decode_rows = _ints("decode_rows", plan.decode_rows)
    starts = [_decode_start(f"starts[{i}]", start) for i, start in enumerate(plan.starts)]
    masks = [_decode_mask(f"masks[{i}]", mask, vocab_size) for i, mask in enumerate(plan.masks)]
    if plan.decode_row_steps:
        decode_row_steps = _ints("decode_row_steps", plan.decode_row_steps)
    else:
        decode_row_steps = np.full(len(decode_rows), num_decode_steps, np.int32)
    return StepPlan(
        step_id=plan.step_id,
        release_rows=_ints("release_rows", plan.release_rows),
        starts=tuple(starts),
        new_block_rows=_ints("new_block_rows", plan.new_block_rows),
        new_block_ids=_ints("new_block_ids", plan.new_block_ids),
        prefills=tuple(Prefill(p.row, p.first_position, p.num_tokens, p.samples) for p in plan.prefills),
        decode_rows=decode_rows,
        decode_row_steps=decode_row_steps,
        num_decode_steps=num_decode_steps,
        masks=tuple(masks),
        encode=plan.SerializeToString,
    )


def _ints(field: str, data: bytes) -> Int32Array:
    if not data:
        return _NO_INTS
    if len(data) % 4:
        raise invalid(field, f"{len(data)} bytes, not a multiple of 4")
    return unpack_int32(data)


def _floats(field: str, data: bytes) -> Float32Array:
    if len(data) % 4:
        raise invalid(field, f"{len(data)} bytes, not a multiple of 4")
    return unpack_float32(data)


def _decode_start(field: str, start: pb.StartRow) -> StartRow:
    has_sampling = start.HasField("sampling")
    return StartRow(
        row=start.row,
        token_ids=_ints(f"{field}.token_ids", start.token_ids),
        num_prompt_tokens=start.num_prompt_tokens,
        num_computed_tokens=start.num_computed_tokens,
        block_table=_ints(f"{field}.block_table", start.block_table),
        sampling=_decode_sampling(f"{field}.sampling", start.sampling) if has_sampling else _DEFAULT_SAMPLING,
        seed=start.seed,
    )


def _decode_sampling(field: str, sampling: pb.RowSampling) -> RowSampling:
    has = sampling.HasField
    return RowSampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p if has("top_p") else 1.0,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty if has("repetition_penalty") else 1.0,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        logit_bias_ids=_ints(f"{field}.logit_bias_ids", sampling.logit_bias_ids),
        logit_bias=_floats(f"{field}.logit_bias", sampling.logit_bias),
        min_tokens=sampling.min_tokens,
        end_token_ids=_ints(f"{field}.end_token_ids", sampling.end_token_ids),
        logprobs=sampling.logprobs if has("logprobs") else None,
        prompt_logprobs=sampling.prompt_logprobs if has("prompt_logprobs") else None,
        report_gap=sampling.report_gap,
    )


def _decode_mask(field: str, mask: pb.RowMask, vocab_size: int) -> RowMask:
    form = mask.WhichOneof("mask")
    if form is None:
        raise invalid(f"{field}.mask", "is not set", (mask.row,))
    if form == "allowed_bits":
        bits = np.frombuffer(mask.allowed_bits, np.uint8)
        if len(bits) != -(-vocab_size // 8):
            what = f"{len(bits)} bytes, not {-(-vocab_size // 8)} for {vocab_size} tokens"
            raise invalid(f"{field}.allowed_bits", what, (mask.row,))
        return RowMask(mask.row, bits)
    ids = _ints(f"{field}.{form}", mask.allowed_ids if form == "allowed_ids" else mask.forbidden_ids)
    check_ids(f"{field}.{form}", ids, 0, vocab_size, (mask.row,))
    listed = np.zeros(-(-vocab_size // 8), np.uint8)
    np.bitwise_or.at(listed, ids >> 3, np.left_shift(1, ids & 7, dtype=np.uint8, casting="unsafe"))
    return RowMask(mask.row, listed if form == "allowed_ids" else ~listed)


def encode_result(
    step_id: int, sub_step: int, last: bool, output: SubStepOutput, queue_ns: int, host_ns: int
) -> pb.StepResult:
    """Encodes what a sub-step sampled. `queue_ns` and `host_ns` are the plan's: give 0 after its first sub-step."""
    result = pb.StepResult(
        step_id=step_id,
        sub_step=sub_step,
        last=last,
        status=pb.STEP_STATUS_OK,
        rows=pack_int32(output.rows),
        token_ids=pack_int32(output.token_ids),
        timing=pb.StepTiming(
            queue_ns=queue_ns, host_ns=host_ns, device_ns=output.device_ns, idle_ns=output.idle_ns
        ),
    )
    if np.count_nonzero(output.row_statuses != _ROW_OK):
        result.row_statuses = pack_int32(output.row_statuses)
    if output.logprobs:
        result.logprobs.extend(map(_encode_logprobs, output.logprobs))
    if output.prompt_logprobs:
        result.prompt_logprobs.extend(map(_encode_prompt_logprobs, output.prompt_logprobs))
    if len(output.gaps):
        result.gaps = pack_float32(output.gaps)
    return result


def _encode_logprobs(entry: RowLogprobs) -> pb.RowLogprobs:
    return pb.RowLogprobs(
        row=entry.row,
        token_logprob=entry.token_logprob,
        token_rank=entry.token_rank,
        alternative_ids=pack_int32(entry.alternative_ids),
        alternative_logprobs=pack_float32(entry.alternative_logprobs),
    )


def _encode_prompt_logprobs(entry: PromptLogprobs) -> pb.PromptLogprobs:
    return pb.PromptLogprobs(
        row=entry.row,
        first_position=entry.first_position,
        token_logprobs=pack_float32(entry.token_logprobs),
        token_ranks=pack_int32(entry.token_ranks),
        alternative_ids=pack_int32(entry.alternative_ids),
        alternative_logprobs=pack_float32(entry.alternative_logprobs),
    )


def encode_failure(step_id: int, sub_step: int, failure: StepFailure) -> pb.StepResult:
    """Encodes the failure of a plan, at the sub-step given; nothing of the plan follows."""
    error = pb.StepError(
        code=f"STEP_ERROR_CODE_{failure.code.name}",
        field=failure.field,
        description=failure.description,
        rows=pack_int32(failure.rows),
    )
    return pb.StepResult(
        step_id=step_id, sub_step=sub_step, last=True, status=pb.STEP_STATUS_FAILED, error=error
    )


def encode_skipped(step_id: int) -> pb.StepResult:
    """Encodes the answer to a plan that came after a failed one."""
    return pb.StepResult(step_id=step_id, last=True, status=pb.STEP_STATUS_SKIPPED)


def encode_description(
    limits: RunnerLimits, device: str, dtype: str, identity: Identity
) -> pb.ExecutorDescription:
    """Encodes what an executor is."""
    return pb.ExecutorDescription(
        instance_id=identity.instance_id,
        num_blocks=limits.num_blocks,
        block_size=limits.block_size,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_decode_steps=limits.max_num_decode_steps,
        max_plans_in_flight=limits.max_plans_in_flight,
        vocab_size=limits.vocab_size,
        model_fingerprint=identity.model_fingerprint,
        weights_fingerprint=identity.weights_fingerprint,
        device=device,
        dtype=dtype,
        version=identity.version,
    )
