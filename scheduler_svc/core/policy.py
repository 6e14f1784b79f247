"""Batching policies: when sequences may join the running ones, and what becomes of those that end.

`continuous` is how the service runs. The others reproduce what came before it, for the study: the same core, the same
tokens for the same request, and only these answers changed.
"""

from typing import Protocol


class BatchingPolicy(Protocol):
    """Asked by the scheduler in each step."""

    pads: bool
    """Whether a sequence that ended keeps its row and blocks, and goes on decoding, until its whole batch has ended."""

    def begin_step(self, num_running: int) -> None:
        """A step is about to be planned, with so many sequences on rows."""

    def may_start(self, num_running: int) -> bool:
        """Whether one more sequence may start in this step, beside so many."""

    def may_decode(self, num_prefilling: int) -> bool:
        """Whether sequences past their prefill decode in this step, with so many that are not."""

    def end_admission(self, *, out_of_tokens: bool) -> None:
        """No more sequences start in this step; `out_of_tokens` where only the step's token budget stopped them."""


class Continuous:
    """Sequences join and leave at every step (Yu et al., "Orca", OSDI 2022)."""

    pads = False

    def begin_step(self, num_running: int) -> None:
        """Nothing to note."""

    def may_start(self, num_running: int) -> bool:
        """Whenever there is room."""
        return True

    def may_decode(self, num_prefilling: int) -> bool:
        """Prefill and decode share a step."""
        return True

    def end_admission(self, *, out_of_tokens: bool) -> None:
        """Nothing to note."""


class Naive(Continuous):
    """One sequence at a time."""

    def may_start(self, num_running: int) -> bool:
        """When nothing runs."""
        return num_running == 0


class Static(Continuous):
    """A batch is gathered from what waits, computed, and runs until its last sequence ends.

    Gathering lasts as many steps as its prompts take; decoding begins when all prompts are computed. Prompts stay
    ragged: padding is what rows decode after their sequence has ended.
    """

    pads = True

    def __init__(self) -> None:
        self._gathering = False

    def begin_step(self, num_running: int) -> None:
        """A new batch begins when the last one has left."""
        if num_running == 0:
            self._gathering = True

    def may_start(self, num_running: int) -> bool:
        """While the batch is gathered."""
        return self._gathering

    def may_decode(self, num_prefilling: int) -> bool:
        """Once the batch is complete and its prompts are computed."""
        return not self._gathering and num_prefilling == 0

    def end_admission(self, *, out_of_tokens: bool) -> None:
        """The batch is complete when rows, blocks or requests ran out, and not the tokens of a step."""
        self._gathering = self._gathering and out_of_tokens


POLICIES: dict[str, type[BatchingPolicy]] = {
    "continuous": Continuous,
    "static": Static,
    "naive": Naive,
}
