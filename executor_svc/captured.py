"""What a model runner asks of steps over buffers that are there already, as those of CUDA graphs are."""

from collections.abc import Sequence
from typing import Protocol

import torch

from executor_svc.plan import Prefill
from nanoserve.arrays import Int32Array


class DecodeSteps(Protocol):
    """Whole decode steps over buffers that are there already, for any number of rows up to a largest."""

    def run(self, rows: Int32Array) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes one step of rows that only decode: samples by temperature and noise, and advances the rows.

        Returns results, int32 [2, at least num_rows], and raw logits, [at least num_rows, vocab_size] (of a rank among
        several its own columns), both to be overwritten by the next run.
        """


class MixedSteps(Protocol):
    """Steps with prefills, over buffers that are there already."""

    def run(self, decode_rows: Int32Array, prefills: Sequence[Prefill]) -> torch.Tensor | None:
        """Runs the model over a batch and advances its rows; None, nothing being done, where no buffers hold it.

        Returns hidden states, [at least num_tokens, hidden_size], to be overwritten by the next run.
        """

    def sample(
        self, last_tokens: Int32Array, rows: Int32Array, positions: Int32Array
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples behind tokens of the last run, given by index, by temperature and noise; writes to the rows.

        The arguments are [num_rows]; `positions` are the sampled tokens'. Returns what DecodeSteps.run does.
        """
