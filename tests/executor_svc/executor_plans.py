"""Plans for tests: a small planner that makes random valid ones, and their encoding."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from executor_svc.plan import Prefill, RowMask, RowSampling, StartRow, StepPlan
from executor_svc.runner import RunnerLimits
from executor_svc.virtual import virtual_token
from nanoserve.arrays import Int32Array, pack_float32, pack_int32
from nanoserve.executor.v1 import executor_pb2 as pb

TINY = RunnerLimits(
    num_blocks=24,
    block_size=4,
    max_num_seqs=6,
    max_model_len=30,
    max_num_batched_tokens=40,
    max_num_decode_steps=4,
    max_plans_in_flight=4,
    vocab_size=50,
)


def ints(*values: int) -> Int32Array:
    """An int32 array."""
    return np.array(values, np.int32)


def make_start(
    row: int,
    token_ids: Sequence[int],
    blocks: Sequence[int],
    *,
    num_prompt_tokens: int | None = None,
    num_computed_tokens: int = 0,
    sampling: RowSampling | None = None,
    seed: int = 0,
) -> StartRow:
    """A start; by default all its tokens are the prompt's and none is computed."""
    num_prompt = len(token_ids) if num_prompt_tokens is None else num_prompt_tokens
    return StartRow(
        row, ints(*token_ids), num_prompt, num_computed_tokens, ints(*blocks), sampling or RowSampling(), seed
    )


def make_plan(step_id: int, **fields: Any) -> StepPlan:
    """A plan that does nothing but what is given; decode rows advance num_decode_steps unless told otherwise."""
    num_decode_steps = fields.get("num_decode_steps", 1)
    decode_rows = fields.get("decode_rows", ints())
    values: dict[str, Any] = {
        "step_id": step_id,
        "release_rows": ints(),
        "starts": (),
        "new_block_rows": ints(),
        "new_block_ids": ints(),
        "prefills": (),
        "decode_rows": decode_rows,
        "decode_row_steps": np.full(len(decode_rows), num_decode_steps, np.int32),
        "num_decode_steps": num_decode_steps,
        "masks": (),
    }
    return StepPlan(**(values | fields))


def encode_plan(plan: StepPlan) -> pb.StepPlan:
    """A plan as a scheduler sends it, with masks (of TINY's vocabulary) in one of their three forms each in turn."""
    return pb.StepPlan(
        step_id=plan.step_id,
        release_rows=pack_int32(plan.release_rows),
        starts=[_encode_start(start) for start in plan.starts],
        new_block_rows=pack_int32(plan.new_block_rows),
        new_block_ids=pack_int32(plan.new_block_ids),
        prefills=[
            pb.Prefill(
                row=entry.row,
                first_position=entry.first_position,
                num_tokens=entry.num_tokens,
                samples=entry.samples,
            )
            for entry in plan.prefills
        ],
        decode_rows=pack_int32(plan.decode_rows),
        decode_row_steps=pack_int32(plan.decode_row_steps),
        num_decode_steps=plan.num_decode_steps,
        masks=[encode_mask(mask, index % 3, TINY.vocab_size) for index, mask in enumerate(plan.masks)],
    )


def _encode_start(start: StartRow) -> pb.StartRow:
    sampling = start.sampling
    return pb.StartRow(
        row=start.row,
        token_ids=pack_int32(start.token_ids),
        num_prompt_tokens=start.num_prompt_tokens,
        num_computed_tokens=start.num_computed_tokens,
        block_table=pack_int32(start.block_table),
        seed=start.seed,
        sampling=pb.RowSampling(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            logit_bias_ids=pack_int32(sampling.logit_bias_ids),
            logit_bias=pack_float32(sampling.logit_bias),
            min_tokens=sampling.min_tokens,
            end_token_ids=pack_int32(sampling.end_token_ids),
            logprobs=sampling.logprobs,
            prompt_logprobs=sampling.prompt_logprobs,
            report_gap=sampling.report_gap,
        ),
    )


def encode_mask(mask: RowMask, form: int, vocab_size: int) -> pb.RowMask:
    """A mask as allowed ids (0), forbidden ids (1) or bits (2)."""
    allowed = mask.allowed(vocab_size)
    if form == 0:
        return pb.RowMask(row=mask.row, allowed_ids=pack_int32(np.flatnonzero(allowed)))
    if form == 1:
        return pb.RowMask(row=mask.row, forbidden_ids=pack_int32(np.flatnonzero(~allowed)))
    return pb.RowMask(row=mask.row, allowed_bits=mask.allowed_bits.tobytes())


@dataclass
class PlannedRow:
    """What the planner knows of a live row."""

    seed: int
    known: list[int]
    num_prompt: int
    table: list[int]
    num_shared: int
    length: int

    @property
    def sampled(self) -> bool:
        """Whether the row's known tokens are all computed."""
        return self.length >= len(self.known)


