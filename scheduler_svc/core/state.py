"""Where every live sequence is, and the moves between: it waits, it holds a row and blocks, or it has ended.

A preempted sequence waits, and until its last result has come it is among the departed too.
"""

import math
from collections.abc import Callable

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.draft import PlannedStep
from scheduler_svc.core.kv_cache import KVCache
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.policy import BatchingPolicy
from scheduler_svc.core.rows import RowTable
from scheduler_svc.core.sequence import Sequence
from scheduler_svc.core.stats import Counters
from scheduler_svc.core.step import Session
from scheduler_svc.core.waiting import WaitingQueue


class State:
    """Shared by planning and results; `live` and `counters` outlast a session, the rest is made anew."""

    waiting: WaitingQueue
    rows: RowTable
    cache: KVCache
    departed: dict[int, Sequence]
    """Preempted sequences with results under way, by the incarnation that they had."""
    to_release: list[int]
    """Rows left since the last plan."""
    last_result: int
    """The last step whose last result came."""

    def __init__(self, config: CoreConfig, session: Session, policy: BatchingPolicy) -> None:
        """ValueError where the session's sizes cannot serve; see Limits."""
        self._config, self.policy = config, policy
        self.counters = Counters()
        self.live: dict[int, Sequence] = {}
        self._begin(session, Limits(config, session))
        self.cache = self._new_cache()

    def reopen(self, session: Session) -> list[int]:
        """Makes every live sequence wait with its confirmed tokens; see Scheduler.reset."""
        limits = Limits(self._config, session)
        for sequence in self.rows.running():
            self._leave_row(sequence)
        before = self._session
        self._begin(session, limits)
        if (before.instance_id, before.num_blocks, before.block_size) == (
            session.instance_id,
            session.num_blocks,
            session.block_size,
        ):
            self.cache.drop(self.cache.prefixes.provisional_blocks())
        else:
            self.cache = self._new_cache()
        lost = []
        for sequence in list(self.live.values()):
            if not limits.holds(sequence.request):
                del self.live[sequence.sequence_id]
                lost.append(sequence.sequence_id)
                continue
            sequence.last_step = 0
            self.waiting.push(sequence)
        return lost

    @property
    def num_on_rows(self) -> int:
        """Sequences that hold a row, those that only pad included."""
        return self.limits.num_rows - self.rows.num_free

    def preempt(self, sequence: Sequence) -> None:
        """Takes row and blocks away; the sequence keeps its tokens and waits at the head of its class."""
        self._leave_row(sequence)
        if sequence.sequence_id in self.live:  # and is not one that pads a static batch
            self._wait_again(sequence)
            sequence.num_preemptions += 1
            self.counters.num_preemptions += 1

    def recompute(self, sequence: Sequence) -> None:
        """Forgets what was computed, so that the sequence starts again; that is no preemption."""
        self._leave_row(sequence)
        self._wait_again(sequence)

    def hold(self, is_held: Callable[[int], bool] | None) -> None:
        """Holds sequences back; those that hold a row leave it. See Scheduler.hold."""
        if is_held is not None:
            for sequence in self.rows.running():
                if sequence.sequence_id not in self.live:
                    self._leave_row(sequence)  # it only pads
                elif is_held(sequence.sequence_id):
                    self.recompute(sequence)
        self.waiting.hold(is_held)

    def end(self, sequence: Sequence) -> None:
        """Forgets a sequence that sampled its last token; under a policy that pads, its row goes on."""
        if not self.policy.pads:
            self.remove(sequence)
            return
        del self.live[sequence.sequence_id]
        sequence.urgency = math.inf  # the first to give its blocks up
        self.rows.pad(sequence, self.limits.max_model_len)
        self._close_batch()

    def remove(self, sequence: Sequence) -> None:
        """Forgets a live sequence, wherever it is."""
        del self.live[sequence.sequence_id]
        if sequence.row >= 0:
            self._leave_row(sequence)
        else:
            self.waiting.remove(sequence)
            self.departed.pop(sequence.incarnation, None)
        self._close_batch()

    def held(self, planned: PlannedStep, row: int) -> Sequence | None:
        """The live sequence that a row of a plan was made for."""
        incarnation = planned.incarnation_of(row)
        if incarnation is None:
            return None
        sequence = self.rows.sequences[row]
        if sequence is None or sequence.incarnation != incarnation:
            sequence = self.departed.get(incarnation)
        # A row of a static batch may go on for a sequence that has ended.
        return sequence if sequence is not None and sequence.sequence_id in self.live else None

    def _leave_row(self, sequence: Sequence) -> None:
        self.to_release.append(sequence.row)
        self.rows.clear(sequence)
        self.cache.close(sequence)

    def _wait_again(self, sequence: Sequence) -> None:
        """Queues a sequence that has left its row."""
        if sequence.last_step > self.last_result:
            self.departed[sequence.incarnation] = sequence
        self.waiting.push(sequence)

    def _close_batch(self) -> None:
        """Clears the rows that only pad, when nothing else is on rows."""
        on_rows = self.rows.running() if self.policy.pads else []
        if on_rows and not any(sequence.sequence_id in self.live for sequence in on_rows):
            for sequence in on_rows:
                self._leave_row(sequence)

    def _begin(self, session: Session, limits: Limits) -> None:
        self._session, self.limits = session, limits
        self.rows = RowTable(
            session.max_num_seqs, session.max_model_len, session.block_size, session.vocab_size
        )
        self.waiting = WaitingQueue()
        self.departed = {}
        self.to_release = []
        self.last_result = 0

    def _new_cache(self) -> KVCache:
        config = self._config
        shares = (
            config.enable_prefix_caching and config.enable_kv_cache and config.kv_allocation != "contiguous"
        )
        return KVCache(
            self._session.num_blocks, self.limits, enable_prefix_caching=shares, seed=config.hash_seed
        )
