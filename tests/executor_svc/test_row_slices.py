"""Slices of rows: all rows, in order, few enough at a time, and none alone."""

from hypothesis import given
from hypothesis import strategies as st

from executor_svc import row_slices


@given(num_rows=st.integers(1, 5000), vocab_size=st.integers(1, 2**24))
def test_slices_cover_all_rows_in_order_within_the_bound(num_rows: int, vocab_size: int) -> None:
    slices = row_slices.row_slices(num_rows, vocab_size)
    assert [row for some in slices for row in range(num_rows)[some]] == list(range(num_rows))
    sizes = [some.stop - some.start for some in slices]
    assert all(size == 1 or 1 < size * vocab_size <= row_slices._MAX_ELEMENTS for size in sizes)
    if num_rows > 1 and vocab_size <= 10**6:
        assert min(sizes) > 1
