"""Chooses a token for each row: argmax(processed logits + noise), all rows of a step at once.

Processing, in order: logit bias; repetition, frequency and presence penalty; end tokens forbidden below min_tokens;
masks; and for rows with a temperature: temperature, top-k, top-p, min-p, noise. Equal logits rank by id, lowest first.
Rows of temperature 0 take the best processed logit. What no row of the step needs is not done.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from executor_svc.batch import BatchState
from executor_svc.layers.ops import FilteredSampler, Ops
from executor_svc.noise import gumbel_noise
from executor_svc.plan import RowStatus
from executor_svc.row_params import BoolArray
from executor_svc.row_slices import row_slices
from nanoserve.arrays import Int32Array


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """The rows that sample in a step: arrays [num_rows]."""

    state: BatchState
    rows: Int32Array
    positions: Int32Array
    """The position that each row's sampled token will have."""
    masks: Mapping[int, NDArray[np.uint8]]
    """For guided rows, by row: which tokens are allowed, as RowMask has it."""

    def part(self, some: slice | NDArray[np.intp]) -> "SamplingRows":
        """Some of them."""
        rows = self.rows[some]
        masks = {row: self.masks[row] for row in rows.tolist() if row in self.masks} if self.masks else {}
        return SamplingRows(self.state, rows, self.positions[some], masks)

    def special(self) -> BoolArray:
        """Which of them need more than temperature and noise."""
        needs, rows = self.state.needs, self.rows
        special: BoolArray = needs.special[rows] | (self.positions < needs.first_end_position[rows])
        if self.masks:
            special |= np.isin(rows, list(self.masks))
        return special

    def only_restricted(self) -> BoolArray:
        """Which of them need no more than a mask, top-k, top-p or min-p."""
        needs, rows = self.state.needs, self.rows
        more: BoolArray = needs.logit_bias[rows] | needs.penalties[rows] | needs.reports_gap[rows]
        return ~(more | (self.positions < needs.first_end_position[rows]))


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What was sampled."""

    results: torch.Tensor
    """int32 [2, num_rows]: token ids, 0 where the row failed, so that the device always holds a token; statuses."""
    gaps: torch.Tensor | None
    """float32 [num_rows]: best minus second best of what was compared; None where no row reports it."""

    @property
    def token_ids(self) -> torch.Tensor:
        """int32 [num_rows]."""
        return self.results[0]

    @property
    def statuses(self) -> torch.Tensor:
        """int32 [num_rows], of RowStatus."""
        return self.results[1]

    def to(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> "SampledTokens":
        """The same with what `copy` makes of every tensor."""
        return SampledTokens(copy(self.results), None if self.gaps is None else copy(self.gaps))


def choose(logits: torch.Tensor, batch: SamplingRows, ops: Ops) -> SampledTokens:
    """Samples from raw `logits`, [num_rows, vocab_size] of any float type: fast where rows need nothing special.

    Of a rank among several they are its own columns; the full ones are gathered for the special rows alone.
    """
    state, special = batch.state, batch.special()
    if special.all():
        results = torch.zeros(2, len(special), dtype=torch.int32, device=state.device)
    else:
        rows, positions = state.upload(batch.rows), state.upload(batch.positions)
        params = state.params
        results = torch.stack(ops.sample_rows(logits, rows, positions, params.temperature, params.seeds))
    sampled = SampledTokens(results, None)
    return choose_again(logits, batch, special, sampled, ops) if special.any() else sampled


def choose_again(
    logits: torch.Tensor, batch: SamplingRows, special: BoolArray, sampled: SampledTokens, ops: Ops
) -> SampledTokens:
    """Samples the special rows and puts their results in the place of those that `sampled` has.

    What rank 0 finds holds for all ranks, as some sums of torch's need not give the same last bit twice.
    """
    found = _choose_again(logits, batch, special, sampled, ops)
    return SampledTokens(ops.agree(found.results), found.gaps)


def _choose_again(
    logits: torch.Tensor, batch: SamplingRows, special: BoolArray, sampled: SampledTokens, ops: Ops
) -> SampledTokens:
    if ops.sample_filtered_rows is not None:
        restricted = special & batch.only_restricted()
        if restricted.any():
            _choose_restricted(
                logits, batch, np.flatnonzero(restricted), sampled, ops, ops.sample_filtered_rows
            )
            special = special & ~restricted
    indices = np.flatnonzero(special)
    if not len(indices):
        return sampled
    if len(indices) == len(batch.rows):
        return sample(ops.full_logits(logits[: len(indices)]).float(), batch)
    chosen = batch.state.upload(indices)
    part = sample(ops.full_logits(logits[chosen]).float(), batch.part(indices))
    sampled.results.index_copy_(1, chosen, part.results)
    if part.gaps is None:
        return sampled
    gaps = torch.full((len(special),), torch.nan, device=logits.device)
    return SampledTokens(sampled.results, gaps.index_copy_(0, chosen, part.gaps))


def _choose_restricted(
    logits: torch.Tensor,
    batch: SamplingRows,
    indices: NDArray[np.intp],
    sampled: SampledTokens,
    ops: Ops,
    sample_filtered_rows: FilteredSampler,
) -> None:
    """Puts the results of rows that masks and filters alone restrict into `sampled`."""
    state, params, part = batch.state, batch.state.params, batch.part(indices)
    chosen = state.upload(indices)
    scores = ops.full_logits(logits[chosen])
    finite = scores.amax(dim=-1).isfinite() if part.masks else None
    if part.masks:
        _forbid(scores, part)
    token_ids, statuses = sample_filtered_rows(
        scores,
        state.upload(part.rows),
        state.upload(part.positions),
        params.temperature,
        params.seeds,
        (params.top_k, params.top_p, params.min_p),
    )
    if finite is not None:
        # What a mask leaves is -inf where it allows nothing; what it hides may be no number.
        statuses.masked_fill_(statuses != RowStatus.OK, RowStatus.NO_TOKEN_ALLOWED)
        statuses.masked_fill_(~finite, RowStatus.NON_FINITE_LOGITS)
        token_ids.masked_fill_(~finite, 0)
    sampled.results.index_copy_(1, chosen, torch.stack((token_ids, statuses)))


def sample(logits: torch.Tensor, batch: SamplingRows) -> SampledTokens:
    """Samples from raw `logits`: float32 [num_rows, vocab_size], left as they are. Any row may be special.

    In slices of rows where a row needs scratch, many times its logits. No row's result depends on another row.
    """
    reports_gap = bool(batch.state.needs.reports_gap[batch.rows].any())
    slices = row_slices(*logits.shape) if _needs_scratch(batch) else [slice(None)]
    parts = [_sample(logits[some], batch.part(some), reports_gap) for some in slices]
    if len(parts) == 1:
        return parts[0]
    return SampledTokens(
        torch.cat([part.results for part in parts], dim=1),
        torch.cat([part.gaps for part in parts if part.gaps is not None]) if reports_gap else None,
    )


def _needs_scratch(batch: SamplingRows) -> bool:
    """Whether a row does anything but take the best of its raw logits."""
    needs, rows = batch.state.needs, batch.rows
    changes = needs.draws[rows] | needs.logit_bias[rows] | needs.penalties[rows]
    return bool(batch.masks) or bool((changes | (batch.positions < needs.first_end_position[rows])).any())


def _sample(logits: torch.Tensor, batch: SamplingRows, reports_gap: bool) -> SampledTokens:
    # NaN and infinity are contagious to the maximum; it is -inf where there is nothing else.
    finite = logits.amax(dim=-1).isfinite()
    scores = process_logits(logits, batch)
    allowed = finite if scores is logits else scores.amax(dim=-1) > -torch.inf
    scores = add_noise(scores, batch)
    best = scores.argmax(dim=-1)
    succeeded = finite & allowed
    statuses = torch.full_like(best, RowStatus.OK, dtype=torch.int32)
    statuses.masked_fill_(~allowed, RowStatus.NO_TOKEN_ALLOWED)
    statuses.masked_fill_(~finite, RowStatus.NON_FINITE_LOGITS)
    gaps = None
    if reports_gap:
        two = scores.topk(min(2, scores.shape[-1]), dim=-1).values
        gaps = two[:, 0] - two[:, 1] if two.shape[-1] == 2 else torch.full_like(two[:, 0], torch.inf)
    return SampledTokens(torch.stack((torch.where(succeeded, best, 0).int(), statuses)), gaps)


def process_logits(logits: torch.Tensor, batch: SamplingRows) -> torch.Tensor:
    """Applies bias, penalties, min_tokens and masks; returns `logits` itself where no row has any of them."""
    state, rows = batch.state, batch.rows
    biased = np.flatnonzero(state.needs.logit_bias[rows])
    penalised = np.flatnonzero(state.needs.penalties[rows])
    endless = np.flatnonzero(batch.positions < state.needs.first_end_position[rows])
    if not (len(biased) or len(penalised) or len(endless) or batch.masks):
        return logits
    scores = logits.clone()
    for index in biased:
        ids, addends = state.logit_bias[int(rows[index])]
        scores[int(index)].index_add_(0, ids, addends)
    if len(penalised):
        _penalise(scores, penalised, state, rows)
    for index in endless:
        scores[int(index)].index_fill_(0, state.end_token_ids[int(rows[index])], -torch.inf)
    if batch.masks:
        _forbid(scores, batch)
    return scores


def _forbid(scores: torch.Tensor, batch: SamplingRows) -> None:
    """Masks the guided rows of `scores`, in one go: there may be hundreds."""
    indices = np.flatnonzero(np.isin(batch.rows, list(batch.masks)))
    bits = batch.state.upload(np.stack([batch.masks[row] for row in batch.rows[indices].tolist()]))
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    forbidden = ((bits[:, :, None] >> places & 1) == 0).flatten(1)[:, : scores.shape[-1]]
    if len(indices) == len(batch.rows):
        scores.masked_fill_(forbidden, -torch.inf)
        return
    chosen = batch.state.upload(indices)
    scores[chosen] = scores[chosen].masked_fill(forbidden, -torch.inf)


def _penalise(scores: torch.Tensor, penalised: NDArray[np.intp], state: BatchState, rows: Int32Array) -> None:
    """Changes the penalised rows of `scores`: repetition as in CTRL (Keskar et al. 2019), the others as in OpenAI's."""
    assert state.counts is not None
    chosen, device_rows = state.upload(penalised), state.upload(rows[penalised])
    values = scores[chosen]
    repetition = state.params.repetition_penalty[device_rows, None]
    # A tiny or a huge penalty may overflow; the last finite value stands for it: infinity would break the softmax, and
    # less than that would forbid a token that no mask forbids.
    most = torch.finfo(torch.float32).max
    repeated = torch.where(values > 0, values / repetition, values * repetition).clamp_(-most, most)
    penalisable = state.counts.seen[device_rows] & (values != -torch.inf)
    values = torch.where(penalisable, repeated, values)
    counts = state.counts.output[device_rows]
    values = values - state.params.frequency_penalty[device_rows, None] * counts
    values = values - state.params.presence_penalty[device_rows, None] * (counts > 0)
    scores[chosen] = values


