"""Chooses a token for each row as executor_svc/sampler.py does: in two stages, chunks of the vocabulary, then rows.

The noise is -log(E), so argmax(score + noise) is argmax(exp(score) / E), a race. The first stage runs it in each chunk
on scores relative to the chunk's own largest logit: what is subtracted from all changes no order, the logits are read
once, and no temperature is too small. The second stage knows the row's largest logit, and compares the chunks' winners
by (logit - largest) / temperature + noise, as the sampler does.
"""

import torch
import triton
import triton.language as tl

from executor_svc.kernels.filtering import Thresholds, find_thresholds
from executor_svc.kernels.gumbel import exponential, gumbel, words_of_ids, words_of_range
from executor_svc.parallel.ranks import Ranks
from executor_svc.plan import RowStatus

_CHUNK = 2048  # token ids a program; the same for all batches, so that no row's result depends on another row

_Sampling = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Rows, positions, temperature and seeds."""
_Winners = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of each chunk of each row, [num_rows, num_chunks]: the largest logit, and the winner's logit and id."""

_LOG2_E = tl.constexpr(1.4426950408889634)
_LARGEST = tl.constexpr(3.0e38)
_NON_FINITE = tl.constexpr(int(RowStatus.NON_FINITE_LOGITS))
_OK = tl.constexpr(int(RowStatus.OK))


