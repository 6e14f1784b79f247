"""From a trace to what the simulator plays: arrival times at the rate asked for, prompts, and where outputs end."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from executor_svc.virtual import VirtualModel, virtual_tokens
from scheduler_svc.core.request import Int32Array, Int64Array, Request
from scheduler_svc.simulate.simulator import Arrival
from scheduler_svc.simulate.trace import Trace, TraceRequest

# Tells the streams of random numbers apart.
_ARRIVALS, _PROMPTS, _PREFIXES = 0, 1, 2
# As large as a real one, so that made-up prompts share no block by chance.
_LEAST_VOCAB_SIZE = 131_072


def with_rate(trace: Trace, rate: float | None, seed: int) -> tuple[TraceRequest, ...]:
    """The requests at `rate` a second on average; None leaves the trace's own arrivals.

    Arrivals that the trace has keep their pattern, stretched or squeezed; where it has none, or all at one time, they
    are Poisson. ValueError, naming the flag, where a rate is needed and not given.
    """
    requests = trace.requests
    if rate is None:
        if not trace.has_arrivals:
            raise ValueError("--rate: is required, because the trace has no arrival times")
        return requests
    times = np.array([request.arrival_seconds for request in requests])
    span = float(times[-1] - times[0])
    if trace.has_arrivals and span > 0:
        times = (times - times[0]) * ((len(times) - 1) / (span * rate))
    else:
        random = np.random.default_rng([seed, _ARRIVALS])
        times = np.cumsum(random.exponential(1 / rate, len(requests)))
    return tuple(
        replace(request, arrival_seconds=time) for request, time in zip(requests, times.tolist(), strict=True)
    )


@dataclass(frozen=True, slots=True)
class Workload:
    """What the simulator plays, and the model that ends each output where the trace says."""

    arrivals: tuple[Arrival, ...]
    model: VirtualModel


@dataclass(frozen=True, slots=True)
class _EndingModel(VirtualModel):
    """Samples its last token id at one position of each sequence, whose seed is its index, and nowhere else."""

    ends: Int64Array = field(kw_only=True)
    """[num_requests], the position at which each ends."""

    def tokens(self, seeds: NDArray[np.uint64], positions: Int32Array) -> Int32Array:
        """The tokens at `positions` of the sequences seeded `seeds`, both [n]."""
        tokens = virtual_tokens(seeds, positions, self.vocab_size - 1)
        tokens[self.ends[seeds.astype(np.intp)] == positions] = self.vocab_size - 1
        return tokens


def make_workload(
    requests: Sequence[TraceRequest], seed: int, max_model_len: int, slack: int = 0
) -> Workload:
    """Makes up what the trace leaves open. The prompt of a request does not depend on how many others there are.

    With `slack` 0 an output ends by max_tokens, so that no step past its end is ever planned. Else it ends by an end
    token, of which the scheduler learns only from its result: max_tokens is that much larger, within `max_model_len`.
    """
    given = [max(request.prompt_token_ids) for request in requests if request.prompt_token_ids]
    end_token = max(_LEAST_VOCAB_SIZE - 1, max(given, default=0) + 1)
    ends = [request.num_prompt_tokens + request.num_output_tokens for request in requests]
    model = VirtualModel(end_token + 1)
    if slack:
        model = _EndingModel(end_token + 1, ends=np.array(ends, np.int64) - 1)
    first_seconds = requests[0].arrival_seconds if requests else 0.0
    arrivals = []
    for index, prompt in enumerate(_prompts(requests, seed, end_token)):
        request = requests[index]
        core_request = Request(
            request_id=str(index),
            prompt_token_ids=prompt,
            max_tokens=request.num_output_tokens + max(0, min(slack, max_model_len - ends[index])),
            seed=index,
            end_token_ids=(end_token,) if slack else (),
            priority=request.priority,
        )
        arrivals.append(Arrival(round((request.arrival_seconds - first_seconds) * 1e9), core_request))
    return Workload(tuple(arrivals), model)


def _prompts(requests: Sequence[TraceRequest], seed: int, num_ids: int) -> Iterable[Int32Array]:
    """A prompt for each request, of ids in [0, num_ids)."""
    longest: dict[str, int] = {}
    for request in requests:
        if request.prefix_id is not None:
            longest[request.prefix_id] = max(longest.get(request.prefix_id, 0), request.num_prefix_tokens)
    prefixes = {
        name: _token_ids([seed, _PREFIXES, xxh3_64_intdigest(name.encode())], num_ids, count)
        for name, count in longest.items()
    }
    for index, request in enumerate(requests):
        if request.prompt_token_ids is not None:
            yield np.array(request.prompt_token_ids, np.int32)
            continue
        count = request.num_prompt_tokens - request.num_prefix_tokens
        own = _token_ids([seed, _PROMPTS, index], num_ids, count)
        if request.prefix_id is not None:
            own = np.concatenate([prefixes[request.prefix_id][: request.num_prefix_tokens], own])
        yield own


def _token_ids(stream: list[int], num_ids: int, count: int) -> Int32Array:
    return np.random.default_rng(stream).integers(0, num_ids, count, dtype=np.int32)
