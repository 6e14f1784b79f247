"""Which blocks hold the KV of which token prefix.

An entry is made for each full block: its key is xxh3-128 of its parent's key and its own token ids, the first
parent's key being that of the salt, so that one key stands for everything from the first token on. A block is looked
up by its parent's key and its token ids as they are: only what is new is hashed, and a look-up compares token ids. Two
parents may still have one key, so salt and parent decide whether the entry found is the one.

Entries of known tokens are made when the step that computes their last slot is planned, so that sequences of the same
step can share them, and are provisional until that step is confirmed (rule 7 of the contract). Entries of sampled
tokens are made when they are confirmed.
"""

from dataclasses import dataclass

import numpy as np
from xxhash import xxh3_128_digest

TOKEN_BYTES = 4


@dataclass(slots=True, eq=False)
class CacheEntry:
    """One block of a prefix. Compared by identity."""

    source: bytes
    """What its key is the hash of: its parent's key, and its own token ids as little-endian int32."""
    key: bytes
    block: int
    salt: bytes
    parent: "CacheEntry | None"
    """The entry of the block before; None for the first."""
    confirmed: bool
    """Whether the step that fills the block is known to have run."""


class PrefixCache:
    """Entries by source and by block. A block has at most one entry, and every entry its block's content."""

    def __init__(self, block_size: int, seed: int) -> None:
        """`seed`, 64 bits, makes keys unforgeable from outside; `block_size` is in tokens."""
        self._seed = seed
        self._block_type = np.dtype((np.void, block_size * TOKEN_BYTES))  # a list of it is one of `bytes`
        self._by_source: dict[bytes, CacheEntry] = {}
        self.by_block: dict[int, CacheEntry] = {}
        """The entries of blocks whose content can be hit. To be read only."""

    def __len__(self) -> int:
        return len(self._by_source)

    def find(self, tokens: bytes, salt: bytes, max_blocks: int) -> list[int]:
        """Returns the blocks of the longest chain of entries for a prefix of `tokens`, at most `max_blocks`.

        `tokens` is little-endian int32.
        """
        get = self._by_source.get  # the hottest loop of a start
        blocks: list[int] = []
        parent: CacheEntry | None = None
        key = self._salt_key(salt)
        for block_tokens in np.frombuffer(tokens, self._block_type, max_blocks).tolist():
            entry = get(key + block_tokens)
            if entry is None or entry.parent is not parent:
                break
            blocks.append(entry.block)
            parent, key = entry, entry.key
        # An entry has its parent's salt, so the last one's is that of all.
        return blocks if parent is not None and parent.salt == salt else []

    def add(
        self, parent: CacheEntry | None, tokens: bytes, salt: bytes, block: int, *, confirmed: bool
    ) -> tuple[CacheEntry | None, int | None]:
        """Makes the entry of a full block behind `parent`; returns it, and a block that lost its entry to it.

        Where another block stands for the same prefix already, returns that block's entry: two sequences computed
        the same tokens, and only the first is found. None where the parent is gone: nothing behind it can be found.
        """
        if parent is not None and self.by_block.get(parent.block) is not parent:
            return None, None
        source = (parent.key if parent else self._salt_key(salt)) + tokens
        displaced = None
        entry = self._by_source.get(source)
        if entry is not None:
            if entry.parent is parent and entry.salt == salt:
                return entry, None
            # Its parent was evicted and has been computed anew since: it can never be found again.
            displaced = entry.block
            self.forget(displaced)
        key = xxh3_128_digest(source, self._seed)
        entry = CacheEntry(source, key, block, salt, parent, confirmed)
        self._by_source[source] = self.by_block[block] = entry
        return entry, displaced

    def forget(self, block: int) -> None:
        """Drops the block's entry, if it has one: its content is about to change, or never came to be."""
        entry = self.by_block.pop(block, None)
        if entry is not None:
            del self._by_source[entry.source]

    def provisional_blocks(self) -> list[int]:
        """Blocks whose entries are not confirmed."""
        return [block for block, entry in self.by_block.items() if not entry.confirmed]

    def _salt_key(self, salt: bytes) -> bytes:
        return xxh3_128_digest(salt, self._seed)
