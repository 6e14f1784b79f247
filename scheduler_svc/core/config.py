"""How to schedule."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """The policy. The sizes of the executor come with the session."""

    max_num_batched_tokens: int
    """Most tokens a step computes: prefill tokens plus decoding sequences. The session's own limit counts too."""
    pipeline_depth: int = 2
    """Most plans sent and not yet answered."""
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    """Without it a prompt is computed in one step, and one that may come to more than fits in one is refused."""
    hash_seed: int = 0
    """64 random bits that seed the prefix keys."""
    priority_aging_seconds: float | None = None
    """Waiting this long is worth one class of priority. None: classes are strict."""
    batching: str = "continuous"
    """A name in POLICIES; all but "continuous" are for the study."""
    kv_allocation: str = "paged"
    """"contiguous" takes blocks for max_model_len at the start of each sequence, and shares none."""
    enable_kv_cache: bool = True
    """Without it every token is computed from the whole sequence; only for "naive"."""

    def __post_init__(self) -> None:
        if not self.enable_kv_cache and self.batching != "naive":
            raise ValueError(f"--no-kv-cache: is for --batching naive, not {self.batching}")
