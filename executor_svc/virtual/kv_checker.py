"""A KV cache that knows what it holds, so that a read of anything else is found.

A key or value depends on the token at its position and on all tokens before it. So a slot holds a hash of exactly
that (the chain: a sum, modulo 2**64, of one hash for each (position, token) so far), and each row knows the chain that
its own history asks for at each position. Slots that no owner has written since the block was handed out are poison.
"""

import numpy as np

from executor_svc.plan import ErrorCode, StartRow, StepFailure
from executor_svc.runner import RunnerLimits
from executor_svc.virtual.tokens import UInt64Array, splitmix64
from nanoserve.arrays import Int32Array

_POISON = np.uint64(0)


def _chain(tokens: Int32Array, first_position: int, before: np.uint64) -> UInt64Array:
    """The chain at each of the tokens, the first at `first_position` and with `before` as the chain ahead of it."""
    # A failed row's token is -1: its low 32 bits are a number like others.
    entries = np.arange(first_position, first_position + len(tokens), dtype=np.uint64) << np.uint64(32)
    chain = splitmix64(entries | (tokens.astype(np.uint64) & np.uint64(0xFFFFFFFF)))
    chain[:1] += before  # a slice: array arithmetic wraps silently
    return np.cumsum(chain, dtype=np.uint64)


class _Row:
    """One row's history and block table."""

    def __init__(self, start: StartRow, limits: RunnerLimits) -> None:
        self.num_tokens = len(start.token_ids)
        self.chain = np.empty(limits.max_model_len + 1, np.uint64)
        self.chain[: self.num_tokens] = _chain(start.token_ids, 0, np.uint64(0))
        self.table = start.block_table.tolist()
        self.num_shared = start.num_computed_tokens // limits.block_size
        self.length = start.num_computed_tokens

    def append(self, token: int) -> None:
        """Takes a sampled token into the history."""
        before = self.chain[self.num_tokens - 1]
        self.chain[self.num_tokens] = _chain(np.array([token], np.int32), self.num_tokens, before)[0]
        self.num_tokens += 1


class KvChecker:
    """The content of every KV slot, and what every row expects of it. Rows and plans are taken as valid."""

    def __init__(self, limits: RunnerLimits) -> None:
        self._limits = limits
        self._rows: dict[int, _Row] = {}
        self._slots: UInt64Array = np.full((limits.num_blocks, limits.block_size), _POISON)

    def reset(self, *, keep_kv: bool = True) -> None:
        """Releases all rows; without `keep_kv` poisons every block."""
        for row in list(self._rows):
            self.release(row)
        if not keep_kv:
            self._slots[:] = _POISON

    def release(self, row: int) -> None:
        """Ends a row's sequence. Its blocks that are not full can serve nobody: they are poisoned."""
        state = self._rows.pop(row)
        num_full = state.length // self._limits.block_size
        self._slots[state.table[max(num_full, state.num_shared) :]] = _POISON

    def start(self, start: StartRow) -> None:
        """Begins a sequence; the blocks that it may write are poisoned."""
        state = self._rows[start.row] = _Row(start, self._limits)
        self._slots[state.table[state.num_shared :]] = _POISON

    def append_block(self, row: int, block: int) -> None:
        """Gives a row one more block, poisoned."""
        self._rows[row].table.append(block)
        self._slots[block] = _POISON

    def append_token(self, row: int, token: int) -> None:
        """Takes the token that a row sampled into its history."""
        self._rows[row].append(token)

    def write(self, row: int, first_position: int, num_tokens: int) -> None:
        """Writes the KV of a run of a row's own tokens."""
        state, block_size = self._rows[row], self._limits.block_size
        end = first_position + num_tokens
        for index in range(first_position // block_size, -(-end // block_size)):
            low, high = max(first_position, index * block_size), min(end, (index + 1) * block_size)
            slots = self._slots[state.table[index]]
            slots[low - index * block_size : high - index * block_size] = state.chain[low:high]
        state.length = end

    def check(self, row: int) -> None:
        """Reads the row's KV; StepFailure DATA_LOSS where a slot holds anything but what its history wrote there."""
        state, block_size = self._rows[row], self._limits.block_size
        num_blocks = -(-state.length // block_size)
        held = self._slots[state.table[:num_blocks]].reshape(-1)[: state.length]
        wrong = held != state.chain[: state.length]
        if wrong.any():
            position = int(wrong.argmax())
            block = state.table[position // block_size]
            found = "poison" if held[position] == _POISON else "another token or prefix"
            what = f"row {row}, position {position}: block {block} holds {found}"
            raise StepFailure(ErrorCode.DATA_LOSS, what, rows=(row,))
