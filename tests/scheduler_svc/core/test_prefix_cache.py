"""The prefix cache finds what was added and nothing else."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from scheduler_svc.core import prefix_cache
from scheduler_svc.core.prefix_cache import TOKEN_BYTES, CacheEntry, PrefixCache

BLOCK_SIZE = 2
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=10)


def as_bytes(tokens: list[int]) -> bytes:
    return np.array(tokens, "<i4").tobytes()


def add_all(cache: PrefixCache, tokens: list[int], salt: bytes, first_block: int) -> list[CacheEntry]:
    """Adds every full block of a prompt; returns the entries that stand for them."""
    parent, chain = None, []
    for index in range(len(tokens) // BLOCK_SIZE):
        piece = as_bytes(tokens[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
        parent, _ = cache.add(parent, piece, salt, first_block + index, confirmed=True)
        assert parent is not None
        chain.append(parent)
    return chain


@given(st.lists(st.tuples(prompts, st.sampled_from([b"", b"a"])), max_size=8), prompts)
def test_the_longest_added_prefix_of_the_same_salt_is_found(added, wanted):
    cache = PrefixCache(BLOCK_SIZE, seed=7)
    known: dict[bytes, set[tuple[int, ...]]] = {b"": set(), b"a": set()}
    for number, (tokens, salt) in enumerate(added):
        add_all(cache, tokens, salt, 1 + 10 * number)
        for end in range(BLOCK_SIZE, len(tokens) + 1, BLOCK_SIZE):
            known[salt].add(tuple(tokens[:end]))
    for salt, prefixes in known.items():
        found = cache.find(as_bytes(wanted), salt, len(wanted) // BLOCK_SIZE)
        chain = [cache.by_block[block] for block in found]
        expected = 0
        while (
            tuple(wanted[: (expected + 1) * BLOCK_SIZE]) in prefixes and expected < len(wanted) // BLOCK_SIZE
        ):
            expected += 1
        assert len(chain) == expected
        assert b"".join(entry.source[-BLOCK_SIZE * TOKEN_BYTES :] for entry in chain) == as_bytes(
            wanted[: expected * BLOCK_SIZE]
        )
        assert all(entry.salt == salt for entry in chain)


def test_no_more_blocks_are_found_than_asked_for():
    cache = PrefixCache(BLOCK_SIZE, seed=7)
    add_all(cache, [1, 2, 3, 4, 5, 6], b"", 1)
    assert cache.find(as_bytes([1, 2, 3, 4, 5, 6]), b"", 2) == [1, 2]


def test_a_key_collision_is_never_a_hit(monkeypatch):
    monkeypatch.setattr(prefix_cache, "xxh3_128_digest", lambda data, seed: b"the same key for all")
    cache = PrefixCache(BLOCK_SIZE, seed=7)
    add_all(cache, [1, 2], b"", 1)
    assert cache.find(as_bytes([1, 2]), b"", 1) == [1]
    assert cache.find(as_bytes([3, 4]), b"", 1) == []
    assert cache.find(as_bytes([1, 2]), b"salt", 1) == []


def test_the_same_tokens_behind_another_parent_of_the_same_key_are_no_hit(monkeypatch):
    monkeypatch.setattr(prefix_cache, "xxh3_128_digest", lambda data, seed: b"the same key for all")
    cache = PrefixCache(BLOCK_SIZE, seed=7)
    add_all(cache, [1, 2, 3, 4], b"", 1)
    add_all(cache, [5, 6], b"", 3)
    assert cache.find(as_bytes([1, 2, 3, 4]), b"", 2) == [1, 2]
    assert cache.find(as_bytes([5, 6, 3, 4]), b"", 2) == [3]


def test_a_forgotten_block_breaks_the_chain_behind_it():
    cache = PrefixCache(BLOCK_SIZE, seed=7)
    add_all(cache, [1, 2, 3, 4], b"", 1)
    cache.forget(1)
    assert cache.find(as_bytes([1, 2, 3, 4]), b"", 2) == []
    assert 1 not in cache.by_block
    assert 2 in cache.by_block


def test_a_child_of_a_forgotten_parent_is_displaced_when_its_prefix_is_computed_anew():
    cache = PrefixCache(BLOCK_SIZE, seed=7)
    (_, orphan) = add_all(cache, [1, 2, 3, 4], b"", 1)
    cache.forget(1)
    parent, _ = cache.add(None, as_bytes([1, 2]), b"", 5, confirmed=True)
    entry, displaced = cache.add(parent, as_bytes([3, 4]), b"", 6, confirmed=True)
    assert displaced == orphan.block
    assert entry is not None
    assert entry.block == 6
    assert cache.find(as_bytes([1, 2, 3, 4]), b"", 2) == [5, 6]


def test_nothing_is_added_behind_a_parent_that_is_gone():
    cache = PrefixCache(BLOCK_SIZE, seed=7)
    (parent,) = add_all(cache, [1, 2], b"", 1)
    cache.forget(1)
    assert cache.add(parent, as_bytes([3, 4]), b"", 2, confirmed=True) == (None, None)
    assert len(cache) == 0


def test_the_same_prefix_in_a_second_block_keeps_the_first():
    cache = PrefixCache(BLOCK_SIZE, seed=7)
    (first,) = add_all(cache, [1, 2], b"", 1)
    assert cache.add(None, as_bytes([1, 2]), b"", 9, confirmed=True) == (first, None)
    assert 9 not in cache.by_block


@settings(max_examples=20)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_keys_depend_on_the_seed(one, other):
    keys = [add_all(PrefixCache(BLOCK_SIZE, seed), [1, 2], b"", 1)[0].key for seed in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)
