"""Who holds which KV block.

A block is free (nothing in it), cached (nobody holds it, its prefix can still be hit) or held (by one sequence or
more); block 0 is none of them and is never given out. So at all times, with N blocks in all,

    N - 1 = num_free + num_cached + num_held          a shared block counted once

Cached blocks are given out when no free one is left, least recently released first. A sequence releases its deepest
block first, so a prefix is evicted from its end.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence


class BlockPool:
    """Reference counts of blocks 1 to `num_blocks` - 1."""

    def __init__(self, num_blocks: int) -> None:
        self.num_total = num_blocks - 1
        self._num_holders = [0] * num_blocks
        self._free = deque(range(1, num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks with nothing in them."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks held by nobody whose prefix can be hit."""
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give out."""
        return len(self._free) + len(self._cached)

    @property
    def num_held(self) -> int:
        """Blocks that sequences hold, a shared one counted once."""
        return self.num_total - self.num_available

    def num_holders(self, block: int) -> int:
        """How many sequences hold the block."""
        return self._num_holders[block]

    def num_cached_of(self, blocks: Sequence[int]) -> int:
        """How many of the blocks nobody holds."""
        return [self._num_holders[block] for block in blocks].count(0)

    def allocate(self, num_blocks: int, on_evict: Callable[[int], None]) -> list[int]:
        """Gives out blocks, held once each: free ones first, then cached ones, which `on_evict` is told of.

        The caller has checked `num_available`.
        """
        free, num_holders = self._free, self._num_holders
        blocks = [free.popleft() for _ in range(min(num_blocks, len(free)))]
        while len(blocks) < num_blocks:
            block, _ = self._cached.popitem(last=False)
            on_evict(block)
            blocks.append(block)
        for block in blocks:
            num_holders[block] = 1
        return blocks

    def hold(self, blocks: Iterable[int]) -> None:
        """Adds a holder to each block; they are held or cached."""
        num_holders = self._num_holders
        for block in blocks:
            if num_holders[block] == 0:
                del self._cached[block]
            num_holders[block] += 1

    def release(self, blocks: Iterable[int], is_cached: Callable[[int], bool]) -> None:
        """Takes a holder from each block; those left without any become cached or free, as `is_cached` says."""
        num_holders = self._num_holders
        for block in blocks:
            num_holders[block] -= 1
            if num_holders[block] == 0:
                if is_cached(block):
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def uncache(self, block: int) -> None:
        """Makes a cached block free; one that is held is left alone, and will be free when it is released."""
        if block in self._cached:
            del self._cached[block]
            self._free.append(block)
