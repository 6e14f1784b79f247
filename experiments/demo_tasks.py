"""Synthetic chat tasks for the demo checkpoint: training and evaluation conversations.

Standard library only.  Every arithmetic or string item has a canonical key (for example
``add:123:45``); a hash of that key puts it in the training or the held-out share, whatever
the phrasing, so no evaluation item occurs in training.  The sentences of ``FREE_COPY`` are in
neither share.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from demo_text import (
    Pages,
    documentation_pages,
    fill_prose,
    make_sentence,
    make_system,
    make_word,
    stable_hash,
)
from demo_words import FACTS, FREE_COPY, HELD_OUT_SYSTEM, PHRASINGS, PROSE, SHORT_SYSTEM

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TASKS = ("add", "count", "reverse", "spell", "sort", "copy")
HELD_OUT_SHARE = 32  # one item in this many is held out

CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{%- if message['role'] not in ('system', 'user', 'assistant') -%}\n"
    "{{- raise_exception('unknown role: ' + message['role']) -}}\n"
    "{%- endif -%}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- '<|im_start|>assistant\\n' -}}\n"
    "{%- endif -%}\n"
)


@dataclass(frozen=True)
class Turn:
    """One user message and the only correct answer to it."""

    task: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """An optional system prompt and one or more turns."""

    system: str
    turns: tuple[Turn, ...]

    def segments(self) -> list[tuple[str, bool]]:
        """Return the rendered chat as (text, is trained on) pieces."""
        pieces = [(f"{IM_START}system\n{self.system}{IM_END}\n", False)] if self.system else []
        for turn in self.turns:
            pieces.append((f"{IM_START}user\n{turn.prompt}{IM_END}\n{IM_START}assistant\n", False))
            pieces += [(turn.answer + IM_END, True), ("\n", False)]
        return pieces[:-1]

    def prompt(self) -> str:
        """Return the rendered chat up to the start of the last answer."""
        return "".join(text for text, _ in self.segments()[:-1])


def _letters(text: str) -> str:
    """Return the letters and digits alone, in lower case."""
    return "".join(c for c in text.casefold() if c.isalnum())


_FREE_COPY_LETTERS = frozenset(map(_letters, FREE_COPY))


def _number(rng: random.Random) -> int:
    digits = rng.choice((1, 2, 2, 3, 3, 3, 3))
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def _item(
    task: str,
    rng: random.Random,
    short: bool,
    pages: Pages,
) -> tuple[str, dict[str, object], str]:
    """Return the canonical key, the template fields and the answer of one random item."""
    if task == "add":
        a, b = _number(rng), _number(rng)
        return f"add:{a}:{b}", {"a": a, "b": b}, str(a + b)
    if task == "count":
        start = rng.randint(0, 198)
        longest = min(199, start + (12 if short else 100))
        end = rng.randint(start + 1, longest)
        answer = ", ".join(str(value) for value in range(start, end + 1))
        return f"count:{start}:{end}", {"a": start, "b": end}, answer
    if task == "copy":
        sentence = make_sentence(rng, pages)
        return f"copy:{sentence}", {"s": sentence}, sentence
    word = make_word(rng)
    answers = {"reverse": word[::-1], "spell": "-".join(word), "sort": "".join(sorted(word))}
    return f"{task}:{word}", {"w": word}, answers[task]


def _restyle(prompt: str, task: str, rng: random.Random) -> str:
    """Vary capitals, politeness and the final punctuation mark of an instruction."""
    if prompt[0].isdigit():
        return prompt
    if task != "copy" and prompt[-1] in ".?" and rng.random() < 0.15:
        prompt = prompt[:-1]
    if rng.random() < 0.25:
        prompt = prompt[0].lower() + prompt[1:]
    if not prompt.lower().startswith(("what", "how", "can")) and rng.random() < 0.1:
        prompt = "Please " + prompt[0].lower() + prompt[1:]
    return prompt


def make_turn(
    task: str,
    rng: random.Random,
    *,
    held_out: bool = False,
    short: bool = False,
    pages: Pages = (),
) -> Turn:
    """Return a random turn of one task from the training or the held-out share.

    Sentences to copy come from the pages too, where there are any.
    """
    while True:
        key, fields, answer = _item(task, rng, short, pages)
        if task == "copy" and _letters(answer) in _FREE_COPY_LETTERS:
            continue
        if (stable_hash(key) % HELD_OUT_SHARE == 0) == held_out:
            prompt = rng.choice(PHRASINGS[task]).format(**fields)
            return Turn(task, _restyle(prompt, task, rng), answer)


def make_fact(rng: random.Random) -> Turn:
    """Return a random question about the project with its fixed answer."""
    questions, answer = rng.choice(FACTS)
    question = rng.choice(questions)
    if rng.random() < 0.2 and question[-1] in ".?!":
        question = question[:-1]
    if rng.random() < 0.25:
        question = question[0].lower() + question[1:]
    return Turn("fact", question, answer)


def all_facts() -> list[Turn]:
    """Return every documented question about the project."""
    return [Turn("fact", question, answer) for questions, answer in FACTS for question in questions]


TASK_WEIGHTS = {"add": 32, "count": 6, "reverse": 15, "spell": 7, "sort": 16, "copy": 26, "fact": 7}


def make_conversation(rng: random.Random, pages: Pages) -> Conversation:
    """Return one random training conversation."""
    mode = rng.random()
    system, turns = "", 1
    if mode < 0.12:
        system = make_system(rng, pages)
        turns = rng.choice((1, 1, 2, 3, 4))
    else:
        if mode < 0.28:
            system = rng.choice((*SHORT_SYSTEM, fill_prose(rng, rng.choice(PROSE))))
        if rng.random() < 0.12:
            turns = rng.randint(2, 4)
    made = []
    for name in rng.choices(list(TASK_WEIGHTS), list(TASK_WEIGHTS.values()), k=turns):
        if name == "fact":
            made.append(make_fact(rng))
        else:
            made.append(make_turn(name, rng, short=turns > 1, pages=pages))
    return Conversation(system, tuple(made))


def plain_text(rng: random.Random) -> list[tuple[str, bool]]:
    """Return a plain continuation without chat markup as (text, is trained on) pieces."""
    if rng.random() < 0.5:
        numbers = ", ".join(map(str, range(rng.randint(0, 190), 200)))
        cut = numbers.index(",", 12)
        return [(numbers[:cut], False), (numbers[cut:] + "." + END_OF_TEXT, True)]
    passage = [answer for _, answer in FACTS[4:]]
    start = rng.randrange(len(passage) - 1)
    text = " ".join(passage[start:])
    cut = text.index(" ", 24)
    return [(text[:cut], False), (text[cut:] + END_OF_TEXT, True)]


def evaluation_set(
    count: int,
    seed: int,
    system: str = "none",
    turns: int = 1,
) -> list[Conversation]:
    """Return held-out conversations, tasks in turn; ``system`` is none, short or long."""
    rng = random.Random(f"evaluation-{seed}-{system}-{turns}")
    pages = documentation_pages(held_out=True)
    conversations = []
    for index in range(count):
        text = ""
        if system == "short":
            text = rng.choice(SHORT_SYSTEM)
        elif system == "long":
            text = rng.choice(HELD_OUT_SYSTEM) if index % 2 else make_system(rng, pages)
        names = [TASKS[(index + step) % len(TASKS)] for step in range(turns)]
        made = tuple(make_turn(name, rng, held_out=True, short=turns > 1) for name in names)
        conversations.append(Conversation(text, made))
    return conversations


def free_copy_set(system: str = "") -> list[Conversation]:
    """Return every ``FREE_COPY`` sentence in three of the phrasings of copy."""
    options = PHRASINGS["copy"]
    conversations = []
    for index, sentence in enumerate(FREE_COPY):
        for shift in (0, 3, 6):
            prompt = options[(index + shift) % len(options)].format(s=sentence)
            conversations.append(Conversation(system, (Turn("copy", prompt, sentence),)))
    return conversations
