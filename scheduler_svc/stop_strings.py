"""Finds the first stop string in a text that comes in pieces, however it is cut.

Each stop string has a Knuth-Morris-Pratt automaton, whose state is how many of its characters the text now ends with.
The first occurrence to be complete wins, of several complete at once the longest: so what is found does not depend on
where tokens begin.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopMatch:
    """An occurrence of `text`, its `end` counted in characters from the start of the piece that completed it."""

    text: str
    end: int


class StopPattern:
    """One stop string, prepared; it holds no state, so that all outputs of a request share it."""

    __slots__ = ("_fallback", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        # _fallback[k]: the longest proper prefix of the string that its first k characters end with.
        self._fallback = [0, 0]
        length = 0
        for character in text[1:]:
            while length and text[length] != character:
                length = self._fallback[length]
            length += text[length] == character
            self._fallback.append(length)

    def feed(self, state: int, piece: str) -> tuple[int, int | None]:
        """Returns the state behind `piece`, and where in it the string was first complete (the end), if it was."""
        text, fallback = self.text, self._fallback
        if not state and text[0] not in piece:
            return 0, None
        end = None
        for index, character in enumerate(piece):
            while state and text[state] != character:
                state = fallback[state]
            if text[state] == character:
                state += 1
                if state == len(text):
                    end = index + 1 if end is None else end
                    state = fallback[state]
        return state, end


class StopScanner:
    """Watches the text of one output for a request's stop strings."""

    __slots__ = ("_patterns", "_states", "num_held")

    def __init__(self, patterns: Sequence[StopPattern]) -> None:
        self._patterns = patterns
        self._states = [0] * len(patterns)
        self.num_held = 0
        """Characters at the end of the text that may yet turn out to be the beginning of a stop string."""

    def feed(self, piece: str) -> StopMatch | None:
        """Takes in more text; returns the match that was complete first in it."""
        best = None
        for index, pattern in enumerate(self._patterns):
            self._states[index], end = pattern.feed(self._states[index], piece)
            if end is not None and (best is None or (end, -len(pattern.text)) < (best.end, -len(best.text))):
                best = StopMatch(pattern.text, end)
        self.num_held = max(self._states, default=0)
        return best
