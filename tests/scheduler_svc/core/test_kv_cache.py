"""Block pool and prefix cache in agreement."""

import numpy as np

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.kv_cache import KVCache
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.request import Request
from scheduler_svc.core.sequence import Sequence
from scheduler_svc.core.step import Session

SESSION = Session("an instance", 6, 2, 4, 16, 16, 100)


def make_cache(*, enable_prefix_caching: bool = True) -> KVCache:
    limits = Limits(CoreConfig(max_num_batched_tokens=16), SESSION)
    return KVCache(SESSION.num_blocks, limits, enable_prefix_caching=enable_prefix_caching, seed=0)


def open_sequence(cache: KVCache, number: int, tokens: list[int]) -> Sequence:
    """A sequence that has its blocks, with every full one registered as if its step were confirmed."""
    prompt = np.array(tokens, np.int32)
    sequence = Sequence(number, Request("r", prompt, 1), 0, prompt, 0.0)
    cache.open(sequence, [])
    for entry in cache.register_planned(sequence, prompt.data.cast("B")):
        entry.confirmed = True
    return sequence


def test_a_block_that_loses_its_prefix_to_another_is_free_when_nobody_holds_it():
    cache = make_cache()
    first = open_sequence(cache, 1, [1, 2, 3, 4])
    root, leaf = first.block_table
    cache.close(first)
    assert cache.pool.num_cached == 2
    # The root goes while its leaf stays, as when a twin of the root's holder registered the leaf.
    cache.drop([root])
    second = open_sequence(cache, 2, [1, 2, 3, 4])
    assert leaf not in second.block_table
    assert leaf not in cache.prefixes.by_block
    assert cache.pool.num_cached == 0
    assert cache.pool.num_free + cache.pool.num_held == cache.pool.num_total


def test_a_block_that_is_given_out_loses_its_prefix():
    cache = make_cache()
    first = open_sequence(cache, 1, [1, 2, 3, 4])
    cache.close(first)
    second = open_sequence(cache, 2, [5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
    assert set(first.block_table) <= set(second.block_table)
    assert len(cache.prefixes) == 5
    assert cache.pool.num_held == 5


def test_without_prefix_caching_nothing_is_registered():
    cache = make_cache(enable_prefix_caching=False)
    sequence = open_sequence(cache, 1, [1, 2, 3, 4])
    assert len(cache.prefixes) == 0
    cache.close(sequence)
    assert cache.pool.num_free == cache.pool.num_total
