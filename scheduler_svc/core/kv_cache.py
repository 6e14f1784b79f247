"""The KV cache as sequences see it: the block pool and the prefix cache kept in agreement.

A cached block always has an entry in the prefix cache, and a block that is given out never has.
"""

from scheduler_svc.core.block_pool import BlockPool
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.prefix_cache import TOKEN_BYTES, CacheEntry, PrefixCache
from scheduler_svc.core.sequence import Sequence


class KVCache:
    """Gives blocks to sequences, and finds and remembers their prefixes."""

    def __init__(self, num_blocks: int, limits: Limits, *, enable_prefix_caching: bool, seed: int) -> None:
        """`num_blocks` counts block 0; `seed` is that of the prefix keys."""
        self._limits, self._block_size = limits, limits.block_size
        self.pool = BlockPool(num_blocks)
        self.prefixes = PrefixCache(limits.block_size, seed)
        self._enable_prefix_caching = enable_prefix_caching
        self._filled: list[tuple[list[Sequence], list[int], bytes]] = []

    def find_hits(self, sequence: Sequence) -> list[int]:
        """Blocks with a prefix of a waiting sequence: all but its last token at the most, which must be computed."""
        self.settle()
        if not self._enable_prefix_caching or sequence.owes_prompt_logprobs:
            return []
        max_blocks = (len(sequence.token_ids) - 1) // self._block_size
        salt = sequence.request.cache_salt
        return self.prefixes.find(sequence.token_ids.astype("<i4", copy=False).tobytes(), salt, max_blocks)

    def has_room(self, hits: list[int], num_tokens: int) -> bool:
        """Whether blocks for `num_tokens`, the hits among them, can be had."""
        num_blocks, num_available = self._limits.blocks_to_start(num_tokens), self.pool.num_available
        if num_blocks <= num_available:
            return True  # even if nobody holds a hit
        return num_blocks - len(hits) <= num_available - self.pool.num_cached_of(hits)

    def open(self, sequence: Sequence, hits: list[int]) -> None:
        """Gives a sequence about to start its hits, and new blocks for all its other known tokens or more."""
        self.pool.hold(hits)
        sequence.num_registered_blocks = len(hits) if self._enable_prefix_caching else -1
        sequence.last_entry = self.prefixes.by_block[hits[-1]] if hits else None
        num_new = self._limits.blocks_to_start(len(sequence.token_ids)) - len(hits)
        sequence.block_table = hits + self.allocate(num_new)

    def allocate(self, num_blocks: int) -> list[int]:
        """New blocks, to be put in sequences' tables. There is room."""
        return self.pool.allocate(num_blocks, self.prefixes.forget)

    def close(self, sequence: Sequence) -> None:
        """Takes all blocks back, the deepest first, so that prefixes are evicted from their ends."""
        self.settle()
        self.pool.release(reversed(sequence.block_table), self.prefixes.by_block)
        sequence.block_table = []
        sequence.last_entry = None

    def register_planned(self, sequence: Sequence, tokens: memoryview) -> list[CacheEntry]:
        """Makes provisional entries for full blocks that have none yet; returns those made.

        `tokens` is the little-endian int32 of the sequence's tokens up to where computation is planned.
        """
        made = []
        size = self._block_size * TOKEN_BYTES
        while 0 <= sequence.num_registered_blocks < len(tokens) // size:
            index = sequence.num_registered_blocks
            block_tokens = bytes(tokens[index * size : (index + 1) * size])
            entry = self._register_next(sequence, block_tokens, confirmed=False)
            if entry is not None and entry.block == sequence.block_table[index]:
                made.append(entry)
        return made

    def note_filled(self, sequences: list[Sequence], num_blocks: list[int], tokens: bytes) -> None:
        """Confirmed tokens have just filled the last of each sequence's so many blocks.

        `tokens` is the little-endian int32 of these blocks, one behind the other. Their entries are made by the next
        `settle`: a step that is due is not made to wait for what only later ones look up.
        """
        self._filled.append((sequences, num_blocks, tokens))

    def settle(self) -> None:
        """Makes the entries of the blocks noted as filled. What looks entries up or gives blocks back does it first."""
        size = self._block_size * TOKEN_BYTES
        for sequences, num_blocks, tokens in self._filled:
            for number, (sequence, count) in enumerate(zip(sequences, num_blocks, strict=True)):
                if sequence.num_registered_blocks == count - 1:
                    block_tokens = tokens[number * size : (number + 1) * size]
                    self._register_next(sequence, block_tokens, confirmed=True)
        self._filled.clear()

    def _register_next(self, sequence: Sequence, tokens: bytes, *, confirmed: bool) -> CacheEntry | None:
        """Makes or finds the entry of a sequence's first block that has none yet; None where there can be none."""
        index = sequence.num_registered_blocks
        block, salt = sequence.block_table[index], sequence.request.cache_salt
        entry, displaced = self.prefixes.add(sequence.last_entry, tokens, salt, block, confirmed=confirmed)
        if displaced is not None:
            self.pool.uncache(displaced)
        sequence.num_registered_blocks = index + 1 if entry is not None else -1
        sequence.last_entry = entry
        return entry

    def drop(self, blocks: list[int]) -> None:
        """Forgets the prefixes of these blocks; sequences that hold them keep them."""
        self.settle()
        for block in blocks:
            self.prefixes.forget(block)
            self.pool.uncache(block)
