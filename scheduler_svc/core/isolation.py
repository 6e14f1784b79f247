"""Finds the sequence that makes executors fail, among all that were in a lost plan, in a bounded number of losses.

The first loss costs nobody anything: all sequences are computed again. From the second within a minute on, those of the
lost plans are suspects. They are held until the others have gone on, and then tried in groups, each alone on the
executor with one plan in flight: a group that is lost is halved, one that gets past where it was lost goes on with the
rest. A sequence that was alone in a lost plan three times, without getting past that, is at fault. So one poisonous
sequence among N costs at most 4 + ceil(log2 N) losses.

The minute is of time with a session open: however long an executor takes to come back, its next end is the second.
"""

from collections import deque
from collections.abc import Collection, Iterable

_WINDOW_SECONDS = 60.0
_MAX_LOSSES_ALONE = 3
# Results after which suspects have waited long enough for the others to go on.
_MAX_RESULTS_BEFORE_TRIAL = 256

Group = frozenset[int]
NOBODY: Group = frozenset()


class Isolation:
    """Told of sessions, losses and progress; says who is held and who is on trial. Times as in Scheduler."""

    def __init__(self) -> None:
        self.trial: Group = NOBODY
        """Who has the executor alone; empty while there is no trial."""
        self._groups: deque[Group] = deque()
        """Suspects that wait for their trial, the next first; no sequence is in two."""
        self._owed: dict[int, int] = {}
        """By sequence: tokens until it is past where a plan with it was lost."""
        self._num_alone: dict[int, int] = {}
        self._served_seconds = 0.0
        self._opened: float | None = None
        self._losses: deque[float] = deque()
        """When plans were lost, in seconds served."""
        self._behind: set[int] = set()
        """While there are suspects: the others that have not got a token in this session, new ones left out."""
        self._num_results = 0

    @property
    def is_active(self) -> bool:
        """Whether anybody is held or on trial."""
        return bool(self._groups or self.trial)

    @property
    def is_watching(self) -> bool:
        """Whether progress matters."""
        return bool(self._owed or self._behind)

    @property
    def suspects(self) -> Group:
        """Who is held until its trial."""
        return NOBODY.union(*self._groups)

    @property
    def may_begin_trial(self) -> bool:
        """Whether there are suspects, no trial, and the others have gone on."""
        has_waited = not self._behind or self._num_results >= _MAX_RESULTS_BEFORE_TRIAL
        return bool(self._groups) and not self.trial and has_waited

    def num_recent_losses(self, now: float) -> int:
        """How many plans were lost within the last minute served."""
        served = self._served(now)
        while self._losses and self._losses[0] <= served - _WINDOW_SECONDS:
            self._losses.popleft()
        return len(self._losses)

    def opened(self, now: float, live: Iterable[int]) -> None:
        """A session is open; `live` are all sequences."""
        self._opened, self._num_results = now, 0
        self._behind = set(live) - self.suspects if self._groups else set()

    def lost(self, now: float, unanswered: Collection[int], num_tokens: int) -> int | None:
        """The session is lost with these sequences in unanswered plans of at most `num_tokens` tokens each.

        Returns the one that is at fault, which then has to end, where that is known. Nobody unanswered: nobody
        suspected.
        """
        self._served_seconds, self._opened = self._served(now), None
        trial, self.trial = self.trial, NOBODY
        lost = Group(unanswered)
        self._hold(trial & self._owed.keys() - lost)
        if not lost:
            return None
        self._losses.append(self._served_seconds)
        is_repeated = self.num_recent_losses(now) > 1
        self._owed |= dict.fromkeys(lost, max(1, num_tokens))
        if len(lost) == 1:
            (alone,) = lost
            self._num_alone[alone] = self._num_alone.get(alone, 0) + 1
            if self._num_alone[alone] >= _MAX_LOSSES_ALONE:
                return alone
        if is_repeated or trial:
            self._suspect(lost)
        return None

    def begin_trial(self) -> Group:
        """Takes the next group: nobody else is to run, one plan in flight, until `is_trial_over`."""
        self.trial = self._groups.popleft()
        return self.trial

    def is_trial_over(self, tried: Collection[int]) -> bool:
        """Whether all on trial that were in a plan, `tried`, are past where they were lost. There is a trial."""
        owing = self.trial & self._owed.keys()
        return not owing or (bool(tried) and owing.isdisjoint(tried))

    def end_trial(self) -> None:
        """Lets those go who have passed; whom there was no room for is tried next."""
        left, self.trial = self.trial & self._owed.keys(), NOBODY
        self._hold(left)

    def pardon(self) -> None:
        """Lets all on trial go: they cannot be tried."""
        self.retain(set(self._owed) - self.trial)

    def advanced(self, sequence_ids: Iterable[int]) -> None:
        """A result came: these got a token each."""
        self._num_results += 1
        for sequence_id in sequence_ids:
            self._behind.discard(sequence_id)
            left = self._owed.get(sequence_id, 0) - 1
            if left > 0:
                self._owed[sequence_id] = left
            elif self._owed.pop(sequence_id, None) is not None:
                self._num_alone.pop(sequence_id, None)

    def retain(self, live: Collection[int]) -> None:
        """Forgets all sequences but these."""
        gone = {sequence_id for sequence_id in self._owed if sequence_id not in live}
        self._behind = {sequence_id for sequence_id in self._behind if sequence_id in live}
        for sequence_id in gone:
            del self._owed[sequence_id]
            self._num_alone.pop(sequence_id, None)
        self.trial -= gone
        self._remove(gone)

    def _served(self, now: float) -> float:
        return self._served_seconds + (now - self._opened if self._opened is not None else 0.0)

    def _suspect(self, group: Group) -> None:
        """Has a group, halved, tried before all others."""
        self._remove(group)
        ordered = sorted(group)
        middle = len(ordered) // 2
        self._hold(Group(ordered[middle:]))
        self._hold(Group(ordered[:middle]))

    def _remove(self, sequence_ids: Collection[int]) -> None:
        if self._groups:
            left = (group.difference(sequence_ids) for group in self._groups)
            self._groups = deque(group for group in left if group)

    def _hold(self, group: Group) -> None:
        if group:
            self._groups.appendleft(group)
