"""Builds the runner that a command line asks for: the model, its KV cache sized to memory, and what it runs by."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from executor_svc.backends import make_backend
from executor_svc.batch import BatchState
from executor_svc.bucket_sizes import captured_tokens
from executor_svc.config import ExecutorConfig
from executor_svc.cpu_threads import StepThreads
from executor_svc.cuda_runner import CudaRunner
from executor_svc.device_memory import cuda_num_blocks, naming_flag
from executor_svc.graphs import DecodeBuckets, MixedBuckets, capture, static_logits
from executor_svc.kv_cache import KVCache, cpu_num_blocks
from executor_svc.model_runner import ModelRunner
from executor_svc.models.config import ModelConfig, read_model_config
from executor_svc.models.qwen import QwenForCausalLM
from executor_svc.parallel.ranks import ALONE, Ranks
from executor_svc.runner import RunnerLimits
from executor_svc.slot_tokens import SlotTokens
from executor_svc.static_step import StaticStep
from executor_svc.torch_runner import TorchRunner
from executor_svc.weights import dummy_weights, load_weights
from nanoserve.checkpoint import CheckpointError

# Enough for passes over padding alone: the cache is allocated in full when it is known how much there is room for.
_FIRST_BLOCKS = 2


def build_torch_runner(
    config: ExecutorConfig, model_dir: Path, ranks: Ranks = ALONE, local_rank: int = 0
) -> TorchRunner | CudaRunner:
    """Loads the model in `model_dir`, makes its KV cache and, on CUDA, captures its graphs: ready to run.

    Where there are other ranks it is a rank's shard of the model, on the CUDA device `local_rank` if on any.

    CheckpointError where the checkpoint is damaged or not served; ValueError, naming the flag, where the device, the
    sizes or a mode cannot be had.
    """
    model_config = read_model_config(model_dir)
    device = choose_device(config.device, local_rank)
    dtype = choose_dtype(config.dtype, model_config, model_dir, device)
    max_model_len = config.max_model_len or model_config.max_model_len
    if max_model_len > model_config.max_model_len:
        raise ValueError(f"--max-model-len: the model takes at most {model_config.max_model_len} tokens")
    with naming_flag("--device", f"the weights do not fit on {device}", device):
        model = QwenForCausalLM(model_config, dtype, device, max_model_len, ranks.shard)
        if config.load_format == "dummy":
            dummy_weights(model, config.seed)
        else:
            load_weights(model, model_dir)
    kv_cache = KVCache(model_config, _FIRST_BLOCKS, config.block_size, dtype, device, ranks.shard)
    backend = make_backend(
        config.attention_backend, kv_cache, ranks, resident_decode=not config.no_resident_decode
    )
    limits = RunnerLimits(
        num_blocks=_FIRST_BLOCKS,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_decode_steps=config.max_num_decode_steps,
        max_plans_in_flight=config.max_plans_in_flight,
        vocab_size=model_config.vocab_size,
    )
    with naming_flag("--max-num-seqs", f"{limits.max_num_seqs} rows do not fit", device):
        model_runner = ModelRunner(model, backend, BatchState(limits, device), config.block_size)
        steps = []
        if backend.capturable and not config.enforce_eager:
            # By the whole model's sizes: the shards of ranks differ, and what they capture may not.
            weights_per_layer = model_config.weights_per_layer // ranks.shard.size
            steps = _static_steps(
                model_runner, limits, captured_tokens(weights_per_layer, limits.max_num_batched_tokens)
            )
    limits = _allocate(config, model_runner, kv_cache, limits, steps, ranks)
    if device.type == "cpu":
        threads = StepThreads(model.parameters(), kv_cache.block_bytes // kv_cache.block_size)
        return TorchRunner(model_runner, limits, threads)
    if steps:
        # Last, as graphs hold the addresses of the cache.
        with naming_flag("--gpu-memory-utilization", "the graphs do not fit", device):
            capture(steps, device)
    return CudaRunner(model_runner, limits)


def _static_steps(model_runner: ModelRunner, limits: RunnerLimits, most_tokens: int) -> list[StaticStep]:
    """Gives a runner buffers for steps of every size, with prefills up to `most_tokens` tokens; returns the steps."""
    max_num_seqs = limits.max_num_seqs
    logits = static_logits(model_runner, max_num_seqs)
    decode_steps = DecodeBuckets(model_runner, max_num_seqs, logits)
    mixed_steps = MixedBuckets(model_runner, max_num_seqs, most_tokens, logits)
    model_runner.decode_steps, model_runner.mixed_steps = decode_steps, mixed_steps
    return [*decode_steps.steps(), *mixed_steps.steps()]


def _allocate(
    config: ExecutorConfig,
    model_runner: ModelRunner,
    kv_cache: KVCache,
    limits: RunnerLimits,
    steps: Sequence[StaticStep],
    ranks: Ranks,
) -> RunnerLimits:
    """Gives the cache its blocks: `--num-kv-blocks`, or what fits all ranks and all rows could use at full length."""
    device, num_blocks = model_runner.state.device, config.num_kv_blocks
    if num_blocks is None:
        most_useful = limits.max_num_seqs * -(-limits.max_model_len // limits.block_size) + 1
        if device.type == "cuda":
            num_blocks = cuda_num_blocks(
                model_runner,
                limits,
                steps,
                config.gpu_memory_utilization,
                kv_cache.block_bytes,
                most_useful,
            )
        else:
            num_blocks = cpu_num_blocks(kv_cache.block_bytes * ranks.shard.size, most_useful)
        num_blocks = ranks.smallest(num_blocks, device)
    limits = replace(limits, num_blocks=num_blocks)
    flag = "--num-kv-blocks" if config.num_kv_blocks is not None else "--gpu-memory-utilization"
    what = f"{num_blocks} blocks of {kv_cache.block_bytes} bytes do not fit"
    with naming_flag(flag, what, device):
        kv_cache.allocate(num_blocks)
        if config.verify:
            model_runner.slot_tokens = SlotTokens(limits, device)
    return limits


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `--device` names for a rank of this host; ValueError, naming the flag, where there is none."""
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not num_devices):
        return torch.device("cpu")
    if not num_devices:
        raise ValueError("--device: cuda was asked for, but there is no CUDA device")
    if local_rank >= num_devices:
        raise ValueError(f"--tensor-parallel-size: this host has only {num_devices} CUDA devices")
    return torch.device("cuda", local_rank)


def choose_dtype(name: str, model_config: ModelConfig, model_dir: Path, device: torch.device) -> torch.dtype:
    """The dtype that `--dtype` names; for "auto" float32 on a CPU, else the checkpoint's own."""
    chosen = name
    if name == "auto":
        chosen = "float32" if device.type == "cpu" else model_config.dtype
    if chosen == "float16":
        raise CheckpointError(
            f"{model_dir / 'config.json'}: dtype: float16 is not served; give --dtype bfloat16 or float32"
        )
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[chosen]
