"""How a resident launch shares out its work: what is known when the kernel is compiled."""

import triton
import triton.language as tl

from executor_svc.kernels.paged_tiles import MIN_DOT

NUM_WARPS = 8
UNIT = tl.constexpr(8)
"""Columns of a weight that a program takes together."""
SLICES = tl.constexpr(NUM_WARPS)
WIDTH = tl.constexpr(128)
"""A tile is of UNIT columns and SLICES * WIDTH inputs, so that a thread holds weights of one column."""
TILE = tl.constexpr(64)
"""Positions of a context at a time; also below which a share of it is not worth a program."""
_MAX_SHARE_ELEMENTS = 8192  # of shares that are joined at a time
_MAX_TILES = 6  # each 16 registers a thread


@triton.constexpr_function
def quotient(number: int, divisor: int) -> int:
    """Rounded up."""
    return -(-number // divisor)


@triton.constexpr_function
def power_of_two(number: int) -> int:
    """The least that is not smaller."""
    return 1 << (number - 1).bit_length()


@triton.constexpr_function
def halvings(number: int) -> int:
    """How often it must be halved, rounded up, to be 1."""
    return (number - 1).bit_length()


@triton.constexpr_function
def is_multiple(number: int, divisor: int) -> bool:
    # Not by the remainder: the interpreter's constants have none on this side.
    times: int = quotient(number, divisor)
    return times * divisor == number


@triton.constexpr_function
def units_at_once(units: int, chunks: int, gated: bool) -> int:
    """Of a program's units, how many have room in the registers."""
    return min(units, max(1, _MAX_TILES // (2 * chunks if gated else chunks)))


@triton.constexpr_function
def dot_side(number: int) -> int:
    """The least that holds so many, of the sides that tl.dot takes."""
    return max(MIN_DOT, 1 << (number - 1).bit_length())


@triton.constexpr_function
def splits_at_once(splits: int, group: int, head_dim: int) -> int:
    """Of the shares of a context, how many are joined at a time."""
    share: int = power_of_two(group) * dot_side(head_dim)
    all_splits: int = power_of_two(splits)
    return min(all_splits, max(1, _MAX_SHARE_ELEMENTS // share))
