"""The sampler against transformers' processors, against plain references, and row by row against itself."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import QWEN3, gpu
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from executor_svc import row_slices, sampler
from executor_svc.batch import BatchState
from executor_svc.kv_cache import KVCache
from executor_svc.layers.ops import ReferenceOps
from executor_svc.noise import gumbel_noise
from executor_svc.plan import RowSampling, RowStatus, StartRow, StepPlan
from executor_svc.plan_checks import MAX_PENALTY
from executor_svc.runner import RunnerLimits
from executor_svc.sampler import (
    SampledTokens,
    SamplingRows,
    apply_min_p,
    apply_temperature,
    apply_top_k_top_p,
    choose,
    process_logits,
    sample,
)

VOCAB = 97
LIMITS = RunnerLimits(
    num_blocks=8,
    block_size=4,
    max_num_seqs=8,
    max_model_len=64,
    max_num_batched_tokens=64,
    max_num_decode_steps=4,
    max_plans_in_flight=2,
    vocab_size=VOCAB,
)
INF = math.inf


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def make_state(
    samplings: dict[int, RowSampling],
    token_ids: dict[int, list[int]] | None = None,
    num_prompt_tokens: int = 2,
    device: str = "cpu",
    limits: RunnerLimits = LIMITS,
) -> BatchState:
    """A batch with these rows started, each with tokens [1, 2, 3] unless others are given, and its row as seed."""
    state = BatchState(limits, torch.device(device))
    starts = tuple(
        StartRow(
            row=row,
            token_ids=ints(*(token_ids or {}).get(row, [1, 2, 3])),
            num_prompt_tokens=num_prompt_tokens,
            num_computed_tokens=0,
            block_table=ints(1),
            sampling=sampling,
            seed=row,
        )
        for row, sampling in samplings.items()
    )
    state.apply(StepPlan(1, ints(), starts, ints(), ints(), (), ints(), ints(), 1, ()))
    return state


def sampling_rows(state: BatchState, rows: list[int], position: int = 3, **masks: Any) -> SamplingRows:
    packed = {row: np.packbits(mask, bitorder="little") for row, mask in masks.get("masks", {}).items()}
    return SamplingRows(state, ints(*rows), ints(*[position] * len(rows)), packed)


def sample_rows(logits: torch.Tensor, samplings: list[RowSampling], **masks: Any) -> SampledTokens:
    state = make_state(dict(enumerate(samplings)))
    return sample(logits, sampling_rows(state, list(range(len(samplings))), **masks))


def random_logits(rows: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 0.9), (5, 1.0), (20, 0.5), (1, 0.01), (200, 0.99), (0, 1.0)]
)
@pytest.mark.parametrize("min_p", [0.0, 0.05, 1.0])
def test_filters_keep_what_transformers_keeps(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = random_logits(6, seed=int(100 * temperature) + top_k)
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)
    ours = apply_temperature(logits, torch.full((6,), temperature))
    ours = apply_top_k_top_p(ours, torch.full((6,), top_k), torch.full((6,), top_p))
    ours = apply_min_p(ours, torch.full((6,), min_p))
    assert torch.equal(ours == -INF, expected == -INF)
    torch.testing.assert_close(ours.softmax(-1), expected.softmax(-1))


def test_repetition_penalty_equals_transformers_over_prompt_and_output() -> None:
    token_ids = [5, 5, 9, 60, 3]
    logits = random_logits(1)
    state = make_state({2: RowSampling(repetition_penalty=1.7)}, {2: token_ids})
    ours = process_logits(logits, sampling_rows(state, [2], position=5))
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([token_ids]), logits)
    torch.testing.assert_close(ours, expected)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_processing_equals_a_written_reference(data: st.DataObject) -> None:
    reals = st.floats(-2, 2, width=32)
    num_rows = data.draw(st.integers(1, 4))
    samplings, histories = {}, {}
    for row in range(num_rows):
        ids = data.draw(st.lists(st.integers(0, VOCAB - 1), unique=True, max_size=4))
        samplings[row] = RowSampling(
            repetition_penalty=data.draw(st.sampled_from([1.0, 1.3, 0.5])),
            frequency_penalty=data.draw(st.sampled_from([0.0, 0.0, 0.7, -1.5])),
            presence_penalty=data.draw(st.sampled_from([0.0, 0.0, 1.1])),
            logit_bias_ids=ints(*ids),
            logit_bias=np.array([data.draw(reals) for _ in ids], np.float32),
            min_tokens=data.draw(st.integers(0, 5)),
            end_token_ids=ints(*data.draw(st.lists(st.integers(0, VOCAB - 1), max_size=3))),
        )
        histories[row] = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=5, max_size=5))
    logits = random_logits(num_rows, seed=data.draw(st.integers(0, 1000)))
    allowed = np.ones(VOCAB, np.bool_)
    allowed[data.draw(st.lists(st.integers(0, VOCAB - 1), max_size=50))] = False
    masks = {num_rows - 1: allowed}
    # The last two tokens of each history are sampled on the device, the others known from the start.
    rows = list(range(num_rows))
    state = make_state(samplings, {row: history[:3] for row, history in histories.items()})
    for position in (3, 4):
        state.count(ints(*rows), torch.tensor([histories[row][position] for row in rows], dtype=torch.int32))
    ours = process_logits(logits, sampling_rows(state, rows, position=5, masks=masks))
    for row in rows:
        expected = reference_process(logits[row].tolist(), samplings[row], histories[row], masks.get(row))
        np.testing.assert_allclose(ours[row].numpy(), expected, rtol=1e-5, atol=1e-5)


def reference_process(
    logits: list[float], sampling: RowSampling, history: list[int], allowed: np.ndarray | None
) -> list[float]:
    """Bias, penalties, min_tokens and masks, one token at a time; two tokens are the prompt's."""
    output = history[2:]
    bias = dict(zip(sampling.logit_bias_ids.tolist(), sampling.logit_bias.tolist(), strict=True))
    result = []
    for token, logit in enumerate(logits):
        logit += bias.get(token, 0.0)
        if token in history:
            penalty = sampling.repetition_penalty
            logit = logit / penalty if logit > 0 else logit * penalty
        logit -= sampling.frequency_penalty * output.count(token)
        logit -= sampling.presence_penalty * (token in output)
        ends_early = token in sampling.end_token_ids and len(output) < sampling.min_tokens
        forbidden = allowed is not None and not allowed[token]
        result.append(-INF if ends_early or forbidden else logit)
    return result


