"""Response messages to events, and events to a result: the only place that reads Generate's messages."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from nanoserve.v1 import inference_pb2 as pb
from nanoserve_client import results
from nanoserve_client.errors import ProtocolError
from nanoserve_client.options import GenerateOptions

_REASONS = {
    pb.FINISH_REASON_STOP: results.FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: results.FinishReason.LENGTH,
    pb.FINISH_REASON_ABORTED: results.FinishReason.ABORTED,
}


class EventReader:
    """Reads the messages of one stream; ProtocolError where one is missing, doubled or unknown."""

    def __init__(self) -> None:
        self._next_seq = 0
        self._completed = False
        self.goes_on = False
        """Whether this is not the first stream."""

    def read(self, response: pb.GenerateResponse) -> results.Event:
        """The event of the next message."""
        if response.seq != self._next_seq:
            raise ProtocolError(f"message {self._next_seq} of the stream expected, {response.seq} received")
        if (response.WhichOneof("event") == "started") != (self._next_seq == 0):
            raise ProtocolError("the stream does not begin with one `started`")
        if self._completed:
            raise ProtocolError("the stream goes on after `completed`")
        self._next_seq += 1
        self._completed = response.WhichOneof("event") == "completed"
        return _event(response)

    def reopen(self) -> None:
        """Another stream goes on where this one broke."""
        self._next_seq, self.goes_on = 0, True

    def end(self) -> None:
        """The stream has ended without an error."""
        if not self._completed:
            raise ProtocolError("the stream ended before `completed`")


def _event(response: pb.GenerateResponse) -> results.Event:
    match response.WhichOneof("event"):
        case "started":
            started = response.started
            return results.Started(
                request_id=response.request_id,
                num_prompt_tokens=started.num_prompt_tokens,
                num_cached_tokens=started.num_cached_tokens,
                seed=started.seed,
                prompt_digest=started.prompt_digest,
            )
        case "prompt":
            return results.PromptLogprobs(response.prompt.first_position, _logprobs(response.prompt.logprobs))
        case "delta":
            delta = response.delta
            return results.Delta(delta.index, delta.text, tuple(delta.token_ids), _logprobs(delta.logprobs))
        case "finished":
            return _finished(response.finished)
        case "completed":
            return _completed(response.completed)
        case _:
            raise ProtocolError("a message holds no event that this library knows")


def _finished(finished: pb.GenerateFinished) -> results.Finished:
    if finished.finish_reason not in _REASONS:
        raise ProtocolError(f"finish reason {finished.finish_reason} is none that this library knows")
    which = finished.WhichOneof("stop")
    stop = getattr(finished, which) if which else None
    return results.Finished(finished.index, _REASONS[finished.finish_reason], stop)


def _completed(completed: pb.GenerateCompleted) -> results.Completed:
    usage, timing = completed.usage, completed.timing
    return results.Completed(
        usage=results.Usage(
            num_prompt_tokens=usage.num_prompt_tokens,
            num_cached_tokens=usage.num_cached_tokens,
            num_output_tokens=usage.num_output_tokens,
            num_preemptions=usage.num_preemptions,
        ),
        timing=results.Timing(
            queue_seconds=timing.queue_seconds,
            first_token_seconds=timing.first_token_seconds,
            total_seconds=timing.total_seconds,
        ),
    )


def _logprobs(entries: Iterable[pb.TokenLogprob]) -> tuple[results.TokenLogprob, ...]:
    return tuple(
        results.TokenLogprob(
            token_id=entry.token_id,
            logprob=entry.logprob,
            rank=entry.rank,
            alternatives=tuple(results.TokenAlternative(a.token_id, a.logprob) for a in entry.alternatives),
        )
        for entry in entries
    )


@dataclass(slots=True)
class _Output:
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[results.TokenLogprob] = field(default_factory=list)
    finished: results.Finished | None = None


class CompletionBuilder:
    """Folds the events of one stream, in order, into a Completion."""

    def __init__(self, *, n: int | None, logprobs: bool, prompt_logprobs: bool) -> None:
        """`n` is how many outputs were asked for, None for the default; the flags, which log-probabilities."""
        self._n = n
        self._reader = EventReader()
        self._logprobs = logprobs
        self._prompt: list[results.TokenLogprob] | None = [] if prompt_logprobs else None
        self._started: results.Started | None = None
        self._completed: results.Completed | None = None
        self._outputs: dict[int, _Output] = {}

    @classmethod
    def for_options(cls, options: GenerateOptions) -> "CompletionBuilder":
        """The builder for a request with these options."""
        return cls(
            n=options.n,
            logprobs=options.logprobs is not None,
            prompt_logprobs=options.prompt_logprobs is not None,
        )

    @property
    def has_started(self) -> bool:
        """Whether anything was received."""
        return self._started is not None

    @property
    def is_complete(self) -> bool:
        """Whether all has come, so that nothing is lost with the call."""
        return self._completed is not None

    def resumed(self, request: pb.GenerateRequest) -> pb.GenerateRequest:
        """The request that goes on with what `request` has brought so far; itself where that is nothing."""
        if self._started is None:
            return request
        more = pb.GenerateRequest()
        more.CopyFrom(request)
        more.request_id = self._started.request_id
        more.resume.seed, more.resume.prompt_digest = self._started.seed, self._started.prompt_digest
        for index in range(self._n or 1):
            output = self._outputs.get(index, _Output())
            more.resume.outputs.add(
                token_ids=output.token_ids,
                text_length=sum(len(text.encode()) for text in output.texts),
                finished=output.finished is not None,
            )
        if self._prompt is not None and len(self._prompt) == self._started.num_prompt_tokens - 1:
            more.output.ClearField("prompt_logprobs")
        return more

    def reopen(self) -> None:
        """The stream broke; what is read next is another's, that of the request that goes on."""
        self._reader.reopen()

    def read(self, response: pb.GenerateResponse) -> results.Event | None:
        """Takes in the next message and returns its event; None where an earlier stream has told that already.

        ProtocolError where it contradicts the earlier ones.
        """
        event: results.Event | None = self._reader.read(response)
        match event:
            case results.Started() if self._started is not None:
                if (event.seed, event.prompt_digest) != (self._started.seed, self._started.prompt_digest):
                    raise ProtocolError("the stream goes on with another generation")
                return None
            case results.Started():
                self._started = event
            case results.PromptLogprobs():
                event = self._add_prompt(event)
            case results.Delta():
                self._add_delta(event)
            case results.Finished():
                self._open_output(event.index).finished = event
            case results.Completed():
                self._completed = event
        return event

    def end(self) -> None:
        """The stream has ended without an error; ProtocolError where something is still missing."""
        self._reader.end()

    def _add_prompt(self, event: results.PromptLogprobs) -> results.PromptLogprobs | None:
        """Returns what of them is new; a stream that goes on tells them from the first."""
        if self._prompt is None:
            raise ProtocolError("prompt log-probabilities that nobody asked for")
        num_known = len(self._prompt) + 1 - event.first_position
        if num_known < 0 or (num_known and not self._reader.goes_on):
            raise ProtocolError(f"prompt log-probabilities skip to position {event.first_position}")
        news = event.logprobs[num_known:]
        self._prompt += news
        return results.PromptLogprobs(event.first_position + num_known, news) if news else None

    def _add_delta(self, delta: results.Delta) -> None:
        output = self._open_output(delta.index)
        if len(delta.logprobs) != (len(delta.token_ids) if self._logprobs else 0):
            raise ProtocolError(f"{len(delta.logprobs)} log-probabilities for {len(delta.token_ids)} tokens")
        output.texts.append(delta.text)
        output.token_ids += delta.token_ids
        output.logprobs += delta.logprobs

    def _open_output(self, index: int) -> _Output:
        output = self._outputs.setdefault(index, _Output())
        if output.finished is not None:
            raise ProtocolError(f"output {index} goes on after `finished`")
        return output

    def completion(self) -> results.Completion:
        """The result, after the last event."""
        if self._started is None or self._completed is None or not self._outputs:
            raise ProtocolError("the stream holds no `started`, no `completed` or no output")
        if sorted(self._outputs) != list(range(self._n or len(self._outputs))):
            raise ProtocolError(f"outputs {sorted(self._outputs)} instead of {self._n or 'all'} from 0 on")
        if self._prompt is not None and len(self._prompt) != self._started.num_prompt_tokens - 1:
            raise ProtocolError(
                f"log-probabilities of {len(self._prompt)} prompt tokens, one or more missing"
            )
        return results.Completion(
            request_id=self._started.request_id,
            outputs=tuple(_output(i, output, self._logprobs) for i, output in sorted(self._outputs.items())),
            num_prompt_tokens=self._started.num_prompt_tokens,
            num_cached_tokens=self._started.num_cached_tokens,
            seed=self._started.seed,
            prompt_digest=self._started.prompt_digest,
            prompt_logprobs=None if self._prompt is None else (None, *self._prompt),
            usage=self._completed.usage,
            timing=self._completed.timing,
        )


def _output(index: int, output: _Output, logprobs: bool) -> results.CompletionOutput:
    if output.finished is None:
        raise ProtocolError(f"output {index} never finished")
    return results.CompletionOutput(
        index=index,
        text="".join(output.texts),
        token_ids=tuple(output.token_ids),
        finish_reason=output.finished.finish_reason,
        stop=output.finished.stop,
        logprobs=tuple(output.logprobs) if logprobs else None,
    )
