"""What a sub-step computed, on its way from the device to the session."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from executor_svc.logprobs import TokenLogprobs
from executor_svc.plan import PromptLogprobs, RowLogprobs, RowStatus, SubStepOutput
from executor_svc.row_params import BoolArray
from executor_svc.sampler import SampledTokens
from nanoserve.arrays import Float32Array, Int32Array

CopyTensor = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class SubStepTensors:
    """What a sub-step computed, and what its rows had asked for when it was launched."""

    rows: Int32Array
    """The rows that sampled; results may have more entries, which are padding."""
    sampled: SampledTokens | None = None
    """None where no row samples."""
    wanted_logprobs: Int32Array | None = None
    """Alternatives to report for each of `rows`, -1 for nothing; None where no row asked."""
    reports_gap: BoolArray | None = None
    """Which of `rows` report their gap; None where none does."""
    logprobs: TokenLogprobs | None = None
    """Of the tokens of the rows that asked, with as many alternatives as the one that wants most; None: none asked."""
    prompt_logprobs: tuple[tuple[int, int, TokenLogprobs], ...] = ()
    """Row, first position judged, and the log-probabilities of a slice."""

    def to(self, copy: CopyTensor) -> "SubStepTensors":
        """The same with what `copy` makes of every tensor."""
        return replace(
            self,
            sampled=None if self.sampled is None else self.sampled.to(copy),
            logprobs=None if self.logprobs is None else self.logprobs.to(copy),
            prompt_logprobs=tuple((row, first, part.to(copy)) for row, first, part in self.prompt_logprobs),
        )


def to_output(tensors: SubStepTensors, device_ns: int, idle_ns: int) -> SubStepOutput:
    """What the session is told; all tensors must be on the host."""
    prompt_logprobs = tuple(
        PromptLogprobs(row, first_position, *judged.arrays())
        for row, first_position, judged in tensors.prompt_logprobs
    )
    if tensors.sampled is None:
        none = np.empty(0, np.int32)
        return SubStepOutput(
            none, none, none, prompt_logprobs=prompt_logprobs, device_ns=device_ns, idle_ns=idle_ns
        )
    rows = tensors.rows
    # Copied, as the tensors may be filled again.
    token_ids, statuses = tensors.sampled.results[:, : len(rows)].numpy().copy()
    succeeded = statuses == RowStatus.OK
    gaps: Float32Array = np.empty(0, np.float32)
    if tensors.sampled.gaps is not None:
        gaps = np.where(tensors.reports_gap & succeeded, tensors.sampled.gaps.numpy(), np.float32(np.nan))
    return SubStepOutput(
        rows=rows,
        token_ids=np.where(succeeded, token_ids, np.int32(-1)),
        row_statuses=statuses,
        logprobs=_row_logprobs(tensors, succeeded),
        prompt_logprobs=prompt_logprobs,
        gaps=gaps,
        device_ns=device_ns,
        idle_ns=idle_ns,
    )


def _row_logprobs(tensors: SubStepTensors, succeeded: np.ndarray) -> tuple[RowLogprobs, ...]:
    """Those of the rows that asked and sampled a token, each cut to its own number of alternatives."""
    wanted = tensors.wanted_logprobs
    if tensors.logprobs is None or wanted is None:
        return ()
    own, ranks, ids, alternatives = tensors.logprobs.arrays()
    return tuple(
        RowLogprobs(
            row=int(tensors.rows[index]),
            token_logprob=float(own[place]),
            token_rank=int(ranks[place]),
            alternative_ids=ids[place, : wanted[index]],
            alternative_logprobs=alternatives[place, : wanted[index]],
        )
        for place, index in enumerate(np.flatnonzero(wanted >= 0).tolist())
        if succeeded[index]
    )
