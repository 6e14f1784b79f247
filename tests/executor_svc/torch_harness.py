"""Random checkpoints, and a hand that plans steps for a TorchRunner: blocks shuffled, free ones full of NaN."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from executor_svc.build import build_torch_runner
from executor_svc.config import ExecutorConfig
from executor_svc.cuda_runner import CudaRunner
from executor_svc.kv_cache import KVCache
from executor_svc.plan import Prefill, RowMask, RowSampling, StartRow, Step, StepPlan, SubStepOutput
from executor_svc.row_table import RowTable
from executor_svc.runner import PendingStep
from executor_svc.torch_runner import TorchRunner

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import transformers

VOCAB_SIZE = 131
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}


def save_checkpoint(
    folder: Path,
    kind: str,
    *,
    max_shard_size: str = "1GB",
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> transformers.PreTrainedModel:
    """Saves a random small model of `kind` "Qwen2" or "Qwen3" and returns transformers' own; biases and norms vary."""
    settings = SMALL | changes
    if kind == "Qwen3":
        settings = {"head_dim": 16} | settings
    config = getattr(transformers, f"{kind}Config")(**settings)
    torch.manual_seed(7)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            elif name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def make_runner(folder: Path, **changes: Any) -> TorchRunner | CudaRunner:
    """A runner for a saved checkpoint: on the CPU, 8 rows, 159 blocks of 4 tokens, with --verify."""
    settings = {
        "device": "cpu",
        "block_size": 4,
        "num_kv_blocks": 160,
        "max_num_seqs": 8,
        "max_model_len": 256,
        "max_num_batched_tokens": 512,
        "verify": True,
    }
    return build_torch_runner(ExecutorConfig(**(settings | changes)), folder)


def kv_cache_of(runner: TorchRunner | CudaRunner) -> KVCache:
    """The runner's cache. To be touched only while no step runs."""
    cache = runner.model_runner.backend.ops.kv_cache
    assert isinstance(cache, KVCache)
    return cache


@dataclass
class Row:
    """What the hand knows of a row."""

    token_ids: list[int]
    table: list[int]
    num_shared_blocks: int
    length: int


@dataclass
class _Draft:
    """The plan being made."""

    release_rows: list[int] = field(default_factory=list)
    starts: list[StartRow] = field(default_factory=list)
    new_blocks: list[tuple[int, int]] = field(default_factory=list)
    prefills: list[Prefill] = field(default_factory=list)
    decodes: list[tuple[int, int]] = field(default_factory=list)
    masks: list[RowMask] = field(default_factory=list)