def test_greedy_takes_the_best_and_the_lowest_id_of_equals() -> None:
    logits = random_logits(3)
    logits[1, [70, 8, 33]] = 50.0
    sampled = sample_rows(logits, [RowSampling()] * 3)
    assert sampled.token_ids.tolist() == [int(logits[0].argmax()), 8, int(logits[2].argmax())]
    assert sampled.statuses.tolist() == [RowStatus.OK] * 3
    assert sampled.gaps is None


def test_top_k_keeps_exactly_k_of_equals_lowest_ids_first() -> None:
    kept = apply_top_k_top_p(torch.zeros(1, VOCAB), torch.tensor([3]), torch.ones(1))
    assert kept[0].isfinite().nonzero().flatten().tolist() == [0, 1, 2]


def test_drawing_adds_the_noise_of_seed_and_position_to_what_the_filters_left() -> None:
    logits = random_logits(4)
    sampled = sample_rows(logits, [RowSampling(temperature=0.7, top_k=9)] * 4, position=17)
    noise = gumbel_noise(torch.arange(4), torch.full((4,), 17), VOCAB)
    expected = (TopKLogitsWarper(9)(None, logits) / 0.7 + noise).argmax(-1)
    assert sampled.token_ids.tolist() == expected.tolist()


def test_draws_follow_the_softmax() -> None:
    logits = random_logits(1, scale=1.0)
    state = make_state({0: RowSampling(temperature=1.3)})
    count = 4000
    positions = np.arange(count, dtype=np.int32)
    rows = SamplingRows(state, np.zeros(count, np.int32), positions, {})
    tokens = sample(logits.expand(count, -1).contiguous(), rows).token_ids
    observed = torch.bincount(tokens, minlength=VOCAB).double()
    expected = (logits[0].double() / 1.3).softmax(0) * count
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    # 96 degrees of freedom: mean 96, standard deviation 14; 144 has a probability of 0.1%.
    assert chi_square < 144


