"""The paged KV cache: for each layer, keys and values of every slot of every block."""

import torch

from executor_svc.host_memory import available_bytes
from executor_svc.models.config import ModelConfig

_CPU_CACHE_BYTES = 2 * 1024**3


class KVCache:
    """Keys and values, each [num_blocks, block_size, num_kv_heads, head_dim] a layer.

    Block 0 belongs to no row: padding may be written there, and it is finite from the start.
    """

    def __init__(
        self,
        model: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        shape = (num_blocks, block_size, model.num_key_value_heads, model.head_dim)
        layers = range(model.num_hidden_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
        """Puts [num_tokens, num_kv_heads, head_dim] of each into `slots`: int64 [num_tokens], none twice."""
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, key)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, value)


def block_bytes(model: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block in all layers."""
    numbers = 2 * model.num_hidden_layers * block_size * model.num_key_value_heads * model.head_dim
    return numbers * dtype.itemsize


def default_num_blocks(
    bytes_per_block: int, most_useful: int, device: torch.device, utilization: float
) -> int:
    """As many blocks as memory allows, block 0 included, but no more than `most_useful`.

    On CUDA `utilization` of the memory now free; on the CPU a quarter of what is available, at most 2 GiB.
    ValueError, naming the flag, where not even two fit.
    """
    if device.type == "cuda":
        # The rest is for activations and for the scratch of sampling, which slices of rows bound at some 200 MB.
        budget = int(torch.cuda.mem_get_info(device)[0] * utilization)
    else:
        budget = min(available_bytes() // 4, _CPU_CACHE_BYTES)
    num_blocks = min(budget // bytes_per_block, most_useful)
    if num_blocks < 2:
        raise ValueError(
            f"--num-kv-blocks: {budget} bytes of memory hold fewer than 2 blocks of {bytes_per_block} bytes; "
            "choose a smaller --block-size, or give the number"
        )
    return num_blocks
