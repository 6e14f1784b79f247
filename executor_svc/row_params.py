"""How each row samples: its parameters on the device, and on the host what work it asks for."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from executor_svc.noise import seed_as_int64
from executor_svc.plan import RowSampling, StartRow
from nanoserve.arrays import Int32Array

BoolArray = NDArray[np.bool_]
Int64Array = NDArray[np.int64]

_INTEGERS = ("top_k", "seeds")
_CELLS_PER_INTEGER = 2
_REALS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)


class RowParams:
    """Sampling parameters on the device, each [num_rows]."""

    def __init__(self, cells: torch.Tensor, num_rows: int) -> None:
        """In `cells`: int32 [num_cells(num_rows)], all zero, at an address that int64 may have."""
        self._num_rows = num_rows
        integers, reals = cells.split(
            (_CELLS_PER_INTEGER * len(_INTEGERS) * num_rows, len(_REALS) * num_rows)
        )
        self.top_k, self.seeds = integers.view(torch.int64).view(len(_INTEGERS), num_rows).unbind()
        (
            self.temperature,
            self.top_p,
            self.min_p,
            self.repetition_penalty,
            self.frequency_penalty,
            self.presence_penalty,
        ) = reals.view(torch.float32).view(len(_REALS), num_rows).unbind()
        self.top_p.fill_(1.0)
        self.repetition_penalty.fill_(1.0)

    @staticmethod
    def num_cells(num_rows: int) -> int:
        """How many int32 hold the parameters of so many rows."""
        return (_CELLS_PER_INTEGER * len(_INTEGERS) + len(_REALS)) * num_rows

    def pack(self, starts: Sequence[StartRow]) -> tuple[Int64Array, Int32Array]:
        """The cells that hold the parameters of started rows, and what they get, both flat."""
        integers = [[start.sampling.top_k for start in starts], [seed_as_int64(s.seed) for s in starts]]
        reals = [[getattr(start.sampling, name) for start in starts] for name in _REALS]
        rows = np.array([start.row for start in starts], np.int64)
        columns = np.arange(len(_INTEGERS) + len(_REALS)) * self._num_rows
        first_integer = _CELLS_PER_INTEGER * (columns[: len(_INTEGERS), None] + rows)
        halves = first_integer[..., None] + np.arange(_CELLS_PER_INTEGER)
        first_real = _CELLS_PER_INTEGER * len(_INTEGERS) * self._num_rows
        singles = first_real + columns[: len(_REALS), None] + rows
        return (
            np.concatenate((halves.ravel(), singles.ravel())),
            np.concatenate(
                (
                    np.array(integers, np.int64).ravel().view(np.int32),
                    np.array(reals, np.float32).ravel().view(np.int32),
                )
            ),
        )


class RowNeeds:
    """On the host: what each row asks for, so that a step does only the work that one of its rows needs."""

    def __init__(self, num_rows: int) -> None:
        self.draws: BoolArray = np.zeros(num_rows, np.bool_)
        """Samples with noise, rather than greedily."""
        self.top_k_or_p: BoolArray = np.zeros(num_rows, np.bool_)
        self.min_p: BoolArray = np.zeros(num_rows, np.bool_)
        self.penalties: BoolArray = np.zeros(num_rows, np.bool_)
        self.logit_bias: BoolArray = np.zeros(num_rows, np.bool_)
        self.reports_gap: BoolArray = np.zeros(num_rows, np.bool_)
        self.special: BoolArray = np.zeros(num_rows, np.bool_)
        """Needs more than temperature and noise for its tokens, whatever their position."""
        self.first_end_position: Int32Array = np.zeros(num_rows, np.int32)
        """Position from which on the row's end tokens may be sampled."""
        self.num_prompt_tokens: Int32Array = np.zeros(num_rows, np.int32)
        self.logprobs: Int32Array = np.full(num_rows, -1, np.int32)
        """Alternatives to report with each sampled token; -1: report nothing."""
        self.prompt_logprobs: Int32Array = np.full(num_rows, -1, np.int32)

    def put(self, start: StartRow) -> None:
        """Sets what a started row needs."""
        row, sampling = start.row, start.sampling
        draws = sampling.temperature > 0
        self.draws[row] = draws
        # Greedy rows take the best token, which these filters always keep.
        self.top_k_or_p[row] = draws and (sampling.top_k > 0 or sampling.top_p < 1)
        self.min_p[row] = draws and sampling.min_p > 0
        self.penalties[row] = has_penalties(sampling)
        self.logit_bias[row] = len(sampling.logit_bias_ids) > 0
        self.reports_gap[row] = sampling.report_gap
        filtered = self.top_k_or_p[row] or self.min_p[row]
        processed = self.penalties[row] or self.logit_bias[row]
        self.special[row] = filtered or processed or sampling.report_gap
        limited = sampling.min_tokens > 0 and len(sampling.end_token_ids) > 0
        self.first_end_position[row] = start.num_prompt_tokens + sampling.min_tokens if limited else 0
        self.num_prompt_tokens[row] = start.num_prompt_tokens
        self.logprobs[row] = -1 if sampling.logprobs is None else sampling.logprobs
        self.prompt_logprobs[row] = -1 if sampling.prompt_logprobs is None else sampling.prompt_logprobs


def has_penalties(sampling: RowSampling) -> bool:
    """Whether any penalty of the row is not neutral."""
    return (
        sampling.repetition_penalty != 1 or sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
    )
