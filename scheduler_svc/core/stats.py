"""What the core counts."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Totals since the scheduler was made."""

    num_preemptions: int = 0
    num_prefix_query_tokens: int = 0
    """Known tokens of started sequences that were looked up in the prefix cache."""
    num_prefix_hit_tokens: int = 0
    num_steps: int = 0
    """Forward passes whose result came: each decode step of a plan is one."""
    num_output_tokens: int = 0
    num_late_tokens: int = 0
    """Sampled for sequences that had ended before their result came."""
    num_padded_tokens: int = 0
    """Sampled by rows that a static batch keeps after their sequence ended."""


@dataclass(frozen=True, slots=True)
class Stats:
    """A reading of the core. Blocks: total = free + cached + held."""

    num_running: int
    num_padding: int
    """Rows that a static batch keeps after their sequence ended."""
    num_unused_slots: int
    """Token slots of the blocks that rows hold with no KV in them, nor any planned."""
    num_waiting: int
    num_total_blocks: int
    num_free_blocks: int
    num_cached_blocks: int
    num_held_blocks: int
    num_shared_blocks: int
    """Of those held, by several sequences."""
    num_plans_in_flight: int
    num_preemptions: int
    num_prefix_query_tokens: int
    num_prefix_hit_tokens: int
    num_steps: int
    num_output_tokens: int
    num_late_tokens: int
    num_padded_tokens: int
