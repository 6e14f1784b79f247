"""What each case gets when nothing goes wrong: asked one at a time, of a server that nobody disturbs."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nanoserve_client.async_client import AsyncClient
from nanoserve_client.chaos.cases import Case, with_stop
from nanoserve_client.chaos.streams import ChaosStream
from nanoserve_client.errors import InvalidArgument, ProtocolError, Unimplemented
from nanoserve_client.results import Completion

_REFERENCE_SECONDS = 300.0
# Of the texts that a stream showed, how many of each output are compared with what Detokenize says.
_NUM_CHECKED = 8


@dataclass(frozen=True, slots=True)
class Reference:
    """A case and its undisturbed completion."""

    case: Case
    completion: Completion
    prefix_texts: tuple[tuple[str, ...], ...]
    """For each output the text of its first k tokens, k from 0 to all of them."""

    @property
    def num_tokens(self) -> int:
        """Output tokens, all outputs together."""
        return sum(len(output.token_ids) for output in self.completion.outputs)


async def ask_alone(client: AsyncClient, cases: list[Case]) -> list[Reference]:
    """Asks every case by itself; those that this server does not serve (guided ones) are left out."""
    references = []
    for case in cases:
        try:
            references.append(await _ask(client, case))
        except (Unimplemented, InvalidArgument) as error:
            if case.kind != "guided":
                raise InvalidArgument(error.code, f"case {case.number}, {case.kind}: {error}") from error
    return references


async def _ask(client: AsyncClient, case: Case) -> Reference:
    draw = random.Random(case.number)
    if case.stops_within:
        completion = await client.generate(case.prompt, options=case.options)
        if completion.text:
            case = with_stop(case, completion.outputs[0], draw)
    stream = ChaosStream(client, case, lambda num_tokens: None)
    seen = await stream.play(_REFERENCE_SECONDS)
    if seen.error is not None:
        raise seen.error
    assert seen.completion is not None  # nobody has left
    texts = [
        await _prefix_texts(
            client,
            output.token_ids,
            {b.num_tokens: b.text for b in seen.boundaries if b.index == output.index},
            draw,
        )
        for output in seen.completion.outputs
    ]
    return Reference(case, seen.completion, tuple(texts))


async def _prefix_texts(
    client: AsyncClient, token_ids: Sequence[int], seen: Mapping[int, str], draw: random.Random
) -> tuple[str, ...]:
    """The text of the first k tokens, k from 0: what was seen after so many, some of it checked, else asked for."""
    unseen = [k for k in range(1, len(token_ids)) if k not in seen]
    checked = draw.sample(sorted(set(seen) - {len(token_ids)}), min(_NUM_CHECKED, max(0, len(seen) - 1)))
    asked = {k: await client.detokenize(token_ids[:k], skip_special_tokens=True) for k in (*unseen, *checked)}
    for k in checked:
        if asked[k] != seen[k]:
            raise ProtocolError(f"after {k} tokens the text is {seen[k]!r}, not {asked[k]!r}")
    return tuple({0: "", **seen, **asked}.get(k, "") for k in range(len(token_ids) + 1))
