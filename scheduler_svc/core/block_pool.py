"""Who holds which KV block.

A block is free (nothing in it), cached (nobody holds it, its prefix can still be hit) or held (by one sequence or
more); block 0 is none of them and is never given out. So at all times, with N blocks in all,

    N - 1 = num_free + num_cached + num_held          a shared block counted once

Cached blocks are given out when no free one is left, least recently released first. A sequence releases its deepest
block first, so a prefix is evicted from its end.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable, Sequence


class BlockPool:
    """Blocks 1 to `num_blocks` - 1."""

    def __init__(self, num_blocks: int) -> None:
        self.num_total = num_blocks - 1
        self._free = deque(range(1, num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._num_others: dict[int, int] = {}
        """By block that is shared, how many hold it besides the first."""

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

    @property
    def num_shared(self) -> int:
        """Blocks that several sequences hold, of those held."""
        return len(self._num_others)

    def num_holders(self, block: int) -> int:
        """How many sequences hold the block, which is not free."""
        return 0 if block in self._cached else 1 + self._num_others.get(block, 0)

    def num_cached_of(self, blocks: Sequence[int]) -> int:
        """How many of the blocks nobody holds."""
        cached = self._cached
        return [block in cached for block in blocks].count(True)

    def allocate(self, num_blocks: int, on_evict: Callable[[int], None]) -> list[int]:
        """Gives out blocks, held once each: free ones first, then cached ones, which `on_evict` is told of.

        The caller has checked `num_available`.
        """
        free = self._free
        blocks = [free.popleft() for _ in range(min(num_blocks, len(free)))]
        while len(blocks) < num_blocks:
            block, _ = self._cached.popitem(last=False)
            on_evict(block)
            blocks.append(block)
        return blocks

    def hold(self, blocks: Iterable[int]) -> None:
        """Adds a holder to each block; they are held or cached."""
        cached, num_others = self._cached, self._num_others
        for block in blocks:
            if block in cached:
                del cached[block]
            else:
                num_others[block] = num_others.get(block, 0) + 1

    def release(self, blocks: Iterable[int], with_prefix: Container[int]) -> None:
        """Takes a holder from each block; those left without any become cached if `with_prefix`, else free."""
        cached, num_others = self._cached, self._num_others
        for block in blocks:
            if block in num_others:
                num_others[block] -= 1
                if num_others[block] == 0:
                    del num_others[block]
            elif block in with_prefix:
                cached[block] = None
            else:
                self._free.append(block)

    def uncache(self, block: int) -> None:
        """Makes a cached block free; one that is held is left alone, and will be free when it is released."""
        if block in self._cached:
            del self._cached[block]
            self._free.append(block)
