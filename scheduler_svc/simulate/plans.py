"""The core's plans as the executor's, and the executor's outputs as the core's results: no wire between them."""

import numpy as np

from executor_svc.virtual import Prefill, RowMask, RowSampling, RunnerLimits, StartRow, SubStepOutput
from executor_svc.virtual import StepPlan as ExecutorPlan
from scheduler_svc.core.request import Sampling
from scheduler_svc.core.step import PromptSlice, SequenceStart, Session, StepPlan, StepResult


def to_limits(session: Session) -> RunnerLimits:
    """The sizes of the executor that a session is open with."""
    return RunnerLimits(
        num_blocks=session.num_blocks,
        block_size=session.block_size,
        max_num_seqs=session.max_num_seqs,
        max_model_len=session.max_model_len,
        max_num_batched_tokens=session.max_num_batched_tokens,
        max_num_decode_steps=session.max_num_decode_steps,
        max_plans_in_flight=session.max_plans_in_flight,
        vocab_size=session.vocab_size,
    )


def to_executor(plan: StepPlan, vocab_size: int = 0) -> ExecutorPlan:
    """A core's plan as the executor's; `vocab_size` is needed where it has masks."""
    return ExecutorPlan(
        step_id=plan.step_id,
        release_rows=np.array(plan.release_rows, np.int32),
        starts=tuple(_to_start(start) for start in plan.starts),
        new_block_rows=np.array(plan.new_block_rows, np.int32),
        new_block_ids=np.array(plan.new_block_ids, np.int32),
        prefills=tuple(Prefill(*chunk) for chunk in plan.prefills),
        decode_rows=plan.decode_rows,
        decode_row_steps=plan.decode_row_steps,
        num_decode_steps=plan.num_decode_steps,
        masks=tuple(RowMask.of(row, mask.allowed(vocab_size)) for row, mask in plan.masks),
    )


def to_result(step_id: int, sub_step: int, last: bool, output: SubStepOutput) -> StepResult:
    """An executor's output, in which every row sampled, as the result that the core gets."""
    slices = tuple(
        PromptSlice(piece.row, piece.first_position, len(piece.token_logprobs))
        for piece in output.prompt_logprobs
    )
    return StepResult(step_id, sub_step, last, output.rows, output.token_ids, prompt_slices=slices)


def _to_start(start: SequenceStart) -> StartRow:
    return StartRow(
        row=start.row,
        token_ids=start.token_ids,
        num_prompt_tokens=start.num_prompt_tokens,
        num_computed_tokens=start.num_computed_tokens,
        block_table=np.array(start.block_table, np.int32),
        sampling=_to_sampling(start.sampling),
        seed=start.seed,
    )


def _to_sampling(sampling: Sampling) -> RowSampling:
    """What the virtual executor reads of it: having no logits, it knows neither temperature nor penalties."""
    return RowSampling(logprobs=sampling.logprobs, prompt_logprobs=sampling.prompt_logprobs)
