"""How the programs of one launch, all of them running at a time, wait for each other.

A counter counts arrivals, one a program and phase. What a program stored before it arrived, another may load once it
has waited for that arrival, past the first-level cache (`cache_modifier=".cg"`), which is not told of others' stores.
"""

import triton
import triton.language as tl


@triton.jit
def arrive(counter: tl.tensor) -> None:
    """Says that this program has ended a phase: its stores come before."""
    # Every thread's stores come before the one thread's release.
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def arrive_last(counter: tl.tensor, num_arrivals: tl.tensor) -> None:
    """Says that this program has ended; the last of all that do leaves the counter at zero for the next launch."""
    tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == num_arrivals - 1:
        tl.store(counter, 0)


@triton.jit
def wait(counter: tl.tensor, num_arrivals: tl.tensor) -> None:
    """Waits for so many arrivals since the launch began. Loads issued before are not waited for."""
    # One thread asks, as many that do would delay those who arrive.
    tl.inline_asm_elementwise(
        """{
        .reg .pred other, early;
        .reg .u32 place, count;
        mov.u32 $0, 0;
        mov.u32 place, %tid.x;
        setp.ne.u32 other, place, 0;
        @other bra DONE;
        ASK:
        ld.acquire.gpu.global.u32 count, [$1];
        setp.lt.u32 early, count, $2;
        @early bra ASK;
        DONE:
        }""",
        "=r,l,r",
        [counter.to(tl.int64), num_arrivals],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
    tl.debug_barrier()
