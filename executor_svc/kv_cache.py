"""The paged KV cache: for each layer, keys and values of every slot of every block."""

import math

import torch

from executor_svc.host_memory import available_bytes
from executor_svc.models.config import ModelConfig
from executor_svc.parallel.shard import Shard

_CPU_CACHE_BYTES = 2 * 1024**3
_WHOLE = Shard()


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
        shard: Shard = _WHOLE,
    ) -> None:
        """Of the key-value heads of a shard."""
        self.block_size = block_size
        self._shape = (block_size, shard.kv_heads(model).count, model.head_dim)
        self._num_layers = model.num_hidden_layers
        self._dtype, self._device = dtype, device
        self.num_blocks = 0
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.allocate(num_blocks)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers."""
        return 2 * self._num_layers * math.prod(self._shape) * self._dtype.itemsize

    def allocate(self, num_blocks: int) -> None:
        """Makes the cache one of so many blocks, all zero; RuntimeError or MemoryError where they do not fit."""
        self.keys, self.values = [], []
        shape = (num_blocks, *self._shape)
        self.keys = [
            torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in range(self._num_layers)
        ]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.num_blocks = num_blocks

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
        """Puts [num_tokens, num_kv_heads, head_dim] of each into `slots`: int64 [num_tokens]."""
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, key)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, value)


def cpu_num_blocks(bytes_per_block: int, most_useful: int) -> int:
    """On the CPU: blocks, block 0 included, for a quarter of what memory is available, at most 2 GiB, or all useful."""
    return num_blocks_within(min(available_bytes() // 4, _CPU_CACHE_BYTES), bytes_per_block, most_useful)


def num_blocks_within(budget_bytes: int, bytes_per_block: int, most_useful: int) -> int:
    """As many blocks as fit, but no more than `most_useful`; ValueError, naming the flag, where not even two fit."""
    num_blocks = min(budget_bytes // bytes_per_block, most_useful)
    if num_blocks < 2:
        raise ValueError(
            f"--num-kv-blocks: {budget_bytes} bytes of memory hold fewer than 2 blocks of {bytes_per_block} bytes; "
            "choose a smaller --block-size, on CUDA a higher --gpu-memory-utilization, or give the number"
        )
    return num_blocks