class Hand:
    """Makes plans, has a RowTable check them and runs them. A row's tokens grow as results come."""

    def __init__(self, runner: TorchRunner | CudaRunner, seed: int = 0) -> None:
        self.runner = runner
        self.rng = np.random.default_rng(seed)
        self.free = self.rng.permutation(np.arange(1, runner.limits.num_blocks)).tolist()
        self.table = RowTable(runner.limits)
        self.rows: dict[int, Row] = {}
        self.poison(self.free)
        self._draft = _Draft()
        self._step_id = 0

    def poison(self, blocks: Iterable[int]) -> None:
        cache = kv_cache_of(self.runner)
        for tensor in (*cache.keys, *cache.values):
            tensor[list(blocks)] = torch.nan

    def start(
        self,
        row: int,
        token_ids: Sequence[int],
        sampling: RowSampling | None = None,
        *,
        seed: int = 0,
        num_prompt_tokens: int | None = None,
        share: tuple[int, int] = (0, 0),
    ) -> None:
        """Begins a sequence; `share` is a row and how many of its first blocks to share."""
        shared = self.rows[share[0]].table[: share[1]] if share[1] else []
        state = self.rows[row] = Row(
            list(token_ids), list(shared), len(shared), len(shared) * self.runner.limits.block_size
        )
        self._grow(state, len(token_ids))
        self._draft.starts.append(
            StartRow(
                row=row,
                token_ids=np.array(token_ids, np.int32),
                num_prompt_tokens=num_prompt_tokens or len(token_ids),
                num_computed_tokens=state.length,
                block_table=np.array(state.table, np.int32),
                sampling=sampling or RowSampling(),
                seed=seed,
            )
        )

    def prefill(self, row: int, num_tokens: int | None = None) -> None:
        """Computes the next known tokens; all, where no number is given."""
        state = self.rows[row]
        left = len(state.token_ids) - state.length
        count = left if num_tokens is None else min(num_tokens, left)
        self._draft.prefills.append(Prefill(row, state.length, count, count == left))
        state.length += count

    def decode(self, row: int, num_steps: int = 1) -> None:
        state = self.rows[row]
        for block in self._grow(state, state.length + num_steps):
            self._draft.new_blocks.append((row, block))
        self._draft.decodes.append((row, num_steps))
        state.length += num_steps

    def mask(self, row: int, allowed: Sequence[int]) -> None:
        flags = np.zeros(self.runner.limits.vocab_size, np.bool_)
        flags[list(allowed)] = True
        self._draft.masks.append(RowMask.of(row, flags))

    def release(self, row: int) -> None:
        """Ends a sequence; its own blocks are the next to be given out, in this very plan if need be."""
        state = self.rows.pop(row)
        self.free.extend(state.table[state.num_shared_blocks :])
        self._draft.release_rows.append(row)

    def plan(self) -> Step:
        """The plan made since the last one, checked."""
        draft, self._draft = self._draft, _Draft()
        self._step_id += 1
        plan = StepPlan(
            step_id=self._step_id,
            release_rows=np.array(draft.release_rows, np.int32),
            starts=tuple(draft.starts),
            new_block_rows=np.array([row for row, _ in draft.new_blocks], np.int32),
            new_block_ids=np.array([block for _, block in draft.new_blocks], np.int32),
            prefills=tuple(draft.prefills),
            decode_rows=np.array([row for row, _ in draft.decodes], np.int32),
            decode_row_steps=np.array([steps for _, steps in draft.decodes], np.int32),
            num_decode_steps=max((steps for _, steps in draft.decodes), default=1),
            masks=tuple(draft.masks),
        )
        return self.table.apply(plan)

    def launch(self) -> tuple[Step, PendingStep]:
        step = self.plan()
        return step, self.runner.launch(step)

    def finish(self, launched: tuple[Step, PendingStep]) -> list[SubStepOutput]:
        """Waits for a step and takes its tokens."""
        step, pending = launched
        outputs = [pending.wait(sub_step) for sub_step in range(step.plan.num_decode_steps)]
        for output in outputs:
            for row, token in zip(output.rows.tolist(), output.token_ids.tolist(), strict=True):
                self.rows[row].token_ids.append(token)
        return outputs

    def run(self) -> list[SubStepOutput]:
        """Runs the plan made since the last one; all free blocks are poisoned after."""
        outputs = self.finish(self.launch())
        self.poison(self.free)
        return outputs

    def _grow(self, state: Row, num_positions: int) -> list[int]:
        missing = -(-num_positions // self.runner.limits.block_size) - len(state.table)
        blocks = [self.free.pop() for _ in range(missing)]
        state.table.extend(blocks)
        return blocks


def random_tokens(rng: np.random.Generator, count: int) -> list[int]:
    return rng.integers(0, VOCAB_SIZE, count).tolist()


def generate_alone(
    runner: TorchRunner | CudaRunner,
    token_ids: Sequence[int],
    count: int,
    sampling: RowSampling,
    seed: int = 0,
) -> list[int]:
    """`count` tokens of one sequence that has the runner to itself."""
    runner.reset()
    hand = Hand(runner)
    hand.start(0, token_ids, sampling, seed=seed)
    hand.prefill(0)
    hand.run()
    for _ in range(count - 1):
        hand.decode(0)
        hand.run()
    return hand.rows[0].token_ids[len(token_ids) :]
