"""Log-probabilities, ranks and alternatives against a plain sort."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from executor_svc import row_slices
from executor_svc.logprobs import likeliest, token_logprobs

logit = st.one_of(
    st.integers(-3, 3).map(float), st.floats(-50, 50, width=32), st.sampled_from([-0.0, -math.inf])
)


@given(st.lists(logit, min_size=1, max_size=40), st.data())
def test_alternatives_are_sorted_with_the_lowest_id_first_among_equals(
    values: list[float], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(values)))
    expected = sorted(range(len(values)), key=lambda token: (-values[token], token))[:count]
    assert likeliest(torch.tensor([values]), count)[0].tolist() == expected


def test_logprobs_and_ranks_are_those_of_the_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 300) * 4
    logits[2, 7] = logits[2, 9] = logits[2].max() + 1
    tokens = torch.tensor([0, 299, 9, 100, int(logits[4].argmax())])
    judged = token_logprobs(logits, tokens, 20)
    exact = logits.double().log_softmax(-1)
    rows = torch.arange(5)
    torch.testing.assert_close(judged.token_logprobs.double(), exact[rows, tokens], atol=1e-5, rtol=0)
    own = exact[rows, tokens][:, None]
    assert judged.token_ranks.tolist() == (1 + (exact > own).sum(-1)).tolist()
    assert judged.token_ranks[[2, 4]].tolist() == [1, 1]
    expected = torch.sort(exact, dim=-1, descending=True, stable=True)
    assert torch.equal(judged.alternative_ids, expected.indices[:, :20])
    torch.testing.assert_close(
        judged.alternative_logprobs.double(), expected.values[:, :20], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("rows_a_slice", [1, 2, 4])
def test_slices_of_rows_give_bit_for_bit_what_all_rows_do(
    rows_a_slice: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(5, 301, generator=torch.Generator().manual_seed(1)) * 4
    tokens = torch.tensor([0, 300, 9, 100, 7])
    whole = token_logprobs(logits, tokens, 4).arrays()
    monkeypatch.setattr(row_slices, "_MAX_ELEMENTS", rows_a_slice * 301)
    for ours, expected in zip(token_logprobs(logits, tokens, 4).arrays(), whole, strict=True):
        assert ours.tobytes() == expected.tobytes()


def test_large_logits_neither_overflow_nor_lose_the_small() -> None:
    judged = token_logprobs(torch.tensor([[3e38, 0.0, 3e38]]), torch.tensor([2]), 5)
    own, ranks, ids, alternatives = judged.arrays()
    np.testing.assert_allclose(own, [-math.log(2)], rtol=1e-6)
    assert ranks.tolist() == [1]
    assert ids.tolist() == [[0, 2, 1]]
    assert alternatives.dtype == np.float32
    assert ids.dtype == ranks.dtype == np.int32
