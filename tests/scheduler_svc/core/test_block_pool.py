"""The block pool against a reference model: who holds what, and in which order blocks are evicted."""

from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler_svc.core.block_pool import BlockPool

NUM_BLOCKS = 9


class BlockPoolMachine(RuleBasedStateMachine):
    """Sequences hold lists of blocks; a set says which blocks have a prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.tables: list[list[int]] = []
        self.with_prefix: set[int] = set()
        self.evictable: list[int] = []

    @property
    def holders(self) -> Counter[int]:
        return Counter(block for table in self.tables for block in table)

    @precondition(lambda self: self.pool.num_available > 0)
    @rule(data=st.data())
    def allocate(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.pool.num_available))
        num_free = self.pool.num_free
        told: list[int] = []
        blocks = self.pool.allocate(count, told.append)
        assert len(set(blocks)) == count
        assert not set(blocks) & set(self.holders)
        evicted = blocks[num_free:]
        assert evicted == self.evictable[: len(evicted)], "least recently released first, after the free ones"
        assert told == evicted
        del self.evictable[: len(evicted)]
        self.with_prefix -= set(blocks)
        self.tables.append(blocks)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), with_prefix=st.booleans())
    def release(self, data: st.DataObject, with_prefix: bool) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        if with_prefix:
            self.with_prefix |= set(table)
        self.pool.release(reversed(table), self.with_prefix)
        left = [block for block in reversed(table) if block not in self.holders]
        self.evictable += [block for block in left if block in self.with_prefix]

    @precondition(lambda self: self.with_prefix)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        blocks = sorted(self.with_prefix)
        chosen = data.draw(st.lists(st.sampled_from(blocks), min_size=1, unique=True))
        self.pool.hold(chosen)
        self.tables.append(chosen)
        self.evictable = [block for block in self.evictable if block not in chosen]

    @precondition(lambda self: self.with_prefix)
    @rule(data=st.data())
    def uncache(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.with_prefix)))
        self.with_prefix.remove(block)
        self.pool.uncache(block)
        self.evictable = [other for other in self.evictable if other != block]

    @invariant()
    def every_block_is_free_cached_or_held(self) -> None:
        assert self.pool.num_total == NUM_BLOCKS - 1
        assert self.pool.num_held == len(self.holders)
        assert self.pool.num_cached == len(self.evictable)
        assert self.pool.num_free + self.pool.num_cached + self.pool.num_held == self.pool.num_total
        assert all(self.pool.num_holders(block) == count for block, count in self.holders.items())
        held_or_cached = [*self.holders, *self.evictable]
        assert self.pool.num_cached_of(held_or_cached) == len(self.evictable)
        assert 0 not in self.holders


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
