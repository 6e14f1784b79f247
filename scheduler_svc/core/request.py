"""What the core is asked for, and why it may refuse."""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]

ONE: Int64Array = np.array(1, np.int64)
"""Added to a small array, it costs half of what the number 1 does."""

_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens and what to report; the core passes it on and reads only `prompt_logprobs`.

    Every default is resolved: see RowSampling in executor.proto for meanings and ranges.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Guide:
    """What an output must look like. The core only waits for the masks that the shell makes of it."""

    kind: str
    """"json_schema", "regex", "choice" or "grammar"."""
    text: str
    """In the language of its kind; the texts of a choice as a JSON array."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, asked to be continued by `n` outputs, each of which becomes one sequence."""

    request_id: str
    prompt_token_ids: Int32Array
    """[num_prompt_tokens], at least one, each in [0, vocab_size)."""
    max_tokens: int
    """Most output tokens of each output, at least 1."""
    seed: int = 0
    """Request seed, an unsigned 64-bit number; see `sequence_seed`."""
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    min_tokens: int = 0
    """Output tokens before which none of `end_token_ids` is sampled."""
    end_token_ids: tuple[int, ...] = ()
    """Tokens that end an output."""
    priority: int = 0
    """Higher runs first."""
    cache_salt: bytes = b""
    """Prefix blocks are shared only between requests of the same salt."""
    resumed: tuple[Int32Array | None, ...] = ()
    """By output: the tokens that it has already, fewer than max_tokens; None where it is over. Empty: all begin."""
    guide: Guide | None = None
    """Where there is one, no token is sampled before `Scheduler.set_mask` says which are allowed."""


class Finish(IntEnum):
    """How a sequence ended; NONE while it has not."""

    NONE = 0
    STOP = 1
    """It sampled one of its end tokens."""
    LENGTH = 2
    """It has `max_tokens` output tokens."""
    FAILED = 3
    """The executor reported that this row could not sample."""
    NO_ROOM = 4
    """The executor came back with a cache in which the sequence can never fit."""


class RequestRefused(Exception):
    """A request that could never be served: `field` is the request's field at fault."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


def sequence_seed(request_seed: int, index: int) -> int:
    """Seed of a request's output `index`: the request's own for index 0, else splitmix64 of both.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014 (the output function).
    """
    if index == 0:
        return request_seed
    z = (request_seed + index * 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)
