"""Random words, sentences and prose for the demo tasks: standard library only.

Pages are lists of paragraphs of varied English (``documentation_pages``).
"""

from __future__ import annotations

import collections
import random
import re
import string
import zlib
from collections.abc import Sequence

from demo_words import (
    ACCENTED,
    COMMON,
    CONTRACTIONS,
    EMOJI,
    ENDINGS,
    FACTS,
    JOINS,
    NAMES,
    NUMERALS,
    PHRASINGS,
    PROSE,
    QUOTES,
    SENTENCE_FRAMES,
    SHORT_SYSTEM,
    WORDS,
)

Pages = Sequence[Sequence[str]]
MOST_WORDS, MOST_CHARACTERS = 14, 110  # of a sentence to copy


def stable_hash(key: str) -> int:
    """Return a hash that is the same in every process."""
    return zlib.crc32(key.encode())


def learn_prefixes(count: int) -> list[str]:
    """Learn the word prefixes that become tokens, the most frequent first.

    The tokenizer merges only from the start of a word that follows a space, one letter at a
    time; letters elsewhere stay single tokens, which keeps the spelling tasks easy.
    """
    lines = [*PROSE, *SHORT_SYSTEM, *WORDS]
    lines += [line for options, answer in FACTS for line in (*options, answer)]
    lines += [line for options in PHRASINGS.values() for line in options]
    words = collections.Counter(re.findall(r"[A-Za-z]+", " ".join(lines)))
    prefixes: dict[str, None] = {}
    while len(prefixes) < count:
        totals: collections.Counter[str] = collections.Counter()
        for word, number in words.items():
            ends = range(1, len(word) + 1)
            grown = next((word[:end] for end in ends if word[:end] not in prefixes), None)
            if grown is not None:
                totals[grown] += number
        prefixes[min(totals, key=lambda prefix: (-totals[prefix], prefix))] = None
    return list(prefixes)


_ALL_PREFIXES = learn_prefixes(509)
_PREFIXES = [p for p in _ALL_PREFIXES if p.islower() and 2 <= len(p) <= 9]


def make_word(rng: random.Random, longest: int = 10) -> str:
    """Return a real, pronounceable or random lower-case word."""
    kind, length = rng.random(), rng.randint(3, longest)
    if kind < 0.15:
        return rng.choice(WORDS)
    if kind < 0.35:
        first = rng.randint(0, 1)
        pools = ("bcdfghjklmnpqrstvwxyz", "aeiou")
        return "".join(rng.choice(pools[(first + i) % 2]) for i in range(length))
    # Words that start with a multi-letter token, so that each of them is seen often.
    start = rng.choice(_PREFIXES)[:longest] if kind < 0.7 else ""
    size = max(length, len(start)) if rng.random() < 0.7 else max(3, len(start))
    return start + "".join(rng.choices(string.ascii_lowercase, k=size - len(start)))


def _foreign(rng: random.Random) -> str:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(ACCENTED)
    if kind == 1:
        return rng.choice(EMOJI)
    low, high = rng.choice(((0xC0, 0x17F), (0x391, 0x3C9), (0x410, 0x44F), (0x4E00, 0x9FFF)))
    if rng.random() < 0.3:
        low, high = 0x1F300, 0x1F64F
    size = rng.randint(1, 4)
    chars = "".join(chr(rng.randint(low, high)) for _ in range(size))
    return make_word(rng, 5) + chars if kind == 2 and low < 0x300 else chars


def _accented(rng: random.Random) -> str:
    """Return a word in which some letters carry accents."""
    letters = [chr(rng.randint(0xDF, 0xFF)) if rng.random() < 0.25 else c for c in make_word(rng, 8)]
    word = "".join(letters)
    return word.capitalize() if rng.random() < 0.3 else word


def _token_word(rng: random.Random) -> str:
    """Return a word that starts with any of the tokens, capital ones included."""
    tail = rng.choices(string.ascii_lowercase, k=rng.randint(0, 5))
    return rng.choice(_ALL_PREFIXES) + "".join(tail)


