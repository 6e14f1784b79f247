"""What a recording says each KV block holds, and who holds each block. Shares nothing with the executor's own checks.

A block is written by one stay of a sequence on a row, from its first slot on. So what it holds is told by that stay,
by the block's place in the stay's table, and by how many of its slots are written.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class FaultKind(StrEnum):
    """What a recording can get wrong; the value is what people are told."""

    TWO_WRITERS = "a block given to one sequence while another holds it"
    READ_BEFORE_WRITTEN = "a block read before it is written"
    OTHER_TOKENS = "a prefix hit on a block of other tokens"
    BLOCK_OUT_OF_RANGE = "a block that does not exist"
    NO_SLOT = "a position without a slot"
    POSITION_GAP = "positions that are not contiguous"
    ROW_NOT_HELD = "a row used while no sequence holds it"
    ROW_TAKEN = "a row started while a sequence holds it"
    BAD_PLAN = "a plan that is malformed, or that uses a row as its state does not allow"
    BAD_START = "a start that breaks a limit"
    OVER_BUDGET = "a plan over a limit of the executor"
    STEP_ORDER = "steps out of order"
    BAD_EPOCH = "an epoch that is not above the ones before"
    OTHER_MODEL = "an executor of another model"
    BAD_RESULT = "a result that does not answer its plan"
    REFUSED = "a plan that the executor found wrong"
    OUTSIDE_SESSION = "an entry outside a session"


class Found(Exception):
    """A fault, while the verifier unwinds."""

    def __init__(self, kind: FaultKind, description: str) -> None:
        super().__init__(description)
        self.kind, self.description = kind, description


def require(holds: bool, kind: FaultKind, description: str) -> None:
    """Raises Found unless the condition holds."""
    if not holds:
        raise Found(kind, description)


@dataclass(eq=False, slots=True)
class Stay:
    """One stay of a sequence on a row, from its start to its release."""

    row: int
    tokens: list[int]
    """Known ones: those of the start, then those that results brought."""
    num_start_tokens: int
    length: int
    """Positions computed or planned."""
    table: list[int]


@dataclass(slots=True)
class _Block:
    """What is known of a block."""

    writer: Stay | None = None
    """None where nothing is known of what it holds."""
    index: int = 0
    """Its place in the writer's table."""
    num_written: int = 0
    num_holders: int = 0


@dataclass(slots=True)
class Blocks:
    """All blocks of an executor instance."""

    num_blocks: int
    block_size: int
    _blocks: list[_Block] = field(init=False)

    def __post_init__(self) -> None:
        self._blocks = [_Block() for _ in range(self.num_blocks)]

    def give(self, stay: Stay, block: int) -> None:
        """Appends a block to a stay's table, to be written by it alone; whatever it held is gone."""
        self._check_range(block, stay.row)
        state = self._blocks[block]
        what = f"block {block} goes to row {stay.row} while it is in the table of a held row"
        require(state.num_holders == 0, FaultKind.TWO_WRITERS, what)
        state.writer, state.index, state.num_written = stay, len(stay.table), 0
        state.num_holders = 1
        stay.table.append(block)

    def share(self, stay: Stay, block: int) -> None:
        """Appends a block to a stay's table, to be read; `check_prefix` says whether it may."""
        self._check_range(block, stay.row)
        require(
            block not in stay.table, FaultKind.BAD_START, f"block {block} is twice in row {stay.row}'s table"
        )
        self._blocks[block].num_holders += 1
        stay.table.append(block)

    def release(self, stay: Stay) -> None:
        """Ends a stay. What it has written stays, until the blocks are given to others."""
        for block in stay.table:
            self._blocks[block].num_holders -= 1

    def write(self, stay: Stay, num_tokens: int) -> dict[int, int]:
        """Writes the next positions of a stay; returns, by block written to, which of the tokens is its last."""
        end = stay.length + num_tokens
        what = f"row {stay.row} writes up to position {end - 1} with {len(stay.table)} blocks"
        require(end <= len(stay.table) * self.block_size, FaultKind.NO_SLOT, what)
        first, last = stay.length // self.block_size, (end - 1) // self.block_size
        for index in range(first, last + 1):
            block, offset = self._blocks[stay.table[index]], max(stay.length - index * self.block_size, 0)
            own = block.writer is stay and block.index == index
            what = f"row {stay.row} writes to block {stay.table[index]}, which is not its own"
            require(own, FaultKind.TWO_WRITERS, what)
            assert block.num_written == offset, "positions are contiguous"
            block.num_written = min(end - index * self.block_size, self.block_size)
        begin, stay.length = stay.length, end
        return {
            stay.table[index]: min(end, (index + 1) * self.block_size) - 1 - begin
            for index in range(first, last + 1)
        }

    def check_prefix(self, stay: Stay, num_tokens: int) -> None:
        """Raises Found unless the first blocks of a table hold the stay's first `num_tokens` tokens, a whole prefix."""
        size, same_up_to = self.block_size, 0
        before: Stay | None = None
        for index in range(num_tokens // size):
            number, end = stay.table[index], (index + 1) * size
            block = self._blocks[number]
            where = f"row {stay.row}, position {index * size}: block {number}"
            written = block.writer is not None and block.num_written == size
            require(written, FaultKind.READ_BEFORE_WRITTEN, f"{where} is not written as a whole")
            assert block.writer is not None
            # What a key depends on is all tokens up to its own, not those of its block alone.
            begin = same_up_to if block.writer is before else 0
            same = block.index == index and block.writer.tokens[begin:end] == stay.tokens[begin:end]
            require(
                same, FaultKind.OTHER_TOKENS, f"{where} holds other tokens, or ones that are not known yet"
            )
            before, same_up_to = block.writer, end

    def forget(self, blocks: set[int]) -> None:
        """Nothing is known any more of what these blocks hold."""
        for block in blocks:
            self._blocks[block].writer = None

    def release_all(self) -> None:
        """All rows are clear."""
        for block in self._blocks:
            block.num_holders = 0

    def _check_range(self, block: int, row: int) -> None:
        what = f"block {block} in row {row}'s table is not in [1, {self.num_blocks})"
        require(1 <= block < self.num_blocks, FaultKind.BLOCK_OUT_OF_RANGE, what)
