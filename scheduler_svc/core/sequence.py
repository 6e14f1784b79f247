"""One output of a request, from its arrival to its end."""

from dataclasses import dataclass, field

import numpy as np

from scheduler_svc.core.masks import TokenMask
from scheduler_svc.core.prefix_cache import CacheEntry
from scheduler_svc.core.request import Finish, Int32Array, Request, sequence_seed


@dataclass(slots=True, eq=False)
class Sequence:
    """A sequence waits or runs. While it runs, its counters and confirmed tokens are in its row of `RowTable`."""

    sequence_id: int
    request: Request
    index: int
    """Which of the request's outputs it is."""
    token_ids: Int32Array
    """All confirmed tokens, prompt first; current only while the sequence waits."""
    urgency: float
    """The smaller goes first; what orders sequences before their arrival does."""
    row: int = -1
    """Its row while it runs."""
    incarnation: int = 0
    """Which of its starts this is, unique among all starts of all sequences."""
    block_table: list[int] = field(default_factory=list)
    num_registered_blocks: int = 0
    """Leading blocks with an entry in the prefix cache; -1 once no more are to be registered."""
    last_entry: CacheEntry | None = None
    """Entry of the last of them."""
    last_step: int = 0
    """The last step planned before it was preempted; it is not started again before that step's result."""
    was_started: bool = False
    num_preemptions: int = 0
    mask: TokenMask | None = None
    """Of a guided sequence: which tokens may come behind the confirmed ones; None until the shell has told."""
    reports_prompt: bool = False
    """Whether it is the one of its request that the prompt's log-probabilities come by, where they are asked for."""
    num_prompt_positions_judged: int = 0
    """Prompt positions whose log-probabilities were reported, position 0, which has none, not counted."""

    @property
    def rank(self) -> tuple[float, int]:
        """Orders sequences: the smaller runs first and is preempted last."""
        return (self.urgency, self.sequence_id)

    @property
    def seed(self) -> int:
        """The sequence seed."""
        return sequence_seed(self.request.seed, self.index)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def max_len(self) -> int:
        """Most tokens it may come to, prompt and output."""
        return self.num_prompt_tokens + self.request.max_tokens

    @property
    def lacks_mask(self) -> bool:
        """Whether the next token may not be sampled yet."""
        return self.request.guide is not None and self.mask is None

    @property
    def owes_prompt_logprobs(self) -> bool:
        """Whether log-probabilities of the prompt are still to be reported."""
        wanted = self.reports_prompt and self.request.sampling.prompt_logprobs is not None
        return wanted and self.num_prompt_positions_judged < self.num_prompt_tokens - 1

    def append(self, token_id: int) -> Finish:
        """Takes a token that was in flight when the sequence was preempted; returns whether it ends it."""
        self.token_ids = np.append(self.token_ids, np.int32(token_id))
        self.mask = None
        if token_id in self.request.end_token_ids:
            return Finish.STOP
        return Finish.LENGTH if len(self.token_ids) >= self.max_len else Finish.NONE
