"""The requests that the engine has accepted and not ended: whose sequences are whose, and what was counted."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from scheduler_svc.core.request import Int64Array
from scheduler_svc.messages import Ended


@dataclass(slots=True)
class LiveRequest:
    """An accepted request with at least one live sequence."""

    key: int
    request_id: str
    sequence_ids: tuple[int, ...]
    num_prompt_tokens: int
    live: set[int]
    """Those of its sequences that have not ended."""
    tenant: str = ""
    is_started: bool = False
    """Whether its first sequence was started."""
    first: int = 0
    """Of its sequences that were live at first, the one whose start counts as its own."""
    num_preemptions: int = 0


@dataclass(slots=True)
class _LiveSequence:
    request: LiveRequest
    num_preemptions: int = 0
    """As of its last start."""


@dataclass(slots=True)
class LiveRequests:
    """Finds requests by key, id or sequence; forgets each with its last sequence."""

    num_waiting: int = 0
    """Requests none of whose sequences was started."""
    num_waiting_tokens: int = 0
    """Their prompt tokens."""
    _by_key: dict[int, LiveRequest] = field(default_factory=dict)
    _ids: set[tuple[str, str]] = field(default_factory=set)
    """Tenant and id: what one tenant calls its requests is nothing to another."""
    _num_by_tenant: Counter[str] = field(default_factory=Counter)
    _sequences: dict[int, _LiveSequence] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[LiveRequest]:
        return iter(list(self._by_key.values()))

    def has_id(self, tenant: str, request_id: str) -> bool:
        """Whether a live request of the tenant has this id."""
        return (tenant, request_id) in self._ids

    def num_of(self, tenant: str) -> int:
        """How many live requests a tenant has."""
        return self._num_by_tenant[tenant]

    def add(
        self,
        key: int,
        request_id: str,
        sequence_ids: tuple[int, ...],
        live: Sequence[int],
        num_prompt_tokens: int,
        tenant: str = "",
    ) -> None:
        """Takes in an accepted request; `live` are those of its sequences that are not over, one at least."""
        request = LiveRequest(
            key, request_id, sequence_ids, num_prompt_tokens, set(live), tenant, first=live[0]
        )
        self._by_key[key] = request
        self._ids.add((tenant, request_id))
        self._num_by_tenant[tenant] += 1
        self._sequences |= {sequence_id: _LiveSequence(request) for sequence_id in live}
        self.num_waiting += 1
        self.num_waiting_tokens += num_prompt_tokens

    def by_key(self, key: int) -> LiveRequest | None:
        """The request of that key, if it is live."""
        return self._by_key.get(key)

    def by_sequence(self, sequence_id: int) -> LiveRequest | None:
        """The request of a live sequence."""
        sequence = self._sequences.get(sequence_id)
        return sequence.request if sequence is not None else None

    def start(self, sequence_id: int, num_preemptions: int) -> LiveRequest | None:
        """Notes a start after so many preemptions; returns the request where it was the first of its first sequence."""
        sequence = self._sequences[sequence_id]
        request = sequence.request
        request.num_preemptions += num_preemptions - sequence.num_preemptions
        sequence.num_preemptions = num_preemptions
        if request.is_started or sequence_id != request.first:
            return None
        request.is_started = True
        self._leave_queue(request)
        return request

    def tenants_of(self, sequence_ids: Int64Array) -> Counter[str]:
        """How many of these sequences, those that are live, each tenant has."""
        found = (self._sequences.get(sequence_id) for sequence_id in sequence_ids.tolist())
        return Counter(sequence.request.tenant for sequence in found if sequence is not None)

    def end_sequence(self, sequence_id: int) -> Ended | None:
        """Forgets a sequence; returns the end of its request where it was the last."""
        request = self._sequences.pop(sequence_id).request
        request.live.discard(sequence_id)
        if request.live:
            return None
        self._forget(request)
        return Ended(request.key, request.num_preemptions)

    def end(self, request: LiveRequest) -> None:
        """Forgets a request with all its sequences."""
        for sequence_id in request.live:
            del self._sequences[sequence_id]
        request.live.clear()
        self._forget(request)

    def _forget(self, request: LiveRequest) -> None:
        del self._by_key[request.key]
        self._ids.discard((request.tenant, request.request_id))
        self._num_by_tenant[request.tenant] -= 1
        if not self._num_by_tenant[request.tenant]:
            del self._num_by_tenant[request.tenant]
        if not request.is_started:
            self._leave_queue(request)

    def _leave_queue(self, request: LiveRequest) -> None:
        self.num_waiting -= 1
        self.num_waiting_tokens -= request.num_prompt_tokens