def _capitals(rng: random.Random) -> str:
    """Return an acronym (``GPU``, ``H200``, ``PDFs``) or a word in mixed case (``vLLM``)."""
    if rng.random() < 0.3:
        return "".join(rng.choice((c, c.upper())) for c in make_word(rng, 8))
    letters = "".join(rng.choices(string.ascii_uppercase, k=rng.choice((1, 2, 3, 3, 3, 4, 4, 5, 6))))
    return letters + rng.choice(("", "", "", "", "s", str(rng.randint(0, 999)), f"-{rng.randint(0, 9)}"))


def _numeral(rng: random.Random) -> str:
    return rng.choice(NUMERALS).format(
        n=rng.randint(0, 10 ** rng.randint(1, 6)),
        m=rng.randint(0, 99),
        h=rng.randint(0, 23),
        y=rng.randint(1000, 2099),
    )


def _stutter(rng: random.Random) -> str:
    """Return text that repeats itself, where a copy easily loses count."""
    unit = rng.choice((rng.choice(string.ascii_letters), rng.choice(COMMON) + " ", make_word(rng, 4)))
    return (unit * rng.randint(2, 4)).strip()


def _piece(rng: random.Random) -> str:
    """Return one word-like piece of a random sentence."""
    kind = rng.random()
    if kind < 0.24:
        return rng.choice(WORDS)
    if kind < 0.36:
        return rng.choice(COMMON)
    if kind < 0.46:
        return make_word(rng, 9)
    if kind < 0.56:
        return _token_word(rng)
    if kind < 0.68:
        return rng.choice(NAMES) if rng.random() < 0.6 else make_word(rng, 9).capitalize()
    if kind < 0.76:
        return _capitals(rng)
    if kind < 0.86:
        return _numeral(rng)
    if kind < 0.9:
        return rng.choice(CONTRACTIONS) if rng.random() < 0.5 else make_word(rng, 7) + "'s"
    if kind < 0.93:
        return f"{rng.choice(WORDS)}-{make_word(rng, 6)}"
    if kind < 0.96:
        return _accented(rng)
    return _foreign(rng) if kind < 0.985 else _stutter(rng)


def _random_sentence(rng: random.Random) -> str:
    """Return 1 to 14 random pieces: no piece tells what the next one is."""
    text = ""
    pieces: list[str] = []
    for _ in range(rng.randint(1, rng.choice((2, 5, 9, MOST_WORDS)))):
        pieces.append(rng.choice(pieces) if pieces and rng.random() < 0.08 else _piece(rng))
        text += (rng.choice(JOINS) if text else "") + pieces[-1]
    return text


def _framed_sentence(rng: random.Random) -> str:
    def fill(match: re.Match[str]) -> str:
        slot = match.group()
        if slot == "{n}":
            return str(rng.randint(0, 999))
        if rng.random() < 0.15:
            return _foreign(rng)
        word = rng.choice(WORDS) if rng.random() < 0.6 else make_word(rng, 7)
        return word.capitalize() if slot == "{c}" else word

    return re.sub(r"\{\w\}", fill, rng.choice(SENTENCE_FRAMES))


def _known_sentence(rng: random.Random) -> str:
    """Return a sentence that also occurs elsewhere: prose, a fact, a question, an instruction."""
    kind = rng.random()
    if kind < 0.5:
        return fill_prose(rng, rng.choice(PROSE))
    questions, answer = rng.choice(FACTS)
    if kind < 0.85:
        return answer if kind < 0.7 else rng.choice(questions)
    a, b, word = rng.randint(0, 999), rng.randint(0, 999), make_word(rng)
    options = rng.choice(list(PHRASINGS.values()))
    return rng.choice(options).format(a=a, b=b, w=word, s=rng.choice(WORDS))


