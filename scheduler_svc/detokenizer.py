"""Token ids to text, one at a time, at a cost that does not grow with the text.

A byte-level token is a run of bytes, which may end within a character. Such bytes wait for the next token; where they
turn out to be no UTF-8 they show as U+FFFD, just as if all had been decoded at once.
"""

import codecs
from collections.abc import Sequence

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one output. `token_bytes[id]` is what a token adds; ids past its end add nothing."""

    __slots__ = ("_decoder", "_token_bytes", "is_pending")

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = _Utf8Decoder(errors="replace")
        self.is_pending = False
        """Whether the last bytes are the beginning of a character."""

    def feed(self, token_id: int) -> str:
        """Returns the characters that this token completes."""
        if token_id >= len(self._token_bytes):
            return ""
        data = self._token_bytes[token_id]
        if not self.is_pending and data.isascii():
            return data.decode("ascii")
        text = self._decoder.decode(data)
        self.is_pending = bool(self._decoder.getstate()[0])
        return text

    def flush(self, data: bytes = b"") -> str:
        """Ends the text with `data`; returns that and what is pending, an incomplete character as U+FFFD."""
        self.is_pending = False
        return self._decoder.decode(data, final=True)
