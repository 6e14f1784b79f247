"""The core against an adversarial executor: whatever comes in whatever order, the tokens are those of a run alone.

The executor checks every plan as a real one does, and every slot that a step reads: a block given out too early, hit
before it was written, or kept too long shows as a failed step.
"""

from collections import Counter
from typing import Any

import hypothesis.strategies as st
from core_harness import INSTANCE, Harness
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler_svc.core.request import Finish, Sampling
from scheduler_svc.core.scheduler import CoreConfig
from scheduler_svc.core.step import StepPlan

sizes = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(9, 20),
        "max_num_seqs": st.integers(1, 4),
        "max_model_len": st.sampled_from([40, 40, 33]),
        "max_num_decode_steps": st.sampled_from([4, 4, 2, 1]),
        "max_plans_in_flight": st.integers(1, 4),
    }
)
requests = st.fixed_dictionaries(
    {
        "prompt": st.lists(st.integers(0, 1), min_size=1, max_size=24),
        "max_tokens": st.integers(1, 16),
        "n": st.integers(1, 3),
        "seed": st.integers(0, 2**64 - 1),
        "end_token_ids": st.sampled_from([(), (), (3,), (5, 11)]),
        "priority": st.integers(-1, 1),
        "cache_salt": st.sampled_from([b"", b"", b"salt"]),
        "sampling": st.sampled_from([Sampling(), Sampling(), Sampling(prompt_logprobs=1)]),
    }
)