@dataclass
class Planner:
    """Makes random valid plans: chunked prefills, shared prefixes, preemption, restarts, several decode steps.

    It knows what the virtual executor samples, and so all tokens of a row at any time.
    """

    rng: random.Random
    limits: RunnerLimits = TINY
    rows: dict[int, PlannedRow] = field(default_factory=dict)
    # Prefix (all tokens up to its end) -> the block that holds the last block_size of them.
    cache: dict[tuple[int, ...], int] = field(default_factory=dict)
    preempted: list[PlannedRow] = field(default_factory=list)
    step_id: int = 0

    def next_plan(self) -> StepPlan:
        """The next plan; the planner takes it as run."""
        self.step_id += 1
        self._starts: list[StartRow] = []
        self._new_blocks: list[tuple[int, int]] = []
        released = [row for row in self.rows if self.rng.random() < 0.1]
        for row in released:
            state = self.rows.pop(row)
            if state.sampled and self.rng.random() < 0.5 and state.length + 1 < self.limits.max_model_len:
                self.preempted.append(state)
        while len(self.rows) < self.limits.max_num_seqs and self.rng.random() < 0.5:
            if not self._start():
                break
        num_decode_steps = 1
        if all(state.sampled for state in self.rows.values()):
            num_decode_steps = self.rng.randint(1, self.limits.max_num_decode_steps)
        budget = self.limits.max_num_batched_tokens
        decodes: list[tuple[int, int]] = []
        prefills: list[Prefill] = []
        for row, state in self.rows.items():
            if self.rng.random() < 0.2:
                continue
            if state.sampled:
                steps = self.rng.randint(1, num_decode_steps)
                if self._grow(row, state.length + steps):
                    decodes.append((row, steps))
                    state.length += steps
                    budget -= 1
            elif budget > self.limits.max_num_seqs:
                most = min(len(state.known) - state.length, budget - self.limits.max_num_seqs)
                count = self.rng.randint(1, most)
                if self._grow(row, state.length + count):
                    prefills.append(
                        Prefill(row, state.length, count, state.length + count == len(state.known))
                    )
                    state.length += count
                    budget -= count
        # What this plan fills may be hit from the next plan on.
        self._remember()
        return make_plan(
            self.step_id,
            release_rows=ints(*released),
            starts=tuple(self._starts),
            new_block_rows=ints(*(row for row, _ in self._new_blocks)),
            new_block_ids=ints(*(block for _, block in self._new_blocks)),
            prefills=tuple(prefills),
            decode_rows=ints(*(row for row, _ in decodes)),
            decode_row_steps=ints(*(steps for _, steps in decodes)),
            num_decode_steps=num_decode_steps,
        )

    def all_tokens(self, state: PlannedRow) -> list[int]:
        """A row's tokens up to and with the one sampled last."""
        extra = range(len(state.known), state.length + 1) if state.sampled else ()
        return state.known + [virtual_token(state.seed, at, self.limits.vocab_size) for at in extra]

    def _held(self) -> set[int]:
        return {block for state in self.rows.values() for block in state.table}

    def _take(self, count: int) -> list[int] | None:
        free = sorted(set(range(1, self.limits.num_blocks)) - self._held())
        if len(free) < count:
            return None
        taken = self.rng.sample(free, count)
        self.cache = {prefix: block for prefix, block in self.cache.items() if block not in taken}
        return taken

    def _start(self) -> bool:
        if self.preempted and self.rng.random() < 0.7:
            old = self.preempted.pop()
            state = PlannedRow(old.seed, self.all_tokens(old), old.num_prompt, [], 0, 0)
        else:
            # Two tokens only, and few lengths: prefixes are often equal.
            known = [self.rng.randint(0, 1) for _ in range(self.rng.choice([1, 4, 5, 8, 9, 13, 20]))]
            state = PlannedRow(self.rng.getrandbits(64), known, len(known), [], 0, 0)
        size = self.limits.block_size
        for end in range(size, len(state.known), size):
            if (hit := self.cache.get(tuple(state.known[:end]))) is None or self.rng.random() < 0.1:
                break
            state.table.append(hit)
        state.num_shared = len(state.table)
        state.length = state.num_shared * size
        row = self.rng.choice([row for row in range(self.limits.max_num_seqs) if row not in self.rows])
        self.rows[row] = state
        taken = self._take(self.rng.randint(0, 2))
        if taken is None or len(state.table) + len(taken) > -(-self.limits.max_model_len // size):
            del self.rows[row]
            return False
        state.table += taken
        self._starts.append(
            make_start(
                row,
                state.known,
                state.table,
                num_prompt_tokens=state.num_prompt,
                num_computed_tokens=state.length,
                seed=state.seed,
            )
        )
        return True

    def _grow(self, row: int, length: int) -> bool:
        """Gives a row the blocks for `length` positions, where there are any."""
        state = self.rows[row]
        missing = -(-length // self.limits.block_size) - len(state.table)
        # Behind the last position a token is sampled.
        if length >= self.limits.max_model_len or (taken := self._take(max(missing, 0))) is None:
            return False
        state.table += taken
        self._new_blocks += [(row, block) for block in taken]
        return True

    def _remember(self) -> None:
        size = self.limits.block_size
        for state in self.rows.values():
            tokens = self.all_tokens(state)
            for index in range(state.num_shared, state.length // size):
                self.cache.setdefault(tuple(tokens[: (index + 1) * size]), state.table[index])
