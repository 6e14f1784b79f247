"""What a decode step would take on N devices joined by a fast link: an analytic prediction, not a measurement.

A ring all-reduce of M bytes over N ranks is 2 (N - 1) messages of M / N bytes, one behind the other:

    T(N, M) = 2 (N - 1) (latency + M / (N bandwidth))

A step has two for each layer and one for the embedding. Its other work is bound by memory in decode: the bytes that a
device reads take bytes / memory_bandwidth, and N devices share them. What does not shrink is `fixed`: launches, small
kernels, and the boundary.
"""

from dataclasses import dataclass

from benchmarks.shapes import Shape


@dataclass(frozen=True, slots=True)
class Link:
    """What joins two devices, one way, and the device's own memory. Bytes and seconds."""

    latency: float
    bandwidth: float
    memory_bandwidth: float


NVLINK_CLASS = Link(latency=2e-6, bandwidth=450e9, memory_bandwidth=3.35e12)
"""Round figures of an H100 with NVLink 4, as its data sheet has them; the latency is an assumption."""


def all_reduce_seconds(size: int, num_bytes: float, link: Link) -> float:
    """T(N, M) above: 0 for one rank."""
    return 2 * (size - 1) * (link.latency + num_bytes / (size * link.bandwidth))


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
