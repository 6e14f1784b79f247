"""Which blocks hold the KV of which token prefix.

An entry is made for each full block: its key is xxh3-128 of its parent's key and its own token ids, the first
parent's key being that of the salt, so that one key stands for everything from the first token on. A key only finds
an entry; token ids, salt and parent decide whether it is the one.

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

    key: bytes
    block: int
    tokens: bytes
    """Its token ids, little-endian int32."""
    salt: bytes
    parent: "CacheEntry | None"
    """The entry of the block before; None for the first."""
    confirmed: bool
    """Whether the step that fills the block is known to have run."""


class PrefixCache:
    """Entries by key and by block. A block has at most one entry, and every entry its block's content."""

    def __init__(self, block_size: int, seed: int) -> None:
        """`seed`, 64 bits, makes keys unforgeable from outside; `block_size` is in tokens."""
        self._seed = seed
        self._block_type = np.dtype((np.void, block_size * TOKEN_BYTES))  # a list of it is one of `bytes`
        self._by_key: dict[bytes, CacheEntry] = {}
        self.by_block: dict[int, CacheEntry] = {}
        """The entries of blocks whose content can be hit. To be read only."""

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, tokens: bytes, salt: bytes, max_blocks: int) -> list[CacheEntry]:
        """Returns the longest chain of entries for a prefix of `tokens` (little-endian int32), at most `max_blocks`."""
        # The hottest loop of a start: what it looks up is bound first.
        seed, digest, get = self._seed, xxh3_128_digest, self._by_key.get
        chain: list[CacheEntry] = []
        parent: CacheEntry | None = None
        key = self._salt_key(salt)
        for block_tokens in np.frombuffer(tokens, self._block_type, max_blocks).tolist():
            key = digest(key + block_tokens, seed)
            entry = get(key)
            if entry is None or entry.parent is not parent or entry.tokens != block_tokens:
                break
            chain.append(entry)
            parent = entry
        # An entry has its parent's salt, so the first one's is that of all.
        return chain if chain and chain[0].salt == salt else []

    def add(
        self, parent: CacheEntry | None, tokens: bytes, salt: bytes, block: int, *, confirmed: bool
    ) -> tuple[CacheEntry | None, int | None]:
        """Makes the entry of a full block behind `parent`; returns it, and a block that lost its entry to it.

        Where another block stands for the same prefix already, returns that block's entry: two sequences computed
        the same tokens, and only the first is found. None where the parent is gone: nothing behind it can be found.
        """
        if parent is not None and self._by_key.get(parent.key) is not parent:
            return None, None
        key = xxh3_128_digest((parent.key if parent else self._salt_key(salt)) + tokens, self._seed)
        displaced = None
        entry = self._by_key.get(key)
        if entry is not None:
            if entry.parent is parent and entry.tokens == tokens and entry.salt == salt:
                return entry, None
            # Its parent was evicted and has been computed anew since: it can never be found again.
            displaced = entry.block
            self.forget(displaced)
        entry = CacheEntry(key, block, tokens, salt, parent, confirmed)
        self._by_key[key] = self.by_block[block] = entry
        return entry, displaced

    def forget(self, block: int) -> None:
        """Drops the block's entry, if it has one: its content is about to change, or never came to be."""
        entry = self.by_block.pop(block, None)
        if entry is not None:
            del self._by_key[entry.key]

    def provisional_blocks(self) -> list[int]:
        """Blocks whose entries are not confirmed."""
        return [block for block, entry in self.by_block.items() if not entry.confirmed]

    def _salt_key(self, salt: bytes) -> bytes:
        return xxh3_128_digest(salt, self._seed)