def sample_rows(
    logits: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    temperature: torch.Tensor,
    seeds: torch.Tensor,
    *,
    thresholds: Thresholds | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and statuses (of RowStatus), int32 [n] each, from contiguous `logits` [n, vocab_size].

    Row i samples as row rows[i] (int32) of the batch: `temperature` float32 and `seeds` int64, [num_rows] each; 0 is
    greedy. positions[i] (int32) is that of the sampled token. Of a row that
    draws only what is within `thresholds` takes part, where they are given.
    """
    if out is None:
        out = torch.empty_like(rows), torch.empty_like(rows)
    if not len(logits):
        return out
    sampling = (rows, positions, temperature, seeds)
    winners = _race(logits, sampling, 0, triton.cdiv(logits.shape[1], _CHUNK), thresholds)
    _decide(winners, sampling, out)
    return out


def sample_rows_of_ranks(
    ranks: Ranks,
    logits: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    temperature: torch.Tensor,
    seeds: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As sample_rows, of a rank's own columns of the logits: the ranks tell each other the winners of their chunks."""
    out, sampling = (torch.empty_like(rows), torch.empty_like(rows)), (rows, positions, temperature, seeds)
    num_chunks = triton.cdiv(ranks.num_logits, _CHUNK)
    winners = _race(logits, sampling, ranks.first_token, num_chunks, None)
    told = ranks.gather(torch.stack([part.view(torch.int32) for part in winners]))
    peaks, best_logits, best_ids = told.permute(1, 2, 0, 3).flatten(2).contiguous().unbind()
    _decide((peaks.view(torch.float32), best_logits.view(torch.float32), best_ids), sampling, out)
    return out


def _race(
    logits: torch.Tensor,
    sampling: _Sampling,
    first_token: int,
    num_chunks: int,
    thresholds: Thresholds | None,
) -> _Winners:
    """The first stage, over the tokens from `first_token` on, a multiple of 4; chunks beyond the last win nothing."""
    num_rows, vocab_size = logits.shape
    assert logits.is_contiguous()
    rows, positions, temperature, seeds = sampling
    peaks = torch.empty(num_rows, num_chunks, dtype=torch.float32, device=logits.device)
    best_logits, best_ids = torch.empty_like(peaks), torch.empty_like(peaks, dtype=torch.int32)
    _race_kernel[(num_rows, num_chunks)](
        logits,
        rows,
        positions,
        temperature,
        seeds,
        thresholds.peak if thresholds else None,
        thresholds.cut if thresholds else None,
        thresholds.last_id if thresholds else None,
        peaks,
        best_logits,
        best_ids,
        vocab_size,
        num_chunks,
        first_token,
        CHUNK=_CHUNK,
        num_warps=4,
    )
    return peaks, best_logits, best_ids


def _decide(winners: _Winners, sampling: _Sampling, out: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The second stage: the best of a row's winners, which come in the order of their ids."""
    num_rows, num_chunks = winners[0].shape
    _decide_kernel[(num_rows,)](
        *winners,
        *sampling,
        *out,
        num_chunks,
        BLOCK=triton.next_power_of_2(num_chunks),
        num_warps=1,
    )


def sample_filtered_rows(
    logits: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    temperature: torch.Tensor,
    seeds: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    *,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As sample_rows, of the tokens that find_thresholds keeps; rows may have no filter."""
    thresholds = find_thresholds(logits, rows, temperature, top_k, top_p, min_p)
    return sample_rows(logits, rows, positions, temperature, seeds, thresholds=thresholds, out=out)


@triton.jit(do_not_specialize=["num_chunks", "first_token"])
def _race_kernel(
    logits: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    temperature: tl.tensor,
    seeds: tl.tensor,
    row_peaks: tl.tensor,
    cuts: tl.tensor,
    last_ids: tl.tensor,
    peaks: tl.tensor,
    best_logits: tl.tensor,
    best_ids: tl.tensor,
    vocab_size: tl.tensor,
    num_chunks: tl.tensor,
    first_token: tl.tensor,
    CHUNK: tl.constexpr,
) -> None:
    """The largest logit of a chunk (NaN if any is), and the id and logit of its winner."""
    index, chunk = tl.program_id(0), tl.program_id(1)
    first = chunk * CHUNK
    ids = first + tl.arange(0, CHUNK)
    inside = ids < vocab_size
    source = logits + index.to(tl.int64) * vocab_size + ids
    values = tl.load(source, mask=inside, other=float("-inf")).to(tl.float32)
    has_nan = tl.max((values != values).to(tl.int32), axis=0) != 0
    values = tl.where(values == values, values, float("-inf"))
    peak = tl.max(values, axis=0)

    row = tl.load(rows + index)
    heat = tl.load(temperature + row)
    keys = values
    if heat > 0:
        words = words_of_range(tl.load(seeds + row), tl.load(positions + index), first_token + first, CHUNK)
        shift = tl.where(tl.abs(peak) < float("inf"), peak, 0.0)
        # An infinite inverse would make NaN of the largest logit's 0.
        inverse = tl.minimum(_LOG2_E / heat, _LARGEST)
        keys = tl.exp2((values - shift) * inverse) / exponential(words)
        if cuts is not None:
            cut = tl.load(cuts + index)
            scores = tl.div_rn(values - tl.load(row_peaks + index), heat)
            inside = inside & ((scores > cut) | ((scores == cut) & (ids <= tl.load(last_ids + index))))
        keys = tl.where(inside, keys, -1.0)
    best_key, place = tl.max(keys, axis=0, return_indices=True)
    best = first + place
    best_logit = tl.sum(tl.where(ids == best, values, 0.0), axis=0)
    if heat > 0:
        best_logit = tl.where(best_key < 0, float("-inf"), best_logit)
    at = index * num_chunks + chunk
    tl.store(peaks + at, tl.where(has_nan, float("nan"), peak))
    tl.store(best_logits + at, best_logit)
    tl.store(best_ids + at, first_token + best)


@triton.jit(do_not_specialize=["num_chunks"])
def _decide_kernel(
    peaks: tl.tensor,
    best_logits: tl.tensor,
    best_ids: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    temperature: tl.tensor,
    seeds: tl.tensor,
    out_ids: tl.tensor,
    out_statuses: tl.tensor,
    num_chunks: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """The best of the chunks' winners; the first of equals, whose id is lowest."""
    index = tl.program_id(0)
    chunks = tl.arange(0, BLOCK)
    at, inside = index * num_chunks + chunks, chunks < num_chunks
    chunk_peaks = tl.load(peaks + at, mask=inside, other=float("-inf"))
    scores = tl.load(best_logits + at, mask=inside, other=float("-inf"))
    ids = tl.load(best_ids + at, mask=inside, other=0)
    unusable = (chunk_peaks != chunk_peaks) | (chunk_peaks == float("inf"))
    peak = tl.max(tl.where(unusable, float("-inf"), chunk_peaks), axis=0)
    finite = (peak > float("-inf")) & (tl.max(unusable.to(tl.int32), axis=0) == 0)

    row = tl.load(rows + index)
    heat = tl.load(temperature + row)
    if heat > 0:
        words = words_of_ids(tl.load(seeds + row), tl.load(positions + index), ids)
        numbers = tl.div_rn(scores - tl.where(finite, peak, 0.0), heat) + gumbel(words)
        scores = tl.where(inside, numbers, float("-inf"))
    chosen = tl.argmax(scores, axis=0)
    token_id = tl.sum(tl.where(chunks == chosen, ids, 0), axis=0)
    tl.store(out_ids + index, tl.where(finite, token_id, 0))
    tl.store(out_statuses + index, tl.where(finite, _OK, _NON_FINITE))
