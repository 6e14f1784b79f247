"""The decoder layers of a decode step of one row, in one launch whose programs stay for all layers.

Where a layer's weights are small, launches, waits and joining shares take longer than the weights' way from memory:
here programs, one a multiprocessor, go through all layers together, meeting between phases (barrier.py).
"""

import math
from collections.abc import Sequence

import torch

from executor_svc.attention import AttentionContext
from executor_svc.kernels.arrivals import arrivals
from executor_svc.kernels.resident.kernel import NUM_PHASES, POINTERS, resident_kernel
from executor_svc.kernels.resident.sizes import NUM_WARPS, TILE
from executor_svc.kv_cache import KVCache
from executor_svc.layers.rotary import Rotation
from executor_svc.models.qwen import QwenDecoderLayer

_MAX_WEIGHT = 2**24  # of elements: beyond, the weights' way from memory is what counts
_NUM_STAGES = 3  # tiles of keys and values on their way from memory at once, and one


class ResidentLayers:
    """See executor_svc.models.qwen.DecodeLayers. One launch at a time may run on a device: its programs fill it."""

    def __init__(self, kv_cache: KVCache, num_programs: int) -> None:
        """`num_programs` is the device's number of multiprocessors, as all of them must run at a time."""
        self._kv_cache = kv_cache
        self._num_programs = num_programs
        self._keys: list[torch.Tensor] = []
        self._table = torch.empty(0, dtype=torch.int64)

    def run(
        self,
        layers: Sequence[QwenDecoderLayer],
        x: torch.Tensor,
        rotation: Rotation,
        context: AttentionContext,
    ) -> torch.Tensor | None:
        """[1, hidden_size] to the sum of the last layer's outputs; None where this is not for the kernel."""
        is_decode = len(x) == context.num_decodes == 1 and not len(context.prefill_rows)
        if not is_decode or not self._serves(layers[0], x):
            return None
        keys = self._kv_cache.keys
        if self._keys is not keys:
            self._keys, self._table = keys, _pointers(layers, self._kv_cache)
        hidden = x.clone()
        self._launch(layers[0], len(layers), hidden, rotation, context)
        return hidden

    def _serves(self, layer: QwenDecoderLayer, x: torch.Tensor) -> bool:
        """Whether the kernel can compute layers like this, and is faster than one launch after another."""
        attention, mlp = layer.self_attn, layer.mlp
        linears = (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)
        return (
            all(
                linear.weight.numel() <= _MAX_WEIGHT and all(size % 16 == 0 for size in linear.weight.shape)
                for linear in linears
            )
            and self._kv_cache.keys[0].shape[2] <= self._num_programs
            and (x.dtype == torch.bfloat16 or not x.is_cuda)
        )

    def _launch(
        self,
        layer: QwenDecoderLayer,
        num_layers: int,
        hidden: torch.Tensor,
        rotation: Rotation,
        context: AttentionContext,
    ) -> None:
        """Overwrites `hidden`; `layer` is the first."""
        num_kv_heads, head_dim = self._kv_cache.keys[0].shape[2:]
        constants = self._constants(layer, hidden, context)
        scratch = _scratch(layer, hidden, head_dim, constants["SPLITS"])

        def launch(first_layer: int, end_layer: int, phase: int | None) -> None:
            resident_kernel[(self._num_programs,)](
                hidden,
                *scratch,
                arrivals("resident_shares", hidden.device, num_kv_heads),
                arrivals("resident", hidden.device, 1),
                self._table,
                *rotation,
                context.slot_mapping,
                context.block_tables,
                context.block_tables.stride(0),
                context.decode_rows,
                context.lengths,
                first_layer,
                end_layer,
                layer.input_layernorm.eps,
                head_dim**-0.5 * math.log2(math.e),
                **constants,
                PHASE=phase,
                num_warps=NUM_WARPS,
                num_stages=_NUM_STAGES,
                launch_cooperative_grid=hidden.is_cuda,
            )

        if hidden.is_cuda:
            launch(0, num_layers, None)
            return
        # Programs of the interpreter run one after another: each phase is a launch of its own there.
        for index in range(num_layers):
            for phase in range(NUM_PHASES):
                launch(index, index + 1, phase)

    def _constants(
        self, layer: QwenDecoderLayer, hidden: torch.Tensor, context: AttentionContext
    ) -> dict[str, int]:
        """What the kernel is compiled for, but for its phase."""
        attention = layer.self_attn
        _, block_size, num_kv_heads, head_dim = self._kv_cache.keys[0].shape
        max_context = context.block_tables.shape[1] * block_size
        return {
            "HIDDEN": hidden.shape[1],
            "INTERMEDIATE": layer.mlp.down_proj.weight.shape[1],
            "NUM_KV_HEADS": num_kv_heads,
            "GROUP": attention.num_heads // num_kv_heads,
            "HEAD_DIM": head_dim,
            "BLOCK_SIZE": block_size,
            "QKV_BIAS": attention.qkv_proj.bias is not None,
            "OUTPUT_BIAS": attention.o_proj.bias is not None,
            "QK_NORM": attention.q_norm is not None,
            "PROGRAMS": self._num_programs,
            "SPLITS": min(-(-max_context // TILE.value), self._num_programs // num_kv_heads),
        }


def _scratch(
    layer: QwenDecoderLayer, hidden: torch.Tensor, head_dim: int, num_splits: int
) -> tuple[torch.Tensor, ...]:
    """What phases hand on: queries, keys and values; attention's output; the MLP's; and shares of it, with weights."""
    attention, num_heads = layer.self_attn, layer.self_attn.num_heads
    num_shares = num_heads * num_splits
    return (
        hidden.new_empty(attention.qkv_proj.weight.shape[0]),
        hidden.new_empty(num_heads * head_dim),
        hidden.new_empty(layer.mlp.down_proj.weight.shape[1]),
        torch.empty(num_shares * head_dim, dtype=torch.float32, device=hidden.device),
        torch.empty(num_shares, dtype=torch.float32, device=hidden.device),
    )


def _pointers(layers: Sequence[QwenDecoderLayer], kv_cache: KVCache) -> torch.Tensor:
    """What POINTERS names, of each layer, as addresses: int64 [num_layers, len(POINTERS)], on the device."""
    rows = []
    for layer, keys, values in zip(layers, kv_cache.keys, kv_cache.values, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        tensors = {
            "input_norm": layer.input_layernorm.weight,
            "qkv": attention.qkv_proj.weight,
            "qkv_bias": attention.qkv_proj.bias,
            "q_norm": None if attention.q_norm is None else attention.q_norm.weight,
            "k_norm": None if attention.k_norm is None else attention.k_norm.weight,
            "o": attention.o_proj.weight,
            "o_bias": attention.o_proj.bias,
            "post_norm": layer.post_attention_layernorm.weight,
            "gate_up": mlp.gate_up_proj.weight,
            "down": mlp.down_proj.weight,
            "keys": keys,
            "values": values,
        }
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in map(tensors.get, POINTERS)]
        assert all(address % 16 == 0 for address in addresses)
        rows.append(addresses)
    return torch.tensor(rows, dtype=torch.int64, device=kv_cache.keys[0].device)
