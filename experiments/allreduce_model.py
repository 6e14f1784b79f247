"""What a decode step would take on N devices joined by a fast link: an analytic prediction, not a measurement.

    python experiments/allreduce_model.py        # where one way to sum overtakes another

All ranks sum M bytes over N ranks; a meeting of all costs a latency, and so does a read, beside its bytes:

    one-shot   meet, read M of each other rank, meet            3 latency + (N - 1) M / bandwidth
    two-shot   meet, read and sum a share of M, meet, read      5 latency + 2 (N - 1) M / (N bandwidth)
               the others' sums, meet
    ring       2 (N - 1) messages of M / N, one behind          overhead + 2 (N - 1) (latency + M / (N bandwidth))
               the other, as NCCL has it

A step has two for each layer and one for the embedding. Its other work is bound by memory in decode: the bytes that a
device reads take bytes / memory_bandwidth, and N devices share them. What does not shrink is `fixed`: launches, small
kernels, and the boundary.
"""

import math
from dataclasses import dataclass

from benchmarks.shapes import Shape


@dataclass(frozen=True, slots=True)
class Link:
    """What joins two devices, one way, and the device's own memory. Bytes and seconds."""

    latency: float
    bandwidth: float
    memory_bandwidth: float
    ring_overhead: float
    """What a ring takes whatever the message is."""


NVLINK_CLASS = Link(latency=2e-6, bandwidth=450e9, memory_bandwidth=3.35e12, ring_overhead=8e-6)
"""Round figures of an H100 with NVLink 4, as its data sheet has them; latency and overhead are assumptions."""


def all_reduce_ways(size: int, num_bytes: float, link: Link) -> dict[str, float]:
    """The three formulas above: seconds by way."""
    others, share = size - 1, num_bytes / (size * link.bandwidth)
    return {
        "one-shot": 3 * link.latency + others * num_bytes / link.bandwidth,
        "two-shot": 5 * link.latency + 2 * others * share,
        "ring": link.ring_overhead + 2 * others * (link.latency + share),
    }


def all_reduce_seconds(size: int, num_bytes: float, link: Link) -> float:
    """The best of the ways: 0 for one rank."""
    return 0.0 if size == 1 else min(all_reduce_ways(size, num_bytes, link).values())


def one_shot_bytes(size: int, link: Link) -> float:
    """The message from which on two-shot is faster than one-shot; infinite for two ranks."""
    saved = (size - 1) * (size - 2) / size
    return 2 * link.latency * link.bandwidth / saved if saved else math.inf


def step_seconds(
    shape: Shape, size: int, batch: int, context: int, fixed: float, link: Link
) -> dict[str, float]:
    """A decode step in bfloat16, in parts; ranks beyond the key-value heads share no more of their reading."""
    kv_share = min(size, shape.num_kv_heads)
    num_values = shape.num_step_parameters / size + batch * context * shape.kv_values_per_token / kv_share
    num_reduced = 2 * shape.num_layers + 1
    return {
        "compute": 2 * num_values / link.memory_bandwidth,
        "communication": num_reduced * all_reduce_seconds(size, 2 * batch * shape.hidden_size, link),
        "rest": fixed,
    }


def main() -> None:
    """Prints where two-shot overtakes one-shot, and what each way takes for a decode batch."""
    print("N   two-shot overtakes at   us for 64 tokens of 5120 in bfloat16")
    for size in (2, 4, 8):
        ways = all_reduce_ways(size, 2 * 64 * 5120, NVLINK_CLASS)
        taken = ", ".join(f"{way} {seconds * 1e6:.1f}" for way, seconds in ways.items())
        print(f"{size}   {one_shot_bytes(size, NVLINK_CLASS) / 2**10:12.0f} KiB        {taken}")


if __name__ == "__main__":
    main()