def _excerpt(rng: random.Random, pages: Pages) -> str:
    """Return up to 14 words in a row of a known sentence or of a page."""
    source = rng.choice(rng.choice(pages)) if pages and rng.random() < 0.6 else _known_sentence(rng)
    words = source.split()
    if len(words) <= MOST_WORDS and rng.random() < 0.6:
        return " ".join(words)
    start = rng.choice((0, rng.randrange(len(words))))
    return " ".join(words[start : start + rng.randint(1, MOST_WORDS)])


def _decorate(rng: random.Random, text: str) -> str:
    """Change the end or the capitals of a text, or put some of its words in quotes, now and then."""
    if rng.random() < 0.25:
        text = text.rstrip(string.punctuation) + rng.choice(ENDINGS)
    if rng.random() < 0.3:
        text = text[:1].upper() + text[1:]
    if rng.random() < 0.06:
        text = rng.choice((str.upper, str.lower, str.title, str.capitalize))(text)
    if rng.random() < 0.1:
        words = text.split()
        first = rng.randrange(len(words)) if words else 0
        last = rng.randint(first, len(words))
        left, right = rng.choice(QUOTES)
        quoted = left + " ".join(words[first:last]) + right
        text = " ".join([*words[:first], quoted, *words[last:]])
    return text


def make_sentence(rng: random.Random, pages: Pages = ()) -> str:
    """Return a random sentence or fragment to copy, with no space at either end."""
    while True:
        kind = rng.random()
        if kind < 0.25:
            text = _framed_sentence(rng)
        elif kind < 0.55:
            text = _decorate(rng, _excerpt(rng, pages))
        elif kind < 0.63:
            # A known beginning with an unknown end: knowing the rest of a text must not help.
            known = _excerpt(rng, pages).split()
            head = " ".join(known[: rng.randint(1, 6)])
            text = _decorate(rng, f"{head} {_random_sentence(rng)}")
        else:
            text = _decorate(rng, _random_sentence(rng))
        if text := text[:MOST_CHARACTERS].strip():
            return text


def documentation_pages(*, held_out: bool) -> list[list[str]]:
    """Return the paragraphs of Python's own help pages: varied English for training."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    pages = []
    for name, text in sorted(topics.items()):
        if (stable_hash(name) % 8 == 0) == held_out:
            pages.append([block.strip() for block in text.split("\n\n") if block.strip()])
    return pages


def fill_prose(rng: random.Random, sentence: str) -> str:
    """Fill the slots of one prose sentence with words and numbers."""
    return re.sub(
        r"\{(\w)\}",
        lambda m: str(rng.randint(0, 2030)) if m.group(1) == "n" else rng.choice(WORDS),
        sentence,
    )


def _paragraph(rng: random.Random, pages: Pages) -> str:
    kind = rng.random()
    if kind < 0.4 or not pages:
        chosen = rng.sample(PROSE, rng.randint(2, 9))
        return rng.choice((" ", " ", "\n", "\n- ")).join(fill_prose(rng, s) for s in chosen)
    if kind < 0.5:
        size = rng.randint(5, 40)
        text = " ".join(make_word(rng) for _ in range(size)) + "."
        return text.capitalize()
    page = rng.choice(pages)
    start = rng.randrange(len(page))
    blocks = page[start : start + rng.randint(1, 6)]
    return "\n\n".join(" ".join(b.split()) if rng.random() < 0.7 else b for b in blocks)


def make_system(rng: random.Random, pages: Pages, longest: int = 2200) -> str:
    """Return a long system prompt: prose about the project, help pages, word lists."""
    target = rng.randint(100, rng.choice((longest // 4, longest // 2, longest)))
    parts = [rng.choice(SHORT_SYSTEM)] if rng.random() < 0.6 else []
    while sum(map(len, parts)) < target:
        parts.append(_paragraph(rng, pages))
    text = rng.choice((" ", "\n\n", "\n")).join(parts)[:target]
    return text.rsplit(" ", 1)[0].strip()