def add_noise(scores: torch.Tensor, batch: SamplingRows) -> torch.Tensor:
    """Applies temperature, top-k, top-p, min-p and the noise to the rows that draw; the others stay."""
    state, needs = batch.state, batch.state.needs
    drawing = np.flatnonzero(needs.draws[batch.rows])
    if not len(drawing):
        return scores
    rows = batch.rows[drawing]
    device_rows, chosen = state.upload(rows), state.upload(drawing)
    positions = state.upload(batch.positions[drawing]).long()
    everyone = len(drawing) == len(batch.rows)
    values = scores if everyone else scores[chosen]
    values = apply_temperature(values, state.params.temperature[device_rows])
    values = _filter(values, needs.top_k_or_p[rows], needs.min_p[rows], device_rows, state)
    values = values + gumbel_noise(state.params.seeds[device_rows], positions, scores.shape[-1])
    return values if everyone else scores.index_copy(0, chosen, values)


def _filter(
    values: torch.Tensor,
    top_k_or_p: BoolArray,
    min_p: BoolArray,
    device_rows: torch.Tensor,
    state: BatchState,
) -> torch.Tensor:
    """Applies the filters to those rows of `values` that have any."""
    params = state.params
    if top_k_or_p.any():
        chosen = state.upload(np.flatnonzero(top_k_or_p))
        filtered = device_rows[chosen]
        kept = apply_top_k_top_p(values[chosen], params.top_k[filtered], params.top_p[filtered])
        values = values.index_copy(0, chosen, kept)
    if min_p.any():
        values = apply_min_p(values, params.min_p[device_rows])
    return values