def test_draws_never_leave_top_p_and_min_p() -> None:
    logits = random_logits(1)
    sampling = RowSampling(temperature=1.0, top_p=0.8, min_p=0.02)
    state = make_state({0: sampling})
    kept = MinPLogitsWarper(0.02)(None, TopPLogitsWarper(0.8)(None, logits))[0].isfinite()
    rows = SamplingRows(state, np.zeros(2000, np.int32), np.arange(2000, dtype=np.int32), {})
    tokens = sample(logits.expand(2000, -1).contiguous(), rows).token_ids
    assert kept[tokens].all()
    assert len(tokens.unique()) == kept.sum()


MIXED = [
    RowSampling(),
    RowSampling(temperature=1.0),
    RowSampling(temperature=0.5, top_k=4, report_gap=True),
    RowSampling(temperature=0.9, top_p=0.7, min_p=0.1),
    RowSampling(temperature=2.0, repetition_penalty=1.4, frequency_penalty=0.3),
    RowSampling(presence_penalty=0.9, report_gap=True),
    RowSampling(logit_bias_ids=ints(4), logit_bias=np.array([50.0], np.float32)),
    RowSampling(temperature=1.0, min_tokens=9, end_token_ids=ints(1, 2)),
]


def test_a_row_samples_the_same_alone_and_in_a_batch() -> None:
    for seed in range(20):
        logits = random_logits(8, seed)
        original = logits.clone()
        state = make_state(dict(enumerate(MIXED)))
        masks = {3: np.arange(VOCAB) % 2 == 0}
        together = sample(logits, sampling_rows(state, list(range(8)), masks=masks))
        for row in range(8):
            own_masks = {row: masks[row]} if row in masks else {}
            alone = sample(logits[row : row + 1], sampling_rows(state, [row], masks=own_masks))
            assert alone.token_ids[0] == together.token_ids[row]
            if MIXED[row].report_gap:
                assert alone.gaps is not None
                assert together.gaps is not None
                assert float(alone.gaps[0]) == pytest.approx(float(together.gaps[row]), abs=1e-6)
        assert torch.equal(logits, original), "raw logits are for the log-probabilities"


