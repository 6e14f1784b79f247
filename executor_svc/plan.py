"""What an executor is told and what it answers, as plain data: the contract without protobuf.

Field meanings, units and ranges are those of protos/nanoserve/executor/v1/executor.proto.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from nanoserve.arrays import Float32Array, Int32Array

_NO_INTS: Int32Array = np.empty(0, np.int32)
_NO_FLOATS: Float32Array = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How a row samples and what it reports. Defaults are neutral."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias_ids: Int32Array = field(default_factory=lambda: _NO_INTS)
    logit_bias: Float32Array = field(default_factory=lambda: _NO_FLOATS)
    min_tokens: int = 0
    end_token_ids: Int32Array = field(default_factory=lambda: _NO_INTS)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    report_gap: bool = False


@dataclass(frozen=True, slots=True)
class StartRow:
    """Begins a sequence on a row."""

    row: int
    token_ids: Int32Array
    num_prompt_tokens: int
    num_computed_tokens: int
    block_table: Int32Array
    sampling: RowSampling
    seed: int


@dataclass(frozen=True, slots=True)
class Prefill:
    """A run of known tokens to compute on one row."""

    row: int
    first_position: int
    num_tokens: int
    samples: bool


@dataclass(frozen=True, slots=True)
class RowMask:
    """Which tokens a guided row may sample."""

    row: int
    allowed_bits: NDArray[np.uint8]
    """One bit a token, least significant first: [ceil(vocab_size / 8)]; those beyond the vocabulary do not count."""

    @classmethod
    def of(cls, row: int, allowed: NDArray[np.bool_]) -> "RowMask":
        """The mask that allows what `allowed`, [vocab_size], does."""
        return cls(row, np.packbits(allowed, bitorder="little"))

    def allowed(self, vocab_size: int) -> NDArray[np.bool_]:
        """Which tokens are allowed, [vocab_size]."""
        return np.unpackbits(self.allowed_bits, count=vocab_size, bitorder="little").view(np.bool_)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step does. Arrays are one-dimensional int32."""

    step_id: int
    release_rows: Int32Array
    starts: tuple[StartRow, ...]
    new_block_rows: Int32Array
    new_block_ids: Int32Array
    prefills: tuple[Prefill, ...]
    decode_rows: Int32Array
    decode_row_steps: Int32Array
    """One entry a decode row, in [1, num_decode_steps]."""
    num_decode_steps: int
    masks: tuple[RowMask, ...]
    encode: Callable[[], bytes] | None = field(default=None, compare=False, repr=False)
    """Makes the message that the plan came as, for other ranks; None where it did not come as one."""


@dataclass(frozen=True, slots=True)
class Step:
    """A validated plan, with the positions that the executor knows and the plan leaves out."""

    plan: StepPlan
    decode_positions: Int32Array
    """Position of the token each decode row computes in sub-step 0: the one it sampled last."""


class RowStatus(IntEnum):
    """What became of one row of a step that ran."""

    OK = 1
    NON_FINITE_LOGITS = 2
    NO_TOKEN_ALLOWED = 3


class ErrorCode(IntEnum):
    """Kinds of step failure."""

    INVALID_ARGUMENT = 1
    RESOURCE_EXHAUSTED = 2
    UNIMPLEMENTED = 3
    INTERNAL = 4
    DATA_LOSS = 5


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """Log-probabilities of one sampled token."""

    row: int
    token_logprob: float
    token_rank: int
    alternative_ids: Int32Array
    alternative_logprobs: Float32Array


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of up to 256 consecutive prompt tokens; alternatives are [num_positions, alternatives]."""

    row: int
    first_position: int
    token_logprobs: Float32Array
    token_ranks: Int32Array
    alternative_ids: Int32Array
    alternative_logprobs: Float32Array


@dataclass(frozen=True, slots=True)
class SubStepOutput:
    """What one sub-step sampled: `rows`, `token_ids` and `row_statuses` are int32 of one length."""

    rows: Int32Array
    token_ids: Int32Array
    row_statuses: Int32Array
    logprobs: tuple[RowLogprobs, ...] = ()
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
    gaps: Float32Array = field(default_factory=lambda: _NO_FLOATS)
    device_ns: int = 0
    idle_ns: int = 0


class StepFailure(Exception):
    """A step that failed as a whole: what StepError says."""

    def __init__(
        self, code: ErrorCode, description: str, field: str = "", rows: tuple[int, ...] = ()
    ) -> None:
        super().__init__(f"{field}: {description}" if field else description)
        self.code = code
        self.field = field
        self.description = description
        self.rows = rows
