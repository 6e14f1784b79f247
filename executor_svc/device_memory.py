"""How much of a CUDA device the KV cache may take: measured by a pass over as many tokens as a step may have."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import structlog
import torch

from executor_svc.forward import BatchShape, ForwardBatch, pack_batch
from executor_svc.kv_cache import num_blocks_within
from executor_svc.model_runner import ModelRunner
from executor_svc.plan import Prefill
from executor_svc.runner import RunnerLimits
from executor_svc.static_step import StaticStep

# What sampling with every filter takes at its peak, a slice of rows at a time, and the driver's part of one graph.
_SAMPLING_BYTES = 200 * 2**20
_GRAPH_BYTES = 3 * 2**20

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class MemoryProfile:
    """Bytes of a CUDA device, before there is a KV cache to speak of."""

    total: int
    used: int
    """By weights, rows and buffers, by the driver, and by other processes."""
    step_peak: int
    """What a step takes besides, at most."""
    graphs: int
    """What graphs will keep, by estimate."""

    def kv_cache_bytes(self, utilization: float) -> int:
        """What is left of a share of the total."""
        return max(0, int(self.total * utilization) - self.used - self.step_peak - self.graphs)


def cuda_num_blocks(
    runner: ModelRunner,
    limits: RunnerLimits,
    captured: Sequence[StaticStep],
    utilization: float,
    bytes_per_block: int,
    most_useful: int,
) -> int:
    """The blocks for which a device has room once all else has what it needs, block 0 included.

    `captured` are the steps that will be graphs.

    ValueError, naming the flag, where a step of the largest size or two blocks do not fit.
    """
    device = runner.state.device
    with naming_flag(
        "--max-num-batched-tokens", f"a step of {limits.max_num_batched_tokens} tokens does not fit", device
    ):
        step_peak = _peak_bytes(device, lambda: _largest_step(runner, limits))
        step_peak = max(step_peak, _logits_bytes(limits)) + _SAMPLING_BYTES + _counts_bytes(limits)
        graphs = 0
        if captured:
            graphs = _peak_bytes(device, lambda: _compute_largest(captured)) + _GRAPH_BYTES * len(captured)
    free, total = torch.cuda.mem_get_info(device)
    profile = MemoryProfile(total, total - free, step_peak, graphs)
    _log.info(
        "memory_profiled",
        total_bytes=profile.total,
        used_bytes=profile.used,
        step_peak_bytes=profile.step_peak,
        graph_bytes=profile.graphs,
    )
    return num_blocks_within(profile.kv_cache_bytes(utilization), bytes_per_block, most_useful)


def _logits_bytes(limits: RunnerLimits) -> int:
    """What sampling the special rows of a full batch takes before its slices: logits chosen, and in float32."""
    return limits.max_num_seqs * limits.vocab_size * (4 + 4)


def _counts_bytes(limits: RunnerLimits) -> int:
    """What the penalties look at, allocated when a row first has one: see TokenCounts."""
    return limits.max_num_seqs * limits.vocab_size * (1 + 4)


@contextlib.contextmanager
def naming_flag(flag: str, what: str, device: torch.device) -> Iterator[None]:
    """Turns a shortage of memory into a ValueError that names the flag to lower and, on CUDA, says what is free."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if device.type == "cuda" and not isinstance(error, torch.OutOfMemoryError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        free = f"; {torch.cuda.mem_get_info(device)[0]} bytes are free" if device.type == "cuda" else ""
        raise ValueError(f"{flag}: {what}: {reason}{free}") from error


@torch.inference_mode()
def _largest_step(runner: ModelRunner, limits: RunnerLimits) -> None:
    """A prefill of `max_num_batched_tokens` tokens, all of the dummy row, and logits of every row, sampled."""
    state, left = runner.state, limits.max_num_batched_tokens
    prefills = []
    while left:
        prefills.append(Prefill(state.dummy_row, 0, min(left, limits.max_model_len), False))
        left -= prefills[-1].num_tokens
    no_rows = np.empty(0, np.int32)
    shape = BatchShape.of(no_rows, prefills)
    packed = pack_batch(shape, no_rows, prefills, state.dummy_row)
    batch = ForwardBatch.of(shape, state.upload(packed))
    hidden, positions = runner.forward(batch)
    some = slice(limits.max_num_seqs)
    logits = runner.model.logits(hidden[some])
    params = state.params
    runner.backend.ops.sample_rows(
        logits, batch.token_rows[some], positions[some], params.temperature, params.seeds
    )


@torch.inference_mode()
def _compute_largest(steps: Sequence[StaticStep]) -> None:
    """Computes the step of the most tokens, of padding alone."""
    max(steps, key=lambda step: step.num_tokens).compute()


def _peak_bytes(device: torch.device, work: Callable[[], None]) -> int:
    """The most memory that some work takes at once, beyond what is held before it."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_stats(device)["reserved_bytes.all.current"]
    work()
    torch.cuda.synchronize(device)
    peak = torch.cuda.memory_stats(device)["reserved_bytes.all.peak"] - before
    torch.cuda.empty_cache()
    return int(peak)
