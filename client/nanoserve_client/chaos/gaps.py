"""How close a choice was: the gap between the two candidates where a disturbed stream first differs.

By rule 5 of the design a token is the largest of (processed logit + noise), and the noise depends on the sequence's
seed, the position and the token alone. Both candidates' log-probabilities are known, one from either stream: they are
logits up to a constant that both share.
"""

import importlib
from typing import Any

from nanoserve_client.chaos.references import Reference
from nanoserve_client.chaos.streams import Seen

_MASK = 2**64 - 1


def choice_gap(reference: Reference, seen: Seen) -> float | None:
    """The gap of the first difference; None where it cannot be told: of changed logits, or of several outputs."""
    options, outputs = reference.case.options, reference.completion.outputs
    changes_logits = options.repetition_penalty or options.presence_penalty or options.frequency_penalty
    if changes_logits or options.logit_bias or options.guided or len(outputs) != 1:
        return None
    expected, got = outputs[0], seen.token_ids.get(0, [])
    pairs = zip(expected.token_ids, got, strict=False)
    position = next((place for place, (wanted, token) in enumerate(pairs) if wanted != token), None)
    if position is None or expected.logprobs is None or len(seen.logprobs.get(0, [])) <= position:
        return None
    one, other = expected.logprobs[position], seen.logprobs[0][position]
    if other.token_id != got[position]:
        return None  # not a choice: the token has been changed since
    difference, temperature = one.logprob - other.logprob, options.temperature or 0.0
    if temperature == 0.0:
        return abs(difference)
    place = reference.completion.num_prompt_tokens + position
    noise = _noise(reference.completion.seed, place, [one.token_id, other.token_id])
    return abs(difference / temperature + noise[0] - noise[1])


def _noise(seed: int, position: int, token_ids: list[int]) -> list[float]:
    """The noise of some tokens of one sequence, as the executor has it; needs torch, which its package needs too."""
    torch: Any = importlib.import_module("torch")
    noise: Any = importlib.import_module("executor_svc.noise")
    seeds = torch.tensor([noise.seed_as_int64(seed & _MASK)])
    words = noise.random_words_of(seeds, torch.tensor([position]), torch.tensor([token_ids]))
    values: list[float] = noise.gumbel(words)[0].tolist()
    return values
