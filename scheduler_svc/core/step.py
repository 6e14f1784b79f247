"""What the core and its shell exchange: a session's sizes, the plan of a step, its result, the outputs it makes.

The plan says everything that the shell must send; the core is the same whether an executor is real or not.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler_svc.core.masks import RowMask
from scheduler_svc.core.request import Int32Array, Int64Array, Sampling
from scheduler_svc.core.sequence import Sequence

NO_ROWS: Int32Array = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Session:
    """Sizes of the executor that a session is open with. All counts; see ExecutorDescription."""

    instance_id: str
    num_blocks: int
    """Block 0 included, which is never given out."""
    block_size: int
    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    vocab_size: int
    max_num_decode_steps: int = 1
    max_plans_in_flight: int = 8


class SequenceStart(NamedTuple):
    """Begins a sequence on a row of the executor."""

    row: int
    sequence_id: int
    token_ids: Int32Array
    """All known tokens, prompt first."""
    num_prompt_tokens: int
    num_computed_tokens: int
    """Prefix hits, in tokens: a multiple of block_size, less than the known tokens."""
    block_table: list[int]
    """Blocks for all known tokens."""
    sampling: Sampling
    """With `prompt_logprobs` only while the sequence still owes them."""
    seed: int
    min_tokens: int
    end_token_ids: tuple[int, ...]
    is_restart: bool
    """Whether the sequence was started before: preempted, or carried over a lost session."""
    num_preemptions: int
    """How many times it was preempted so far."""

    @classmethod
    def of(cls, sequence: Sequence, num_computed_tokens: int) -> "SequenceStart":
        """The start of a sequence that has just got its row and blocks."""
        request = sequence.request
        sampling = request.sampling
        if sampling.prompt_logprobs is not None and not sequence.owes_prompt_logprobs:
            sampling = replace(sampling, prompt_logprobs=None)
        return cls(
            row=sequence.row,
            sequence_id=sequence.sequence_id,
            token_ids=sequence.token_ids,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_computed_tokens=num_computed_tokens,
            block_table=list(sequence.block_table),
            sampling=sampling,
            seed=sequence.seed,
            # The masks of a guided sequence say when it may end.
            min_tokens=request.min_tokens if request.guide is None else 0,
            end_token_ids=request.end_token_ids,
            is_restart=sequence.was_started,
            num_preemptions=sequence.num_preemptions,
        )


class PrefillChunk(NamedTuple):
    """A run of known tokens to compute."""

    row: int
    first_position: int
    num_tokens: int
    samples: bool
    """Whether the run ends the known tokens and so samples the next one."""


class StepPlan(NamedTuple):
    """What one step does, in the order in which the executor applies it."""

    step_id: int
    release_rows: list[int]
    starts: list[SequenceStart]
    new_block_rows: list[int]
    new_block_ids: list[int]
    prefills: list[PrefillChunk]
    decode_rows: Int32Array
    decode_row_steps: Int32Array
    """Tokens that each decode row advances, in [1, num_decode_steps]."""
    decode_ends: Int64Array
    """Positions of each decode row that are computed once the plan has run."""
    num_decode_steps: int
    packed_decode_rows: bytes | None = None
    """The decode rows as little-endian int32, where an earlier plan had the same."""
    masks: tuple[RowMask, ...] | list[RowMask] = ()
    """Of the guided rows that sample in the plan."""

    @property
    def num_tokens(self) -> int:
        """Tokens the step computes, over all sub-steps."""
        return sum(chunk.num_tokens for chunk in self.prefills) + int(self.decode_row_steps.sum())

    @property
    def num_context_tokens(self) -> int:
        """KV positions that its attention reads, over all sub-steps: what a cost model needs."""
        ends, steps = self.decode_ends, self.decode_row_steps
        decoded = int((ends * steps - steps * (steps - 1) // 2).sum())
        return decoded + sum(chunk.first_position + chunk.num_tokens for chunk in self.prefills)


class PromptSlice(NamedTuple):
    """Which prompt positions a result judges: log-probabilities themselves stay with the shell."""

    row: int
    first_position: int
    num_positions: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one sub-step of a plan sampled. Only for steps that ran; a failure is told by `Scheduler.reset`."""

    step_id: int
    sub_step: int
    last: bool
    """Whether this is the plan's last sub-step."""
    rows: Int32Array
    token_ids: Int32Array
    failed: NDArray[np.bool_] | None = None
    """Rows that could not sample; None where all did."""
    prompt_slices: tuple[PromptSlice, ...] = ()


class StepOutputs(NamedTuple):
    """Tokens that became known, as columns of one length: a sequence appears at most once."""

    sequence_ids: Int64Array
    token_ids: Int32Array
    finishes: NDArray[np.int8]
    """A `Finish` for each."""
    result_indices: Int64Array
    """Where in the result each came from, so that the shell finds its log-probabilities."""
    prompt_slices: tuple[tuple[int, int, int], ...] | list[tuple[int, int, int]] = ()
    """(sequence id, index in the result's prompt_slices, positions to skip because they came before)."""

    def joined(self, other: "StepOutputs") -> "StepOutputs":
        """Both, as one."""
        return StepOutputs(
            np.concatenate([self.sequence_ids, other.sequence_ids]),
            np.concatenate([self.token_ids, other.token_ids]),
            np.concatenate([self.finishes, other.finishes]),
            np.concatenate([self.result_indices, other.result_indices]),
            [*self.prompt_slices, *other.prompt_slices],
        )


class ResultMismatch(Exception):
    """A result that does not answer the plan it names: the executor is broken and its session must end."""
