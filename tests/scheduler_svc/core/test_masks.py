"""Masks are written in the fewest bytes and read as what they were, at both ends."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from executor_svc import wire as executor_wire
from scheduler_svc.core.masks import MaskForm, RowMask, TokenMask
from scheduler_svc.core.step import StepPlan
from scheduler_svc.wire import encode_plan


def packed(allowed: np.ndarray) -> bytes:
    return np.packbits(allowed, bitorder="little").tobytes()


@st.composite
def flags(draw: st.DrawFn) -> np.ndarray:
    """Which tokens are allowed: few, most, or about half of them."""
    size = draw(st.integers(1, 900))
    share = draw(st.sampled_from([0.0, 0.003, 0.02, 0.5, 0.98, 0.997, 1.0]))
    return np.random.default_rng(draw(st.integers(0, 999))).random(size) < share


@given(flags())
def test_a_mask_takes_the_fewest_bytes_and_means_the_same(allowed: np.ndarray):
    mask = TokenMask.smallest(packed(allowed), len(allowed))
    num_allowed = int(allowed.sum())
    assert len(mask.data) == min(4 * num_allowed, 4 * (len(allowed) - num_allowed), -(-len(allowed) // 8))
    assert (mask.allowed(len(allowed)) == allowed).all()


@given(flags())
def test_the_executor_reads_each_form_as_it_was_meant(allowed: np.ndarray):
    masks = [
        TokenMask.smallest(packed(allowed), len(allowed)),
        TokenMask(MaskForm.ALLOWED_BITS, packed(allowed)),
        TokenMask(MaskForm.ALLOWED_IDS, np.flatnonzero(allowed).astype("<i4").tobytes()),
        TokenMask(MaskForm.FORBIDDEN_IDS, np.flatnonzero(~allowed).astype("<i4").tobytes()),
    ]
    rows = np.arange(len(masks), dtype=np.int32)
    plan = StepPlan(
        step_id=1,
        release_rows=[],
        starts=[],
        new_block_rows=[],
        new_block_ids=[],
        prefills=[],
        decode_rows=rows,
        decode_row_steps=np.ones(len(rows), np.int32),
        decode_ends=np.ones(len(rows), np.int64),
        num_decode_steps=1,
        masks=[RowMask(int(row), mask) for row, mask in zip(rows, masks, strict=True)],
    )
    decoded = executor_wire.decode_plan(encode_plan(plan).plan, len(allowed))
    assert [mask.row for mask in decoded.masks] == rows.tolist()
    for mask in decoded.masks:
        assert (mask.allowed(len(allowed)) == allowed).all()
