"""One Generate call's side of the conversation: events of the engine go in, messages for the client come out.

Nothing queues up behind a slow reader: each message is made when it can be written, from whatever is ready then.
"""

import asyncio
from collections import deque
from collections.abc import Collection, Sequence

from nanoserve.v1 import inference_pb2 as pb
from scheduler_svc.core.request import Finish, Int32Array
from scheduler_svc.errors import ServiceError
from scheduler_svc.messages import Problem, PromptLogprobs, TokenLogprobs
from scheduler_svc.output import Delta, FinishReason, Output

# Log-probabilities with 20 alternatives come to 300 bytes a token; clients take messages of 4 MiB unless told more.
_MAX_DELTA_TOKENS = 4096
_MAX_PROMPT_POSITIONS = 256
_FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.ABORTED: pb.FINISH_REASON_ABORTED,
}


class RequestStream:
    """What a client is still to be told of its request. Fed by the frontend, read by one handler."""

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: Int32Array,
        seed: int,
        prompt_digest: bytes,
        outputs: Sequence[Output],
        arrival: float,
        told: Collection[int] = (),
    ) -> None:
        """`arrival` is the time on the monotonic clock that `timing` counts from.

        Of outputs that are over already, the client knows of those whose indices are `told`.
        """
        self.request_id = request_id
        self.outputs = outputs
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.queue_seconds = self.first_token_seconds = self.total_seconds = 0.0
        self.first_step_id = self.last_step_id = 0
        """Of the steps, within their sessions, that began the first output and brought the last token."""
        self.problem: Problem | None = None
        self.is_complete = False
        """Whether the last message was made."""
        self._prompt_token_ids = prompt_token_ids
        self._seed, self._prompt_digest, self.arrival = seed, prompt_digest, arrival
        self._wake = asyncio.Event()
        self._seq = 0
        self._is_started = self._is_over = False
        self._prompt_slices: deque[PromptLogprobs] = deque()
        # Outputs with something to say, in turn; a dict, so that each is there once.
        self._speaking: dict[int, None] = {
            index: None
            for index, output in enumerate(outputs)
            if output.finished is not None and index not in told
        }

    # From the engine

    def start(self, num_cached_tokens: int, time: float, step_id: int = 0) -> None:
        """The first tokens are planned, in that step."""
        # Of what is resumed its output may be cached, too.
        self.num_cached_tokens = min(num_cached_tokens, self.num_prompt_tokens)
        self.queue_seconds = time - self.arrival
        self.first_step_id = step_id
        self._is_started = True
        self._wake.set()

    def add_token(
        self,
        index: int,
        token_id: int,
        finish: Finish,
        logprobs: TokenLogprobs | None,
        time: float,
        step_id: int = 0,
    ) -> bool:
        """Takes in a token of a step; True where it completed a stop string, so that the engine has to be told."""
        output = self.outputs[index]
        if output.finished is not None:
            return False
        output.push(token_id, finish, logprobs)
        if not self.first_token_seconds:
            self.first_token_seconds = time - self.arrival
        self.last_step_id = step_id
        if output.finished is not None:
            self.total_seconds = time - self.arrival
        if output.has_ready or output.finished is not None:
            self._speaking[index] = None
            self._wake.set()
        return output.finished is not None and finish is Finish.NONE

    def add_prompt_logprobs(self, piece: PromptLogprobs) -> None:
        """Takes in log-probabilities of the next prompt positions."""
        self._prompt_slices.append(piece)
        self._wake.set()

    def end(self, num_preemptions: int, time: float) -> None:
        """The request is over; outputs that have not finished are given up."""
        self.num_preemptions = num_preemptions
        for index, output in enumerate(self.outputs):
            if output.finished is None:
                output.give_up()
                self.total_seconds = time - self.arrival
                self._speaking[index] = None
        self._is_over = True
        self._wake.set()

    def fail(self, problem: Problem) -> None:
        """The request is over because of a problem, which `next_message` raises behind what is ready."""
        self.problem = problem
        self._wake.set()

    # To the client

    async def next_message(self) -> pb.GenerateResponse:
        """Waits for something to say. Not to be called once `is_complete`. ServiceError where the request failed."""
        while (message := self._compose()) is None:
            if self.problem is not None:
                raise ServiceError(self.problem)
            self._wake.clear()
            await self._wake.wait()
        message.request_id, message.seq = self.request_id, self._seq
        self._seq += 1
        return message

    @property
    def num_output_tokens(self) -> int:
        """Tokens of all outputs."""
        return sum(output.num_tokens for output in self.outputs)

    @property
    def finish_reasons(self) -> list[str]:
        """Of each output, as logs have it: "cancelled" where nobody waited for its end."""
        return [output.finished.reason.value if output.finished else "cancelled" for output in self.outputs]

    def _compose(self) -> pb.GenerateResponse | None:
        """The next message, of whatever is ready; None where nothing is."""
        if not self._is_started and not self._is_over:
            return None
        if self._seq == 0:
            return self._started()
        if self._prompt_slices:
            return self._prompt(self._prompt_slices.popleft())
        while self._speaking:
            index = next(iter(self._speaking))
            del self._speaking[index]
            message = self._speak(index)
            if message is not None:
                return message
        if not self._is_over:
            return None
        self.is_complete = True
        return self._completed()

    def _speak(self, index: int) -> pb.GenerateResponse | None:
        """What an output has to say; one that has more to say gets its turn again."""
        output = self.outputs[index]
        delta = output.take(_MAX_DELTA_TOKENS)
        if delta is not None:
            if output.has_ready or output.finished is not None:
                self._speaking[index] = None
            return pb.GenerateResponse(delta=_delta(index, delta))
        finished = output.finished
        if finished is None:
            return None
        return pb.GenerateResponse(
            finished=pb.GenerateFinished(
                index=index,
                finish_reason=_FINISH_REASONS[finished.reason],
                stop_string=finished.stop_string,
                stop_token_id=finished.stop_token_id,
            )
        )

    def _started(self) -> pb.GenerateResponse:
        return pb.GenerateResponse(
            started=pb.GenerateStarted(
                num_prompt_tokens=self.num_prompt_tokens,
                num_cached_tokens=self.num_cached_tokens,
                seed=self._seed,
                prompt_digest=self._prompt_digest,
            )
        )

    def _prompt(self, piece: PromptLogprobs) -> pb.GenerateResponse:
        first, count = piece.first_position, min(_MAX_PROMPT_POSITIONS, len(piece.logprobs))
        if count < len(piece.logprobs):
            self._prompt_slices.appendleft(piece.without(count))
        entries = [
            _logprob(
                int(self._prompt_token_ids[first + index]),
                TokenLogprobs(
                    float(piece.logprobs[index]),
                    int(piece.ranks[index]),
                    piece.alternative_ids[index],
                    piece.alternative_logprobs[index],
                ),
            )
            for index in range(count)
        ]
        return pb.GenerateResponse(prompt=pb.GeneratePrompt(first_position=first, logprobs=entries))

    def _completed(self) -> pb.GenerateResponse:
        usage = pb.Usage(
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_output_tokens=self.num_output_tokens,
            num_preemptions=self.num_preemptions,
        )
        timing = pb.Timing(
            queue_seconds=self.queue_seconds,
            first_token_seconds=self.first_token_seconds,
            total_seconds=self.total_seconds,
        )
        return pb.GenerateResponse(completed=pb.GenerateCompleted(usage=usage, timing=timing))


def _delta(index: int, delta: Delta) -> pb.GenerateDelta:
    logprobs = [
        _logprob(token_id, entry) for token_id, entry in zip(delta.token_ids, delta.logprobs, strict=False)
    ]
    return pb.GenerateDelta(index=index, text=delta.text, token_ids=delta.token_ids, logprobs=logprobs)


def _logprob(token_id: int, entry: TokenLogprobs) -> pb.TokenLogprob:
    alternatives = zip(entry.alternative_ids.tolist(), entry.alternative_logprobs.tolist(), strict=True)
    return pb.TokenLogprob(
        token_id=token_id,
        logprob=entry.logprob,
        rank=entry.rank,
        alternatives=[pb.TokenAlternative(token_id=other, logprob=value) for other, value in alternatives],
    )
