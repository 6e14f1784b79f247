"""Which part of a model a rank holds: arithmetic alone.

Attention is divided by query heads, and each rank has the key-value heads that its own read. MLP columns are divided
evenly; the vocabulary too, in multiples of 4, as one draw of noise serves four token ids.
"""

import math
from dataclasses import dataclass

from executor_svc.models.config import ModelConfig

_VOCABULARY_STEP = 4


@dataclass(frozen=True, slots=True)
class Features:
    """Which of a layer's `total` inputs or outputs are here: runs of them, side by side."""

    total: int
    runs: tuple[slice, ...]

    @property
    def count(self) -> int:
        """How many are here."""
        return sum(run.stop - run.start for run in self.runs)

    @staticmethod
    def whole(total: int) -> "Features":
        """All of them."""
        return Features(total, (slice(0, total),))

    def scaled(self, factor: int) -> "Features":
        """The same of units that are `factor` features each, such as heads."""
        runs = tuple(slice(run.start * factor, run.stop * factor) for run in self.runs)
        return Features(self.total * factor, runs)


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of rank `rank` among `size`."""

    rank: int = 0
    size: int = 1

    def check(self, config: ModelConfig) -> None:
        """ValueError, naming the flag and the counts, where the model cannot be divided so."""
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        if heads % self.size:
            what = f"{heads} attention heads (with {kv_heads} key-value heads)"
            raise ValueError(f"--tensor-parallel-size: {self.size} does not divide the model's {what}")
        for name, count in (
            ("vocabulary", -(-config.vocab_size // _VOCABULARY_STEP)),
            ("MLP", config.intermediate_size),
        ):
            if count < self.size or not self.vocabulary(config.vocab_size, self.size - 1).count:
                raise ValueError(f"--tensor-parallel-size: the model's {name} is too small for {self.size}")

    def columns(self, total: int) -> Features:
        """Its part of something that may be cut anywhere."""
        return Features(total, (slice(total * self.rank // self.size, total * (self.rank + 1) // self.size),))

    def query_heads(self, config: ModelConfig) -> Features:
        """Its query heads."""
        return self.columns(config.num_attention_heads)

    def kv_heads(self, config: ModelConfig) -> Features:
        """The key-value heads here, each for as many of the query heads here: copies of one where they must be.

        Query head h reads key-value head h // (num_attention_heads / num_key_value_heads).
        """
        first, count = self.query_heads(config).runs[0].start, self.query_heads(config).count
        readers = config.num_attention_heads // config.num_key_value_heads
        readers_here = math.gcd(readers, count)
        heads = [(first + index) // readers for index in range(0, count, readers_here)]
        return Features(config.num_key_value_heads, tuple(_runs(heads)))

    def padded_vocabulary(self, vocab_size: int) -> int:
        """The most token ids that a rank has."""
        per_rank = -(-vocab_size // self.size)
        return per_rank if self.size == 1 else -(-per_rank // _VOCABULARY_STEP) * _VOCABULARY_STEP

    def vocabulary(self, vocab_size: int, rank: int | None = None) -> Features:
        """The token ids of a rank, by default this one; the last rank may have fewer than the others."""
        rank, most = self.rank if rank is None else rank, self.padded_vocabulary(vocab_size)
        begin = min(rank * most, vocab_size)
        return Features(vocab_size, (slice(begin, min(begin + most, vocab_size)),))


def _runs(indices: list[int]) -> list[slice]:
    """Consecutive indices as slices, in order."""
    runs: list[slice] = []
    for index in indices:
        if runs and runs[-1].stop == index:
            runs[-1] = slice(runs[-1].start, index + 1)
        else:
            runs.append(slice(index, index + 1))
    return runs
