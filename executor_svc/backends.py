"""Which code computes what lies between a model's matrix products: chosen by flag, device and what kernels can do."""

import importlib.util

import torch

from executor_svc.attention import ReferenceAttention, SdpaAttention
from executor_svc.kv_cache import KVCache
from executor_svc.layers.ops import ReferenceOps
from executor_svc.models.qwen import Backend
from executor_svc.parallel.ranks import ALONE, Ranks

_MIN_HEAD_DIM = 16
_BLOCK_SIZE_STEP = 16


def make_backend(
    name: str, kv_cache: KVCache, ranks: Ranks = ALONE, *, resident_decode: bool = True
) -> Backend:
    """The backend that `--attention-backend` names; ValueError, naming the flag, where it cannot run.

    "auto" takes Triton where it runs, on the CPU torch's kernel ("sdpa"), and else the reference. With
    `resident_decode` Triton computes all layers of a decode step of one row in one launch, where that is faster.
    """
    lacking = _lacking(kv_cache)
    if name == "triton" and lacking is not None:
        raise ValueError(f"--attention-backend: triton {lacking}")
    device = kv_cache.keys[0].device
    if name == "sdpa" and device.type != "cpu":
        raise ValueError(f"--attention-backend: sdpa needs the CPU, not {device}")
    if name != "reference" and device.type == "cpu":
        return Backend(ReferenceOps(kv_cache, ranks), SdpaAttention(kv_cache), capturable=False)
    if name == "reference" or lacking is not None:
        return Backend(ReferenceOps(kv_cache, ranks), ReferenceAttention(kv_cache), capturable=False)
    # Only here: a machine without a GPU need not have Triton.
    from executor_svc.kernels.ops import TritonAttention, TritonOps
    from executor_svc.kernels.resident.stack import ResidentLayers

    num_multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    attention = TritonAttention(kv_cache, num_multiprocessors)
    # Of several ranks each has to add up what the others made within a layer, which that kernel does not.
    resident = ResidentLayers(kv_cache, num_multiprocessors) if resident_decode and ranks.alone else None
    return Backend(TritonOps(kv_cache, ranks), attention, capturable=True, decode_layers=resident)


def _lacking(kv_cache: KVCache) -> str | None:
    """What keeps the Triton kernels from running, None if nothing does."""
    keys = kv_cache.keys[0]
    _, block_size, _, head_dim = keys.shape
    if keys.device.type != "cuda":
        return f"needs a CUDA device, not {keys.device}"
    if importlib.util.find_spec("triton") is None:
        return "is not installed"
    if keys.dtype not in (torch.bfloat16, torch.float32):
        return f"cannot be had with {keys.dtype}"
    if head_dim < _MIN_HEAD_DIM or head_dim % 2:
        return f"needs an even head_dim of at least {_MIN_HEAD_DIM}, not {head_dim}"
    if block_size % _BLOCK_SIZE_STEP:
        return f"needs a --block-size that is a multiple of {_BLOCK_SIZE_STEP}, not {block_size}"
    return None