def apply_temperature(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Divides [num_rows, vocab_size] by `temperature` > 0, [num_rows], the largest of each row being moved to 0.

    Moved, because a small temperature would else overflow and make tokens equal that are not.
    """
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature[:, None]


def apply_top_k_top_p(logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Keeps the k best of each row, then the smallest set of the best whose probability reaches p; others get -inf.

    `top_k` 0 and `top_p` 1 keep all; each is [num_rows]. At least one token is kept.
    """
    values, ids = logits.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(values.shape[-1], device=logits.device)[None]
    in_top_k = (top_k[:, None] == 0) | (ranks < top_k[:, None])
    probabilities = values.masked_fill(~in_top_k, -torch.inf).softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    # A sum may round to 1 before the last token is in it; p = 1 keeps all nevertheless.
    in_top_p = (before < top_p[:, None]) | (top_p[:, None] >= 1) | (ranks == 0)
    kept = torch.zeros_like(in_top_k).scatter_(1, ids, in_top_k & in_top_p)
    return logits.masked_fill(~kept, -torch.inf)


def apply_min_p(logits: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Keeps tokens at least `min_p` ([num_rows], 0 keeps all) as likely as the row's likeliest; others get -inf."""
    threshold = logits.amax(dim=-1, keepdim=True) + min_p[:, None].log()
    return logits.masked_fill(logits < threshold, -torch.inf)
