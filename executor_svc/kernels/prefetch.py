"""Calling memory into the L2 cache ahead of its use; for kernels on CUDA alone."""

import triton
import triton.language as tl


@triton.jit
def prefetch_lines(places: tl.tensor) -> None:
    """Calls the lines of 128 bytes at some addresses into the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [places.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def prefetch_run(start: tl.tensor, COUNT: tl.constexpr) -> None:
    """Calls COUNT elements, which lie in a row, into the L2 cache, by one instruction of one thread."""
    tl.inline_asm_elementwise(
        """{
        .reg .pred first;
        .reg .u32 place;
        mov.u32 $0, 0;
        mov.u32 place, %tid.x;
        setp.eq.u32 first, place, 0;
        @first cp.async.bulk.prefetch.L2.global [$1], $2;
        }""",
        "=r,l,r",
        [start.to(tl.int64), COUNT * start.dtype.element_ty.primitive_bitwidth // 8],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
