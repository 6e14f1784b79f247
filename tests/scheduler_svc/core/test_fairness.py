"""Nothing starves: not within a class, not a long prompt, not preempted work, and with aging not across classes.

Sequences have a rank: class, then arrival; with aging an arrival is worth classes. Two rules are checked in each plan:

* Nobody starts while somebody of a better rank waits, be it new or preempted.
* Whoever is preempted has a worse rank than everybody who stays.

From these follows a bound, checked under arrivals that never end. The best-ranked live sequence is never preempted and
each plan computes a token of it, once it has a row and blocks. While it waits for them nobody else starts, so those who
hold them, at most one a row, go on to their ends, or are preempted and stay away: again at least a token a plan. So it
ends within

    (rows + 1) * (longest + depth)          plans; depth, because ends are learnt late

after it has become the best, and a sequence that k better-ranked ones precede within k + 1 times that, whoever comes
behind it. A static batch computes all its prompts before it decodes: twice that. Without a KV cache each token costs
the whole sequence: its square.
"""

from dataclasses import dataclass, field

import hypothesis.strategies as st
from core_harness import Harness
from hypothesis import given, settings

from scheduler_svc.core.request import Finish
from scheduler_svc.core.scheduler import CoreConfig

Rank = tuple[float, int]


@dataclass
class Fairness:
    """A harness whose every plan is checked, and who precedes whom."""

    harness: Harness
    ranks: dict[int, Rank] = field(default_factory=dict)
    arrivals: dict[int, int] = field(default_factory=dict)
    """The round in which each sequence arrived."""
    ends: dict[int, int] = field(default_factory=dict)
    num_rounds: int = 0

    def add(self, prompt: list[int], max_tokens: int, priority: int, n: int) -> tuple[int, ...]:
        """Adds a request; ranks are told from class and arrival alone."""
        aging = self.harness.config.priority_aging_seconds
        ids = self.harness.add(prompt, max_tokens, priority=priority, n=n)
        for sequence_id in ids:
            aged = self.harness.now / aging if aging else 0.0
            self.ranks[sequence_id] = (aged - priority, sequence_id)
            self.arrivals[sequence_id] = self.num_rounds
        return ids

    def round(self, num_decode_steps: int) -> None:
        """Plans as far ahead as may be, then hands the results of the oldest plan over."""
        self.num_rounds += 1
        while self.plan(num_decode_steps):
            pass
        last = not self.harness.under_way
        while not last:
            last = self.harness.under_way[0].last
            self.harness.deliver()
        for sequence_id, answer in self.harness.answers.items():
            if answer.finish is not Finish.NONE:
                self.ends.setdefault(sequence_id, self.num_rounds)

    def plan(self, num_decode_steps: int) -> bool:
        """Makes a plan and checks both rules."""
        before = self.running()
        plan = self.harness.plan(num_decode_steps)
        after = self.running()
        stayed, preempted = before & after, before - after
        assert all(self.ranks[one] > self.ranks[other] for one in preempted for other in stayed)
        waiting = self.live() - after
        started = [start.sequence_id for start in plan.starts] if plan is not None else []
        assert started == sorted(started, key=self.ranks.__getitem__)
        assert all(self.ranks[one] < self.ranks[other] for one in started for other in waiting)
        return plan is not None

    def live(self) -> set[int]:
        """Sequences that have not ended."""
        return set(self.ranks) - set(self.ends)

    def running(self) -> set[int]:
        """Those of them that hold a row."""
        on_rows = {sequence.sequence_id for sequence in self.harness.core._state.rows.running()}
        return on_rows & self.live()

    def waited(self, sequence_id: int) -> tuple[int, int]:
        """Rounds since a sequence arrived, and better-ranked sequences live meanwhile; both up to its end."""
        arrival, end = self.arrivals[sequence_id], self.ends.get(sequence_id, self.num_rounds)
        num_ahead = sum(
            rank < self.ranks[sequence_id]
            and self.arrivals[other] <= end
            and self.ends.get(other, end) > arrival
            for other, rank in self.ranks.items()
        )
        return end - arrival, num_ahead


configs = st.fixed_dictionaries(
    {
        "pipeline_depth": st.integers(1, 3),
        "enable_prefix_caching": st.booleans(),
        "priority_aging_seconds": st.sampled_from([None, 2.0, 7.0]),
        "batching": st.sampled_from(["continuous", "continuous", "continuous", "static", "naive"]),
        "kv_allocation": st.sampled_from(["paged", "paged", "paged", "contiguous"]),
    }
)
requests = st.tuples(
    st.lists(st.integers(0, 1), min_size=1, max_size=30),
    st.integers(1, 8),
    st.integers(0, 2),
    st.integers(1, 3),
)


def bound(config: CoreConfig, num_rows: int, longest: int) -> int:
    """Plans within which the best-ranked sequence ends; see the module's docstring."""
    work = longest if config.enable_kv_cache else longest * longest
    phases = 2 if config.batching == "static" else 1
    return phases * (num_rows + 1) * (work + config.pipeline_depth)


@settings(max_examples=150, deadline=None)
@given(
    changes=configs,
    caches=st.booleans(),
    chunked=st.booleans(),
    num_rows=st.integers(1, 4),
    num_blocks=st.integers(11, 16),
    budget=st.integers(4, 16),
    num_decode_steps=st.sampled_from([1, 1, 2, 4]),
    watched=st.lists(requests, min_size=1, max_size=6),
    behind=st.lists(requests, min_size=1, max_size=4),
)
def test_every_sequence_ends_within_its_bound_whoever_comes_behind_it(
    changes: dict,
    caches: bool,
    chunked: bool,
    num_rows: int,
    num_blocks: int,
    budget: int,
    num_decode_steps: int,
    watched: list,
    behind: list,
) -> None:
    """`behind` arrive again and again, one a round: of any class with aging, else of none above the watched ones."""
    config = CoreConfig(
        max_num_batched_tokens=budget if chunked else 40,
        enable_chunked_prefill=chunked,
        enable_kv_cache=caches or changes["batching"] != "naive",
        **changes,
    )
    harness = Harness(config, num_blocks=num_blocks, max_num_seqs=num_rows, max_num_batched_tokens=40)
    fairness = Fairness(harness)
    ids = {sequence_id for request in watched for sequence_id in fairness.add(*request)}
    lowest = min(priority for _, _, priority, _ in watched)
    longest = max(len(prompt) + max_tokens for prompt, max_tokens, _, _ in watched + behind)
    limit = bound(config, num_rows, longest)
    while ids & fairness.live():
        prompt, max_tokens, priority, n = behind[fairness.num_rounds % len(behind)]
        if config.priority_aging_seconds is None:
            priority = min(priority, lowest)
        fairness.add(prompt, max_tokens, priority, n)
        fairness.round(num_decode_steps)
        for sequence_id in ids:
            num_rounds, num_ahead = fairness.waited(sequence_id)
            assert num_rounds <= (num_ahead + 1) * limit
