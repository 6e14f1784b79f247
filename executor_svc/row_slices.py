"""Rows of logits taken a few at a time, so that what is computed of them has a bounded size."""

# Sampling with every filter takes some 50 bytes an element at its peak: 200 MB.
_MAX_ELEMENTS = 2**22


def row_slices(num_rows: int, vocab_size: int) -> list[slice]:
    """Consecutive slices that cover [0, num_rows), each of at least one row and of a bounded number of elements.

    They are of one size, give or take a row: PyTorch sums a single row in another order than each of several, so
    none is left over alone. That holds for three rows a slice and more, so for any vocabulary below a million.
    """
    num_slices = -(-num_rows // max(1, _MAX_ELEMENTS // vocab_size))
    ends = [num_rows * (index + 1) // num_slices for index in range(num_slices)]
    return [slice(first, end) for first, end in zip([0, *ends], ends, strict=False)]
