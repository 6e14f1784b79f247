"""How close a choice was: the gap between the two candidates where a disturbed stream first differs.

By rule 5 of the design a token is the largest of (processed logit + noise), and the noise depends on the sequence's
seed, the position and the token alone. Both candidates' log-probabilities are known, one from either stream: they are
logits up to a constant that both share.
"""

import importlib
from typing import Any

from nanoserve_client.chaos.references import Reference
from nanoserve_client.chaos.streams import Seen
from nanoserve_client.results import CompletionOutput


def choice_gap(reference: Reference, seen: Seen) -> float | None:
    """The gap of the first difference; None where there is none, and where penalties or filters hide it."""
    options = reference.case.options
    hidden = (
        options.repetition_penalty,
        options.presence_penalty,
        options.frequency_penalty,
        options.logit_bias,
    )
    if any(hidden) or options.top_k or options.top_p or options.min_p:
        return None
    for output in reference.completion.outputs:
        got = seen.token_ids.get(output.index, [])
        pairs = zip(output.token_ids, got, strict=False)
        position = next((place for place, (wanted, token) in enumerate(pairs) if wanted != token), None)
        if position is not None:
            return _gap_at(position, reference, output, seen)
    return None


def _gap_at(position: int, reference: Reference, output: CompletionOutput, seen: Seen) -> float | None:
    entries, temperature = seen.logprobs.get(output.index, []), reference.case.options.temperature
    if output.logprobs is None or len(entries) <= position or temperature is None:
        return None
    one, other = output.logprobs[position], entries[position]
    if other.token_id != seen.token_ids[output.index][position]:
        return None  # not a choice: the token has been changed since
    difference = one.logprob - other.logprob
    if temperature == 0.0:
        return abs(difference)
    place = reference.completion.num_prompt_tokens + position
    seed = _sequence_seed(reference.completion.seed, output.index)
    noise = _noise(seed, place, [one.token_id, other.token_id])
    return abs(difference / temperature + noise[0] - noise[1])


def _sequence_seed(request_seed: int, index: int) -> int:
    """The seed of one of a request's outputs, as the scheduler has it."""
    request: Any = importlib.import_module("scheduler_svc.core.request")
    seed: int = request.sequence_seed(request_seed, index)
    return seed


def _noise(seed: int, position: int, token_ids: list[int]) -> list[float]:
    """The noise of some tokens of one sequence, as the executor has it; needs torch, which its package needs too."""
    torch: Any = importlib.import_module("torch")
    noise: Any = importlib.import_module("executor_svc.noise")
    seeds = torch.tensor([noise.seed_as_int64(seed)])
    words = noise.random_words_of(seeds, torch.tensor([position]), torch.tensor([token_ids]))
    values: list[float] = noise.gumbel(words)[0].tolist()
    return values