@pytest.mark.parametrize("vocab_size", [VOCAB, 4096])
@pytest.mark.parametrize("rows_a_slice", [1, 2, 3, 5])
def test_slices_of_rows_sample_bit_for_bit_what_all_rows_do(
    rows_a_slice: int, vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(8, vocab_size, generator=torch.Generator().manual_seed(5)) * 3
    logits[4, 7] = math.nan
    masks = {row: np.arange(vocab_size) % 2 == row % 2 for row in (3, 6)}
    state = make_state(dict(enumerate(MIXED)), limits=replace(LIMITS, vocab_size=vocab_size))
    rows = sampling_rows(state, [5, 2, 7, 0, 4, 1, 6, 3], masks=masks)
    whole = sample(logits, rows)
    shapes: list[tuple[int, ...]] = []

    def watched_noise(*arguments: Any) -> torch.Tensor:
        noise = gumbel_noise(*arguments)
        shapes.append(tuple(noise.shape))
        return noise

    monkeypatch.setattr(sampler, "gumbel_noise", watched_noise)
    # One element short of another row.
    monkeypatch.setattr(row_slices, "_MAX_ELEMENTS", (rows_a_slice + 1) * vocab_size - 1)
    sliced = sample(logits, rows)
    assert sum(count for count, _ in shapes) == 5
    assert max(count for count, _ in shapes) <= rows_a_slice
    assert torch.equal(sliced.token_ids, whole.token_ids)
    assert torch.equal(sliced.statuses, whole.statuses)
    assert whole.gaps is not None
    assert sliced.gaps is not None
    assert torch.equal(sliced.gaps.view(torch.int32), whole.gaps.view(torch.int32))


def test_a_row_larger_than_a_slice_is_sampled_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(3)
    expected = sample_rows(logits, [RowSampling(temperature=1.0)] * 3).token_ids
    monkeypatch.setattr(row_slices, "_MAX_ELEMENTS", 5)
    assert torch.equal(sample_rows(logits, [RowSampling(temperature=1.0)] * 3).token_ids, expected)


def test_order_of_the_rows_changes_nothing() -> None:
    logits, state = random_logits(8), make_state(dict(enumerate(MIXED)))
    order = [5, 2, 7, 0, 4, 1, 6, 3]
    straight = sample(logits, sampling_rows(state, list(range(8)))).token_ids
    assert torch.equal(sample(logits[order], sampling_rows(state, order)).token_ids, straight[order])


@pytest.mark.parametrize("sampling", [RowSampling(), RowSampling(temperature=1.0, top_p=0.9, min_p=0.1)])
@pytest.mark.parametrize("poison", [math.nan, INF, -INF])
def test_a_row_with_bad_logits_fails_alone(sampling: RowSampling, poison: float) -> None:
    logits = random_logits(3)
    clean = sample_rows(logits, [sampling] * 3)
    logits[1] = -INF if poison == -INF else logits[1]
    logits[1, 5] = poison
    sampled = sample_rows(logits, [sampling] * 3)
    assert sampled.statuses.tolist() == [RowStatus.OK, RowStatus.NON_FINITE_LOGITS, RowStatus.OK]
    assert sampled.token_ids[[0, 2]].tolist() == clean.token_ids[[0, 2]].tolist()
    assert 0 <= int(sampled.token_ids[1]) < VOCAB


def test_single_minus_infinities_are_no_failure() -> None:
    logits = random_logits(1)
    logits[0, : VOCAB - 1] = -INF
    assert sample_rows(logits, [RowSampling(temperature=1.0)]).token_ids.tolist() == [VOCAB - 1]


@pytest.mark.parametrize("sampling", [RowSampling(), RowSampling(temperature=1.0, top_k=3)])
def test_a_row_that_may_sample_nothing_fails_alone(sampling: RowSampling) -> None:
    masks = {1: np.zeros(VOCAB, np.bool_)}
    sampled = sample_rows(random_logits(3), [sampling] * 3, masks=masks)
    assert sampled.statuses.tolist() == [RowStatus.OK, RowStatus.NO_TOKEN_ALLOWED, RowStatus.OK]
    assert 0 <= int(sampled.token_ids[1]) < VOCAB


def test_end_tokens_are_forbidden_exactly_below_min_tokens() -> None:
    logits = random_logits(1)
    logits[0, 40] = 99.0
    state = make_state({0: RowSampling(min_tokens=3, end_token_ids=ints(40))}, num_prompt_tokens=2)
    chosen = [
        int(sample(logits, sampling_rows(state, [0], position=position)).token_ids) == 40
        for position in range(2, 8)
    ]
    assert chosen == [False, False, False, True, True, True]


def test_gap_is_the_distance_of_the_two_best_candidates() -> None:
    logits = random_logits(2)
    rows = [RowSampling(report_gap=True), RowSampling(temperature=0.5, report_gap=True)]
    gaps = sample_rows(logits, rows, position=9).gaps
    assert gaps is not None
    noise = gumbel_noise(torch.arange(2), torch.full((2,), 9), VOCAB)
    for row, candidates in enumerate([logits[0], logits[1] / 0.5 + noise[1]]):
        best = candidates.topk(2).values
        assert float(gaps[row]) == pytest.approx(float(best[0] - best[1]), abs=1e-4)


@pytest.mark.parametrize("penalty", [1e-45, 1e-38])
def test_a_tiny_repetition_penalty_does_not_overflow(penalty: float) -> None:
    logits = random_logits(1)
    logits[0, [1, 3]] = torch.tensor([9.0, 8.0])
    sampling = RowSampling(temperature=1.0, repetition_penalty=penalty, report_gap=True)
    state = make_state({0: sampling}, {0: [1, 3]})
    assert process_logits(logits, sampling_rows(state, [0])).isfinite().all()
    drawn = [sample(logits, sampling_rows(state, [0], position=position)) for position in range(30)]
    # Both tokens seen are as likely as can be, and so as each other.
    assert {int(sampled.token_ids) for sampled in drawn} == {1, 3}
    assert all(sampled.gaps is not None and sampled.gaps.isfinite().all() for sampled in drawn)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("repetition", [1e-45, 3.4e38])
def test_the_largest_penalties_leave_the_logits_comparable(repetition: float, sign: int) -> None:
    logits = random_logits(1)
    logits[0, 60:] = -INF
    sampling = RowSampling(
        temperature=1.0,
        repetition_penalty=repetition,
        frequency_penalty=sign * MAX_PENALTY,
        presence_penalty=sign * MAX_PENALTY,
    )
    state = make_state({0: sampling}, {0: [1, 2, *[5] * 20, 70, 70]})
    processed = process_logits(logits, sampling_rows(state, [0], position=24))
    assert not processed.isnan().any()
    assert not (processed == INF).any()
    assert torch.equal(processed == -INF, logits == -INF)


def test_a_huge_repetition_penalty_forbids_no_token_that_a_mask_allows() -> None:
    logits = torch.full((1, VOCAB), -9.0)
    state = make_state({0: RowSampling(repetition_penalty=3.4e38)}, {0: list(range(VOCAB))})
    sampled = sample(logits, sampling_rows(state, [0], masks={0: np.arange(VOCAB) == 7}))
    assert (sampled.token_ids.tolist(), sampled.statuses.tolist()) == ([7], [RowStatus.OK])


def test_tiny_temperature_neither_overflows_nor_makes_tokens_equal() -> None:
    logits = random_logits(1, scale=100.0)
    logits[0, 12] = logits.max() + 1e-3
    sampled = sample_rows(logits, [RowSampling(temperature=1e-38)])
    assert sampled.token_ids.tolist() == [12]
    assert sampled.statuses.tolist() == [RowStatus.OK]


def test_a_row_started_anew_keeps_nothing_of_its_former_sequence() -> None:
    logits = random_logits(1)
    greedy = int(logits.argmax())
    busy = RowSampling(
        temperature=1.5,
        frequency_penalty=2.0,
        logit_bias_ids=ints(greedy),
        logit_bias=np.array([-90.0], np.float32),
        min_tokens=50,
        end_token_ids=ints(greedy),
    )
    state = make_state({0: busy}, {0: [greedy] * 9})
    assert int(sample(logits, sampling_rows(state, [0], position=9)).token_ids) != greedy
    penalised = RowSampling(frequency_penalty=0.5, repetition_penalty=1.5)
    other = (greedy + 1) % VOCAB
    second = StartRow(0, ints(other), 1, 0, ints(1), penalised, seed=0)
    state.apply(StepPlan(2, ints(0), (second,), ints(), ints(), (), ints(), ints(), 1, ()))
    processed = process_logits(logits, sampling_rows(state, [0], position=1))
    assert (processed != logits).nonzero()[:, 1].tolist() == [other]
    assert int(sample(logits, sampling_rows(state, [0], position=1)).token_ids) == greedy


@pytest.mark.parametrize("special", [[], [0], [1, 3, 6], list(range(8))])
def test_rows_that_need_nothing_special_sample_the_same_the_fast_way(special: list[int]) -> None:
    plain = [RowSampling(), RowSampling(temperature=0.7), RowSampling(temperature=1.4)]
    samplings = {row: MIXED[row] if row in special else plain[row % 3] for row in range(8)}
    state = make_state(samplings)
    cache = KVCache(QWEN3, 2, 4, torch.float32, torch.device("cpu"))
    for seed in range(10):
        logits = random_logits(8, seed)
        logits[seed % 8, 5] = (math.nan, INF, 0.0)[seed % 3]
        rows = sampling_rows(state, list(range(8)))
        fast, slow = choose(logits, rows, ReferenceOps(cache)), sample(logits, rows)
        assert torch.equal(fast.results, slow.results)
        reporting = state.needs.reports_gap[:8]
        assert (fast.gaps is not None) == (slow.gaps is not None)
        if fast.gaps is not None and slow.gaps is not None:
            torch.testing.assert_close(fast.gaps[reporting], slow.gaps[reporting], equal_nan=True)


@pytest.mark.parametrize("special", [[], [0], [1, 3, 6], list(range(8))])
def test_what_another_rank_says_holds_where_a_row_is_special(special: list[int]) -> None:
    class Obedient(ReferenceOps):
        told: torch.Tensor

        def agree(self, x: torch.Tensor) -> torch.Tensor:
            assert x.is_contiguous()
            return x.copy_(self.told)

    state = make_state({row: MIXED[row] if row in special else RowSampling() for row in range(8)})
    ops = Obedient(KVCache(QWEN3, 2, 4, torch.float32, torch.device("cpu")))
    logits, rows = random_logits(8), sampling_rows(state, list(range(8)))
    own = choose(logits, rows, ReferenceOps(ops.kv_cache)).results
    ops.told = own + 1
    assert torch.equal(choose(logits, rows, ops).results, ops.told if rows.special().any() else own)


def test_seeds_of_all_64_bits_reach_the_device() -> None:
    state = BatchState(LIMITS, torch.device("cpu"))
    wide = [2**64 - 1, 2**63, 2**63 - 1, 0]
    starts = tuple(
        StartRow(row, ints(1), 1, 0, ints(1), RowSampling(), seed) for row, seed in enumerate(wide)
    )
    state.apply(StepPlan(1, ints(), starts, ints(), ints(), (), ints(), ints(), 1, ()))
    assert [seed % 2**64 for seed in state.params.seeds[:4].tolist()] == wide


def test_penalty_counts_take_no_memory_until_a_row_needs_them() -> None:
    assert make_state({0: RowSampling(temperature=1.0)}).counts is None
    assert make_state({0: RowSampling(presence_penalty=0.1)}).counts is not None


@gpu
def test_cuda_samples_what_the_cpu_does() -> None:
    masks = {3: np.arange(VOCAB) % 2 == 0}
    states = [make_state(dict(enumerate(MIXED)), device=device) for device in ("cpu", "cuda")]
    for seed in range(20):
        logits = random_logits(8, seed)
        logits[seed % 8, 5] = math.nan
        here, there = (
            sample(logits.to(state.device), sampling_rows(state, list(range(8)), masks=masks))
            for state in states
        )
        assert torch.equal(here.token_ids, there.token_ids.cpu())
        assert torch.equal(here.statuses, there.statuses.cpu())
        assert here.gaps is not None
        assert there.gaps is not None
        torch.testing.assert_close(here.gaps, there.gaps.cpu(), atol=1e-4, rtol=0, equal_nan=True)
