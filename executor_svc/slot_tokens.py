"""`--verify`: which token each KV slot holds, kept beside the cache and compared with what rows claim."""

from collections.abc import Sequence

import numpy as np
import torch

from executor_svc.batch import BatchState
from executor_svc.plan import ErrorCode, Prefill, StartRow, StepFailure
from executor_svc.runner import RunnerLimits
from nanoserve.arrays import Int32Array

_NEVER_WRITTEN = -1
# Bounds the scratch memory: slots compared at once.
_MAX_COMPARED = 2**20


class SlotTokens:
    """A token id for each slot, on the device: int32 [num_blocks * block_size]. Lives as long as the KV it tells of.

    Finds a slot that another sequence wrote to, or nobody, or a prefix hit on other tokens. Not a hit on equal tokens
    behind another prefix, whose keys and values differ too: the virtual executor looks for those.
    """

    def __init__(self, limits: RunnerLimits, device: torch.device) -> None:
        self._block_size = limits.block_size
        num_slots = limits.num_blocks * limits.block_size
        self._tokens = torch.full((num_slots,), _NEVER_WRITTEN, dtype=torch.int32, device=device)

    def write(self, slots: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Notes the tokens whose KV goes into `slots`: int64 [num_tokens]; `token_ids` int32 [num_tokens]."""
        self._tokens[slots] = token_ids

    def check(self, state: BatchState, lengths: dict[int, int]) -> None:
        """Compares, for rows by the number of their first positions, what they hold with what they claim to hold.

        StepFailure DATA_LOSS, naming row, position and block, where a slot holds another token.
        """
        if not lengths:
            return
        rows = np.fromiter(lengths.keys(), np.int32, len(lengths))
        counts = np.fromiter(lengths.values(), np.int32, len(lengths))
        num_rows = max(1, _MAX_COMPARED // max(1, int(counts.max())))
        for begin in range(0, len(rows), num_rows):
            part = slice(begin, begin + num_rows)
            self._check_part(state, rows[part], counts[part])

    def _check_part(self, state: BatchState, rows: Int32Array, counts: Int32Array) -> None:
        """The same for as many rows as are compared at once; `rows` and `counts` [num_rows]."""
        longest, size, device = int(counts.max()), self._block_size, state.device
        num_blocks = -(-longest // size)
        chosen = torch.tensor(rows, device=device)
        tables = state.block_tables[chosen, :num_blocks].long()
        slots = (tables[:, :, None] * size + torch.arange(size, device=device)).flatten(1)[:, :longest]
        held, claimed = self._tokens[slots], state.token_ids[chosen, :longest]
        counted = torch.arange(longest, device=device) < torch.tensor(counts, device=device)[:, None]
        wrong = (held != claimed) & counted
        if not wrong.any():
            return
        index, position = wrong.nonzero()[0].tolist()
        row, found = int(rows[index]), int(held[index, position])
        block = int(tables[index, position // size])
        holds = "nothing" if found == _NEVER_WRITTEN else f"token {found}"
        what = f"block {block} holds {holds}, not token {int(claimed[index, position])}"
        raise StepFailure(ErrorCode.DATA_LOSS, f"row {row}, position {position}: {what}", rows=(row,))


def claimed_lengths(
    starts: Sequence[StartRow], prefills: Sequence[Prefill], decode_rows: Int32Array, positions: Int32Array
) -> dict[int, int]:
    """By row how many positions are computed once a forward pass is: of its rows, and of those just started."""
    lengths = {start.row: start.num_computed_tokens for start in starts}
    lengths |= {run.row: run.first_position + run.num_tokens for run in prefills}
    lengths |= zip(decode_rows.tolist(), (positions + 1).tolist(), strict=True)
    return lengths