class SchedulerMachine(RuleBasedStateMachine):
    """Requests of a vocabulary of two, so that prefixes are shared; a cache so small that preemption is common."""

    @initialize(
        depth=st.integers(1, 4),
        enable_prefix_caching=st.sampled_from([True, True, False]),
        chunked=st.booleans(),
        budget=st.integers(4, 16),
        priority_aging_seconds=st.sampled_from([None, 3.0]),
        batching=st.sampled_from(["continuous", "continuous", "continuous", "static", "naive"]),
        kv_allocation=st.sampled_from(["paged", "paged", "paged", "contiguous"]),
        enable_kv_cache=st.booleans(),
        sizes=sizes,
    )
    def start(
        self,
        depth: int,
        chunked: bool,
        budget: int,
        enable_kv_cache: bool,
        batching: str,
        sizes: dict[str, int],
        **changes: object,
    ) -> None:
        config = CoreConfig(
            max_num_batched_tokens=budget if chunked else 40,
            pipeline_depth=depth,
            enable_chunked_prefill=chunked,
            batching=batching,
            enable_kv_cache=enable_kv_cache or batching != "naive",
            **changes,
        )
        self.started: set[int] = set()
        self.block_salts: dict[int, bytes] = {}
        """Of the requests that last wrote each block."""
        self.harness = Harness(config, **sizes, max_num_batched_tokens=40)
        self.harness.watch = self.note
        self.num_sessions = 1

    @rule(batch=st.lists(requests, min_size=1, max_size=4))
    def add(self, batch: list[dict[str, Any]]) -> None:
        for request in batch:
            if len(request["prompt"]) + request["max_tokens"] <= self.harness.core.max_model_len:
                self.harness.add(**request)

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.harness.abort(data.draw(st.sampled_from(self.live())))

    @rule(num_decode_steps=st.sampled_from([1, 1, 2, 4]), count=st.integers(1, 4))
    def plan(self, num_decode_steps: int, count: int) -> None:
        for _ in range(count):
            self.harness.plan(num_decode_steps)

    @precondition(lambda self: self.harness.under_way)
    @rule(count=st.integers(1, 6))
    def deliver(self, count: int) -> None:
        for _ in range(min(count, len(self.harness.under_way))):
            self.harness.deliver()

    @rule(num_decode_steps=st.sampled_from([1, 2, 4]), count=st.integers(1, 12))
    def serve(self, num_decode_steps: int, count: int) -> None:
        """As things go most of the time: plans as far ahead as may be, and a result after the other."""
        for _ in range(count):
            self.plan(num_decode_steps, self.harness.config.pipeline_depth)
            if self.harness.under_way:
                self.harness.deliver()

    @precondition(lambda self: self.harness.under_way)
    @rule(row=st.integers(0, 3))
    def deliver_with_a_failed_row(self, row: int) -> None:
        self.harness.deliver(failed_row=row)

    @precondition(lambda self: self.harness.under_way)
    @rule(num_decode_steps=st.sampled_from([1, 1, 4]), count=st.integers(1, 6))
    def plan_ahead_of_results(self, num_decode_steps: int, count: int) -> None:
        for _ in range(min(count, len(self.harness.under_way))):
            self.harness.deliver_and_plan(num_decode_steps, ahead=True)

    @rule()
    def lose_the_session_and_keep_the_instance(self) -> None:
        """A failed step, or a broken stream: results under way are void, the KV that was confirmed is still there."""
        self.harness.lose_session()

    @rule(sizes=sizes)
    def lose_the_executor(self, sizes: dict[str, int]) -> None:
        self.num_sessions += 1
        self.harness.lose_session(
            instance_id=f"{INSTANCE} {self.num_sessions}", max_num_batched_tokens=40, **sizes
        )

    @precondition(lambda self: self.harness.under_way)
    @rule(data=st.data())
    def fail_a_step(self, data: st.DataObject) -> None:
        """As the shell does it: one that the failed plan was made for may be at fault, the others go on."""
        step_id = data.draw(st.sampled_from([result.step_id for result in self.harness.under_way]))
        suspects, _ = self.harness.core.unanswered(step_id)
        assert suspects <= set(self.live())
        if suspects and data.draw(st.booleans()):
            self.harness.abort(data.draw(st.sampled_from(sorted(suspects))))
        self.harness.lose_session()

    @rule()
    def reset_the_prefix_cache(self) -> None:
        stats = self.harness.core.stats()
        assert self.harness.core.reset_prefix_cache() >= stats.num_cached_blocks
        assert self.harness.core.stats().num_cached_blocks == 0

    def note(self, plan: StepPlan) -> None:
        self.note_starts(plan)
        self.note_salts(plan)

    def note_starts(self, plan: StepPlan) -> None:
        """Within a class, sequences start in the order of their arrival: nobody is passed over."""
        for start in plan.starts:
            self.started.add(start.sequence_id)
            priority = self.harness.answers[start.sequence_id].request.priority
            for other in self.live():
                same_class = self.harness.answers[other].request.priority == priority
                assert not same_class or other >= start.sequence_id or other in self.started

    def note_salts(self, plan: StepPlan) -> None:
        """A prefix is hit only in blocks that requests of the same salt wrote."""
        size = self.harness.session.block_size
        for start in plan.starts:
            salt = self.harness.answers[start.sequence_id].request.cache_salt
            num_hits = start.num_computed_tokens // size
            self.block_salts |= dict.fromkeys(start.block_table[num_hits:], salt)
            assert all(self.block_salts[block] == salt for block in start.block_table[:num_hits])
        for sequence in self.harness.core._state.rows.running():
            salt = sequence.request.cache_salt
            self.block_salts |= {b: salt for b in sequence.block_table if b in plan.new_block_ids}

    def live(self) -> list[int]:
        return [key for key, answer in self.harness.answers.items() if answer.finish is Finish.NONE]

    @invariant()
    def every_block_is_accounted_for(self) -> None:
        stats, core = self.harness.core.stats(), self.harness.core
        tables = [sequence.block_table for sequence in core._state.rows.running()]
        held = Counter(block for table in tables for block in table)
        assert all(len(set(table)) == len(table) for table in tables)
        assert stats.num_held_blocks == len(held)
        assert stats.num_shared_blocks == sum(count > 1 for count in held.values())
        assert all(core._state.cache.pool.num_holders(block) == count for block, count in held.items())
        total = stats.num_free_blocks + stats.num_cached_blocks + stats.num_held_blocks
        assert total == stats.num_total_blocks

    @invariant()
    def every_live_sequence_runs_or_waits(self) -> None:
        stats = self.harness.core.stats()
        assert stats.num_running + stats.num_waiting == len(self.live())

    @invariant()
    def tokens_so_far_are_those_of_a_run_alone(self) -> None:
        for answer in self.harness.answers.values():
            assert answer.tokens == answer.expected[0][: len(answer.tokens)]

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            self.harness.run_to_end(num_decode_steps=4)
            self.harness.check_answers()


TestScheduler = SchedulerMachine.TestCase
# 120 runs of up to 50 steps: of each five about one preempts, one finds prefixes, one plans several decode steps.
TestScheduler.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
