"""What one output of a request has still to send: text and token ids that always cover the same tokens."""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum

from scheduler_svc.core.request import Finish
from scheduler_svc.detokenizer import Detokenizer
from scheduler_svc.messages import TokenLogprobs
from scheduler_svc.stop_strings import StopPattern, StopScanner

# Most tokens that are added to one ready delta: to add text costs as much as the text that is there.
_MERGED_TOKENS = 64


class FinishReason(Enum):
    """Why an output ended; see FinishReason in inference.proto. The values are for logs."""

    STOP = "stop"
    LENGTH = "length"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Finished:
    """How an output ended, and what stopped it where the reason is STOP."""

    reason: FinishReason
    stop_string: str | None = None
    stop_token_id: int | None = None


@dataclass(slots=True)
class Delta:
    """Tokens in a row, and the text they add. `logprobs` has an entry for each token, or none."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class OutputRules:
    """How a request wants its outputs to end; shared by all of them."""

    stop_patterns: Sequence[StopPattern] = ()
    include_stop: bool = False
    """Whether the text includes the stop that ended it."""
    min_tokens: int = 0
    """A stop string complete before this many tokens is plain text."""


class Output:
    """One output. Tokens go in by `push`, deltas come out by `take`; in between wait

    * the held: the last tokens, whose text ends within a character or may be the beginning of a stop string,
    * the ready: everything before them.

    Each push costs O(1), whatever is held.
    """

    def __init__(
        self, rules: OutputRules, token_bytes: Sequence[bytes], raw_token_bytes: Sequence[bytes]
    ) -> None:
        self._rules = rules
        self._raw_token_bytes = raw_token_bytes
        self._detokenizer = Detokenizer(token_bytes)
        self._scanner = StopScanner(rules.stop_patterns)
        self._ready: deque[Delta] = deque()
        # The held tokens, cut where a character ends; the last one is open while bytes are pending.
        self._held: deque[Delta] = deque()
        self._num_held_characters = 0
        self._is_open = False
        self.num_tokens = 0
        """Tokens that count as output: all pushed up to the end."""
        self.finished: Finished | None = None

    def push(self, token_id: int, finish: Finish, logprobs: TokenLogprobs | None = None) -> None:
        """Takes in the next token and what the engine says of it. Tokens past the end are dropped."""
        if self.finished is not None:
            return
        self.num_tokens += 1
        if not self._held and finish is Finish.NONE and logprobs is None and not self._rules.stop_patterns:
            self._push_plain(token_id)
            return
        delta = self._open_delta()
        delta.token_ids.append(token_id)
        if logprobs is not None:
            delta.logprobs.append(logprobs)
        if finish is Finish.STOP:
            self._stop_at_token(token_id, delta)
            return
        if self._add_text(delta, self._detokenizer.feed(token_id)):
            return
        if finish is Finish.LENGTH:
            self._end(Finished(FinishReason.LENGTH), delta)
            return
        self._is_open = self._detokenizer.is_pending
        self._release()

    def _push_plain(self, token_id: int) -> None:
        """Takes in a token that ends nothing, where nothing is held and no stop string is looked for.

        The tokens that wait for a slow reader are many: they are added to what is ready, not kept one by one.
        """
        piece = self._detokenizer.feed(token_id)
        if self._detokenizer.is_pending:
            self._held.append(Delta(piece, [token_id]))
            self._num_held_characters += len(piece)
            self._is_open = True
            return
        if self._ready and len(self._ready[-1].token_ids) < _MERGED_TOKENS and not self._ready[-1].logprobs:
            last = self._ready[-1]
            last.text += piece
            last.token_ids.append(token_id)
        else:
            self._ready.append(Delta(piece, [token_id]))

    def resume(
        self, token_ids: Sequence[int], end_token_ids: Collection[int], max_tokens: int, *, is_over: bool
    ) -> str:
        """Takes in the tokens that a client has already, with all their text, which is returned.

        Ends the output where they do, and where it `is_over`, which was given up then. ValueError where no stream could
        have told just these.
        """
        for number, token_id in enumerate(token_ids, 1):
            if self.finished is not None:
                raise ValueError(f"go on behind their end, token {number - 1}")
            finish = Finish.LENGTH if number >= max_tokens else Finish.NONE
            self.push(token_id, Finish.STOP if token_id in end_token_ids else finish)
        if is_over:
            self.give_up()
        elif self._is_open and self.finished is None:
            raise ValueError("end within a character")
        text = "".join(delta.text for delta in (*self._ready, *self._held))
        self._ready.clear()
        self._held.clear()
        self._num_held_characters = 0
        return text

    def give_up(self) -> None:
        """Ends the output as ABORTED, where it has not ended."""
        if self.finished is None:
            self._end(Finished(FinishReason.ABORTED), self._held[-1] if self._held else Delta())

    def take(self, max_tokens: int) -> Delta | None:
        """Removes and returns what is ready, in one piece; None where nothing is.

        The piece has `max_tokens` at most, unless tokens that were made ready together are more.
        """
        if not self._ready:
            return None
        delta = self._ready.popleft()
        if not self._ready:
            return delta
        texts, token_ids, logprobs = [delta.text], delta.token_ids, delta.logprobs
        while self._ready and len(token_ids) + len(self._ready[0].token_ids) <= max_tokens:
            more = self._ready.popleft()
            texts.append(more.text)
            token_ids += more.token_ids
            logprobs += more.logprobs
        return Delta("".join(texts), token_ids, logprobs)

    @property
    def has_ready(self) -> bool:
        """Whether `take` would return something."""
        return bool(self._ready)

    def _open_delta(self) -> Delta:
        """The held delta that takes the next token."""
        if not self._is_open:
            self._held.append(Delta())
        return self._held[-1]

    def _add_text(self, delta: Delta, piece: str) -> bool:
        """Adds text to the last held delta; True where it completes a stop string and so ends the output."""
        if not piece:
            return False
        delta.text += piece
        self._num_held_characters += len(piece)
        if not self._rules.stop_patterns:
            return False
        match = self._scanner.feed(piece)
        if match is None or self.num_tokens < self._rules.min_tokens:
            return False
        excess = len(piece) - match.end
        if not self._rules.include_stop:
            excess += len(match.text)
        self._cut(excess)
        self._close(Finished(FinishReason.STOP, stop_string=match.text))
        return True

    def _cut(self, num_characters: int) -> None:
        """Takes characters off the end of the held text; their tokens stay."""
        for delta in reversed(self._held):
            if num_characters <= 0:
                return
            kept = max(0, len(delta.text) - num_characters)
            num_characters -= len(delta.text) - kept
            delta.text = delta.text[:kept]

    def _stop_at_token(self, token_id: int, delta: Delta) -> None:
        if self._rules.include_stop:
            # The token may complete the character that is pending: both are one text.
            data = self._raw_token_bytes[token_id] if token_id < len(self._raw_token_bytes) else b""
            delta.text += self._detokenizer.flush(data)
        elif self._add_text(delta, self._detokenizer.flush()):
            return
        self._close(Finished(FinishReason.STOP, stop_token_id=token_id))

    def _end(self, finished: Finished, delta: Delta) -> None:
        """Ends with all text so far, an incomplete character as U+FFFD."""
        if not self._add_text(delta, self._detokenizer.flush()):
            self._close(finished)

    def _close(self, finished: Finished) -> None:
        self.finished = finished
        self._ready.extend(self._held)
        self._held.clear()

    def _release(self) -> None:
        """Makes ready what no stop string and no incomplete character can reach back into."""
        if self._is_open:
            closed = len(self._held) - 1
        else:
            closed = len(self._held)
        num_held = self._scanner.num_held
        while closed and self._num_held_characters - len(self._held[0].text) >= num_held:
            delta = self._held.popleft()
            self._num_held_characters -= len(delta.text)
            self._ready.append(delta)
            closed -= 1
