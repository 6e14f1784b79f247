"""Grammars of guided requests, compiled and followed by llguidance, which the extra `guided` installs.

    GrammarError              what the client is told of a guide that cannot be served
A grammar's text is bounded by the API, its size and the effort of each step by LLParserLimits, what compiling takes by
grammar_trial.py. llguidance works with the interpreter lock released, and reports what goes wrong as a state of the
matcher, but for stacks that overflow.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from scheduler_svc.core.request import Guide

if TYPE_CHECKING:
    from llguidance import LLMatcher

EXTRA = "guided"
# Of lexer states, 1 to 2 KiB each, and of symbols: what one grammar may come to.
_MAX_LEXER_STATES = 50_000
_MAX_GRAMMAR_SIZE = 100_000
_MAX_CACHED_GRAMMARS = 128
_MAX_ERROR_CHARACTERS = 160
# Several times that of the process that tries guides: what has not overflowed it there does not here.
_STACK_BYTES = 64 * 1024 * 1024
# A model that may put any white space between tokens of JSON may do so for ever.
_JSON_OPTIONS: Any = {"whitespace_pattern": "[ ]?"}


class GrammarError(Exception):
    """A guide that is malformed, too large, or matches nothing."""


def is_available() -> bool:
    """Whether llguidance is installed."""
    return find_spec("llguidance") is not None


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled guide."""

    matcher: "LLMatcher"
    """In its first state; to be copied."""
    bits: bytes
    """One bit a token that may come first, ceil(vocab_size / 8) bytes, least significant first."""


class GrammarCompiler:
    """Compiles guides for one tokenizer, and remembers those of late. May be used by several threads."""

    def __init__(self, tokenizer: str, eos_token_ids: Sequence[int], vocab_size: int) -> None:
        """`tokenizer` is the text of a tokenizer.json; the masks have `vocab_size` bits."""
        from llguidance import LLParserLimits, LLTokenizer

        self._vocab_size = vocab_size
        eos = [token_id for token_id in eos_token_ids if token_id < vocab_size]
        self._tokenizer = LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=eos)
        self._limits = LLParserLimits(
            max_lexer_states=_MAX_LEXER_STATES, max_grammar_size=_MAX_GRAMMAR_SIZE, verbose_errors=False
        )
        self._cache: OrderedDict[Guide, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def cached(self, guide: Guide) -> Grammar | None:
        """The grammar of a guide that was compiled of late."""
        with self._lock:
            grammar = self._cache.get(guide)
            if grammar is not None:
                self._cache.move_to_end(guide)
            return grammar

    def compile(self, guide: Guide) -> Grammar:
        """The grammar of a guide, remembered; GrammarError where it has none."""
        grammar = self.cached(guide)
        if grammar is not None:
            return grammar
        grammar = self.build(guide)
        with self._lock:
            self._cache[guide] = grammar
            if len(self._cache) > _MAX_CACHED_GRAMMARS:
                self._cache.popitem(last=False)
        return grammar

    def forget(self, guide: Guide) -> None:
        """The next to want a guide has it compiled anew."""
        with self._lock:
            self._cache.pop(guide, None)

    def build(self, guide: Guide) -> Grammar:
        """The grammar of a guide, compiled anew; GrammarError where it has none."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, _source(guide), log_level=0, limits=self._limits)
        return Grammar(matcher, next_tokens(matcher, self._vocab_size))


def large_stack_thread(name: str) -> ThreadPoolExecutor:
    """One thread to compile or follow grammars in. Its stack is memory only as far as it is used."""
    before = threading.stack_size(_STACK_BYTES)
    try:
        made = ThreadPoolExecutor(1, name)
        made.submit(int)  # starts it
    finally:
        threading.stack_size(before)
    return made


class Followers:
    """Advances many matchers at once, in threads of llguidance's own: those of Python would wait for each other.

    Their stacks are small; a mask, unlike compiling, does not go deep.
    """

    def __init__(self, num_threads: int) -> None:
        from llguidance import LLExecutor

        self._executor = LLExecutor(num_threads)

    def advance(
        self, matchers: "Sequence[LLMatcher]", token_ids: Sequence[int], vocab_size: int
    ) -> list[bytes | GrammarError]:
        """Each matcher takes in its token; returns what `next_tokens` would, or raise, for each."""
        from llguidance.numpy import allocate_token_bitmask, consume_token_par, fill_next_token_bitmask_par

        consume_token_par(self._executor, list(zip(matchers, token_ids, strict=True)))
        words = allocate_token_bitmask(len(matchers), vocab_size)
        sound = [(matcher, index) for index, matcher in enumerate(matchers) if not matcher.is_error()]
        if sound:  # of none it makes an error
            fill_next_token_bitmask_par(self._executor, sound, words)
        return [
            _checked(matcher, row.tobytes(), vocab_size) for matcher, row in zip(matchers, words, strict=True)
        ]


def next_tokens(matcher: "LLMatcher", vocab_size: int) -> bytes:
    """Which tokens may come next, as in Grammar.bits. GrammarError where the matcher has failed or none may come."""
    bits = _checked(matcher, b"" if matcher.is_error() else matcher.compute_bitmask(), vocab_size)
    if isinstance(bits, GrammarError):
        raise bits
    return bits


def _checked(matcher: "LLMatcher", bits: bytes, vocab_size: int) -> bytes | GrammarError:
    """The matcher's mask, cut to the vocabulary."""
    if matcher.is_error():
        return GrammarError(_one_line(matcher.get_error()))
    bits = bits[: -(-vocab_size // 8)]
    if vocab_size % 8:
        bits = bits[:-1] + bytes([bits[-1] & ((1 << vocab_size % 8) - 1)])
    return bits if has_any(bits) else GrammarError("no text can follow")


def has_any(bits: bytes | bytearray) -> bool:
    """Whether any bit is set. `any` takes tens of microseconds where the first is far behind."""
    return bits != bytes(len(bits))


def _source(guide: Guide) -> str:
    """A guide in llguidance's own language."""
    from llguidance import LLMatcher

    try:
        match guide.kind:
            case "json_schema":
                return LLMatcher.grammar_from_json_schema(guide.text, _JSON_OPTIONS)
            case "regex":
                return LLMatcher.grammar_from_regex(guide.text)
            case "choice":
                # JSON leaves this one character of ASCII as it is, and the grammar's language does not take it so.
                texts = (json.dumps(text).replace("\x7f", "\\u007f") for text in json.loads(guide.text))
                return LLMatcher.grammar_from_lark("start: " + " | ".join(texts))
            case _:
                return LLMatcher.grammar_from_lark(guide.text)
    except ValueError as error:
        raise GrammarError(_one_line(str(error))) from error


def _one_line(text: str) -> str:
    if text.startswith("NoExtension"):
        return "no text can match"
    return " ".join(text.replace("<non-verbose/>", "").split())[:_MAX_ERROR_CHARACTERS]
