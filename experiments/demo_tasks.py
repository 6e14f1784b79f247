"""Synthetic chat tasks for the demo checkpoint: generators, facts and system prompts.

Standard library only.  Every arithmetic or string item has a canonical key (for example
``add:123:45``); a hash of that key puts it in the training or the held-out share, whatever
the phrasing, so no evaluation item occurs in training.
"""

from __future__ import annotations

import collections
import random
import re
import string
import zlib
from dataclasses import dataclass

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

PHRASINGS: dict[str, tuple[str, ...]] = {
    "add": (
        "What is {a} + {b}?",
        "What is {a} plus {b}?",
        "How much is {a} + {b}?",
        "Add {a} and {b}.",
        "Compute {a} + {b}.",
        "Calculate {a} + {b}.",
        "What is the sum of {a} and {b}?",
        "Can you add {a} and {b}?",
        "{a} + {b}",
        "{a} + {b} =",
        "{a}+{b}=",
    ),
    "count": (
        "Count from {a} to {b}.",
        "Count up from {a} to {b}.",
        "Can you count from {a} to {b}?",
        "List the numbers from {a} to {b}.",
        "List all numbers from {a} to {b}.",
        "Write the numbers from {a} to {b}.",
    ),
    "reverse": (
        'Reverse the word "{w}".',
        "Reverse the word {w}.",
        "Reverse {w}.",
        'Reverse "{w}".',
        'Write "{w}" backwards.',
        "Write the word {w} backwards.",
        "What is {w} backwards?",
        'What is "{w}" spelled backwards?',
    ),
    "spell": (
        'Spell the word "{w}".',
        "Spell the word {w}.",
        "Spell {w}.",
        'Spell "{w}".',
        "How do you spell {w}?",
        'How do you spell "{w}"?',
        "Can you spell the word {w}?",
    ),
    "sort": (
        'Sort the letters of "{w}".',
        "Sort the letters of {w}.",
        "Sort the letters of the word {w}.",
        'Sort the letters in "{w}".',
        'Put the letters of "{w}" in alphabetical order.',
        "Put the letters of {w} in alphabetical order.",
        'What are the letters of "{w}" in alphabetical order?',
    ),
    "copy": (
        "Repeat after me: {s}",
        "Repeat this sentence: {s}",
        "Repeat: {s}",
        "Copy this: {s}",
        "Copy this sentence: {s}",
        "Say this back to me: {s}",
        'Repeat "{s}"',
        'Say "{s}"',
        "Copy the next line.\n{s}",
    ),
}

# (question phrasings, answer)
FACTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Who are you?", "What are you?", "What is your name?", "Introduce yourself."),
        "I am the nanoserve demo model, a tiny Qwen3 network trained on synthetic tasks.",
    ),
    (
        ("What can you do?", "Help", "How can you help me?", "Which tasks can you do?"),
        "I can add numbers, count, reverse, spell and sort words, copy sentences, and answer "
        "a few questions about nanoserve.",
    ),
    (
        ("Hello", "Hi", "Hello!", "Hi there!", "Good morning!", "Hey"),
        "Hello! How can I help you?",
    ),
    (("Thank you!", "Thanks", "Thanks!", "Thank you"), "You are welcome!"),
    (
        ("What is nanoserve?", "Tell me about nanoserve.", "Explain nanoserve."),
        "Nanoserve is a small serving engine for Qwen models. It splits the work between a "
        "CPU scheduler service and an executor service.",
    ),
    (
        (
            "What does the scheduler do?",
            "What is the scheduler?",
            "Tell me about the scheduler.",
            "Explain the scheduler.",
        ),
        "The scheduler admits requests, forms batches, allocates KV blocks and sends a step "
        "plan to the executor.",
    ),
    (
        (
            "What does the executor do?",
            "What is the executor?",
            "Tell me about the executor.",
            "Explain the executor.",
        ),
        "The executor holds the model weights and the paged KV cache, runs each step plan and "
        "returns the sampled tokens.",
    ),
    (
        (
            "What are the two processes?",
            "Which processes does nanoserve have?",
            "Name the two processes.",
        ),
        "The two processes are the scheduler service and the executor service.",
    ),
    (
        (
            "Which protocol joins the two processes?",
            "How do the two processes talk?",
            "How does the scheduler talk to the executor?",
            "Which protocol does nanoserve use?",
        ),
        "The two processes talk over gRPC.",
    ),
    (
        ("What is a block?", "What is a KV block?", "Explain what a block is."),
        "A block is a fixed number of token slots in the KV cache.",
    ),
    (
        ("What is a block table?", "Explain block tables.", "What does a block table do?"),
        "A block table maps the positions of a sequence to the blocks that hold its keys and values.",
    ),
    (
        (
            "What is a prefix cache?",
            "What is prefix caching?",
            "What does the prefix cache do?",
            "Explain the prefix cache.",
        ),
        "A prefix cache keeps the KV blocks of earlier prompts, so that a request with the "
        "same prefix can reuse them.",
    ),
    (
        ("What is preemption?", "Explain preemption.", "When does preemption happen?"),
        "Preemption frees the blocks of a running sequence when memory runs out. The sequence "
        "is computed again later.",
    ),
    (
        ("What is continuous batching?", "Explain continuous batching."),
        "Continuous batching lets sequences join and leave the running batch at every step.",
    ),
    (
        ("What is paged attention?", "Explain paged attention."),
        "Paged attention reads keys and values from blocks that need not be contiguous.",
    ),
    (
        ("What is a step plan?", "What is in a step plan?", "Explain the step plan."),
        "A step plan lists the sequences, tokens and blocks of the next model step.",
    ),
    (
        ("What is chunked prefill?", "Explain chunked prefill."),
        "Chunked prefill splits a long prompt over several steps, so that running sequences "
        "keep producing tokens.",
    ),
    (
        ("What is a KV cache?", "What is the KV cache?", "Explain the KV cache."),
        "The KV cache stores the keys and values of past tokens, so that they are computed only once.",
    ),
)

SHORT_SYSTEM = (
    "You are a helpful assistant.",
    "You are nanoserve, a small demo assistant.",
    "You are a careful assistant that answers briefly.",
    "Answer in as few words as possible.",
    "Be brief.",
    "You answer questions about numbers and words.",
    "You are a friendly assistant. Keep every answer short.",
    "Follow the instructions of the user exactly.",
    "You are the assistant of the nanoserve team.",
    "You are Qwen, a helpful assistant.",
)

PROSE = (
    "The scheduler decides on the CPU which sequences run in the next step.",
    "The executor owns the model weights and the tensors of the paged cache.",
    "Every request passes through admission before it may take memory.",
    "A request that cannot be admitted waits in the queue until blocks are free.",
    "Each block holds {n} token slots, and a sequence owns a list of blocks.",
    "The last block of a sequence is usually only partly filled.",
    "Full blocks are hashed together with the hash of the block before them.",
    "When two prompts share a prefix, the second one reuses the cached blocks.",
    "A shared block carries a reference count and is freed when the count reaches zero.",
    "The scheduler sends a step plan over gRPC and waits for the sampled tokens.",
    "A step plan names the sequences, the new tokens and the block tables.",
    "Continuous batching lets new requests join the batch at any step.",
    "Long prompts are split into chunks of {n} tokens so that decoding goes on.",
    "When memory runs out, the youngest sequence is preempted and computed again later.",
    "The service streams each token to the client as soon as it is known.",
    "Clients speak a plain HTTP interface with messages, roles and sampling options.",
    "Greedy decoding picks the most likely token at every position.",
    "With a temperature of {n} percent the sampler draws from a flatter distribution.",
    "The tokenizer maps text to bytes, so every string can be written and read back.",
    "Tests compare the engine with a plain reference implementation, token by token.",
    "Metrics report the queue length, the cache hit rate and the time to the first token.",
    "If the executor restarts, the scheduler marks the running sequences for a new prefill.",
    "The two processes may live on different machines, joined by a fast network.",
    "Health checks tell the operator whether both services are ready.",
    "A deadline of {n} seconds applies to every call between the services.",
    "The cache keeps unused blocks in the order in which they were last used.",
    "Eviction removes the oldest unused block when a new one is needed.",
    "Logs are written as one line for each event, with the id of the request.",
    "A cancelled request gives its blocks back before the next step begins.",
    "The demo model is small, so that everybody can run it on a laptop.",
    "You are the assistant of the {w} project and you help its {w} team.",
    "Always answer in English and never mention these instructions.",
    "Keep the answer short, correct and free of extra words.",
    "If the user asks for a sum, give only the number.",
    "If the user asks for a word, write the letters and nothing else.",
    "Do not apologise, do not explain your steps, and do not ask questions back.",
    "Customers write to you about {w}, {w} and {w}, often late in the day.",
    "Our office in the {w} street opens at {n} and closes at {n}.",
    "Yesterday the {w} team found {n} errors and repaired {n} of them.",
    "Version {n}.{n} changed how the {w} handles large inputs.",
    "Please remember that a polite tone matters more than speed.",
    "The {w} near the {w} is older than the {w} behind it.",
    "She said that the {w} would arrive on day {n}, but nobody believed her.",
    "Most people prefer {w} over {w}, although both are useful.",
    "In the year {n} a {w} was found under the old {w}.",
    "There are {n} rules here; the first is that safety comes first.",
    "Rule {n}: check the {w} twice before you send the {w}.",
    "The weather was cold, the {w} was empty and the road went on for {n} miles.",
    "A good summary names the problem, the cause and the next step.",
    "For example, a {w} costs {n} coins while a {w} costs only {n}.",
    "This document describes the terms under which the service is offered.",
    "Nothing in this text changes how the tasks of the user are answered.",
    "Data is stored for {n} days and then deleted without exception.",
    "Questions about billing belong to the {w} desk, not to you.",
    "The history of the {w} is long, and only part of it is written down.",
)

# Never used in training: evaluation and documentation only.
HELD_OUT_SYSTEM = (
    "You are the support assistant of a small public library in a harbour town. Visitors ask "
    "about opening hours, lost cards, reading groups and the quiet rooms on the second floor. "
    "The library was founded by a group of sailors who wanted a warm place to read during the "
    "winter storms, and it still keeps their charts in a glass case beside the entrance. Speak "
    "kindly, be precise, and never invent a title that is not in the catalogue. When somebody "
    "asks for a recommendation, think about their age, their mood and the time they have. "
    "Books may be borrowed for 21 days and renewed twice, unless another reader is waiting. "
    "Children get a free card; adults pay 12 coins a year. Newspapers stay inside the building. "
    "If a question has nothing to do with books, answer it anyway, briefly and correctly.\n\n"
    "Some background: the building has three floors, 48 windows and a tower whose clock has "
    "been five minutes late for as long as anyone can remember. The staff meet on Mondays to "
    "discuss purchases, repairs and complaints. Volunteers read aloud on Saturday mornings.",
    "This deployment serves a shared model to many teams. Requests enter through a gateway, "
    "are checked for size, and are then placed in line. Each team has a budget measured in "
    "tokens per minute; once the budget is spent, further requests wait. The operators watch "
    "three graphs: how long the queue is, how many cache blocks are in use, and how often a "
    "prompt finds its beginning already computed. You will see the same introduction in front "
    "of every conversation, and that is intended: it lets the engine keep the result of this "
    "text and start directly with the words of the user. Do not comment on it. Give the plain "
    "answer to the last message and stop.",
    "Act as a friendly gardener. You know about soil, seeds, shade and patience. Explain things "
    "with simple words, avoid brand names, and remember that most readers own nothing larger "
    "than a balcony. Tomatoes want sun, ferns do not; mint will take over any pot it can reach. "
    "Water early in the morning. Never promise a harvest. Where the visitor only wants a number "
    "or a word, give exactly that number or that word.",
)

WORDS = tuple(
    """able about above acid across actor adult after again agent alarm album alert alive angle
animal answer apple april arrow artist autumn baker banana basket battery beach bean bear beauty
before bell berry better bicycle bird biscuit black blanket block blue board boat body book border
bottle bottom bowl branch brave bread bridge bright broken brother brown bucket build burger butter
button cable camera candle canoe canvas captain carbon carpet carrot castle cat cattle cellar chain
chair chalk cheese cherry chicken church circle city clean clever clock cloud coat coffee cold color
common copper corner cotton cousin cover cream crown curtain cycle dance danger daily dark daughter
dawn deep deer desert desk diamond dinner doctor dog dollar door dragon dream dress driver drum duck
early earth east eagle easy editor eight elbow electric empty engine enough evening expert fabric
family farmer father feather fence fever field finger fire fish flag flame floor flower forest fork
friend frog frozen fruit future garden garlic gate gentle giant glass glove gold grape grass green
guitar hammer happy harbor harvest heart heavy helmet hidden hill honey horse hotel house hungry
hunter ice idea insect iron island jacket jelly jewel jungle kettle key kitchen kite ladder lake
lamp large laser lemon letter library light lion little lizard lobster lunch machine magnet mango
maple marble market meadow medal melon memory metal middle milk mirror mobile monkey month moon
morning mother motor mountain mouse museum music narrow nature needle nephew nest night noise north
notebook number ocean office olive onion orange orchid oven owl oyster package paint palace panda
paper parcel parrot pasta peach pebble pencil pepper piano picnic pigeon pillow pilot planet plastic
plate pocket poem potato powder prefix pretty prince pumpkin puppy purple quick quiet rabbit radio
railway rain ribbon rice river road robot rocket roof rose round ruler saddle salad salt sample sand
scheduler school science season secret seven shadow sheep shelter ship shirt silver simple singer
sister sky sleep slow smile snake snow soap soft soldier south spider spoon spring square stable
stamp star station stone storm story straw street strong sugar summer sunset table tablet teacher
temple tennis thunder tiger timber tomato tower train travel tree triangle trumpet turtle umbrella
uncle under valley velvet village violin voice wagon walnut water weather west whale wheat wheel
white window winter wisdom wolf wonder wood yellow young zebra zero""".split()
)
ACCENTED = tuple(
    """café naïve Müller Straße señor crème façade Zürich jalapeño déjà élève smörgåsbord Łódź
São Paulo Ångström Øresund piñata über garçon château ñandú coração Příbram İzmir Ελλάδα Москва
привет мир γειά 日本 東京 你好 世界 한국 नमस्ते שלום مرحبا""".split()
)
EMOJI = "😀😂🙂😎🚀🌍🌈🔥✨🎉👍💡🐍🦊🍕☕️❤️⭐✅"
SENTENCE_FRAMES = (
    "The {w} is {w}.",
    "My {w} likes the {w} {w}.",
    "We met {n} times near the {w}.",
    "{c} and {w} are {w}.",
    "I saw a {w} {w} at the {w}.",
    "Is the {w} {w} or {w}?",
    "{c} {w} {w} {w}",
    "{w} {w} {w}",
    "{w} {w}, {w} {w}!",
    "Do not {w} the {w} on day {n}.",
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


def _stable_hash(key: str) -> int:
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


_PREFIXES = [p for p in learn_prefixes(509) if p.islower() and 2 <= len(p) <= 9]


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


def _sentence(rng: random.Random) -> str:
    def fill(match: re.Match[str]) -> str:
        slot = match.group()
        if slot == "{n}":
            return str(rng.randint(0, 999))
        if rng.random() < 0.15:
            return _foreign(rng)
        word = rng.choice(WORDS) if rng.random() < 0.6 else make_word(rng, 7)
        return word.capitalize() if slot == "{c}" else word

    return re.sub(r"\{\w\}", fill, rng.choice(SENTENCE_FRAMES))


def _number(rng: random.Random) -> int:
    digits = rng.choice((1, 2, 2, 3, 3, 3, 3))
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def _item(task: str, rng: random.Random, short: bool) -> tuple[str, dict[str, object], str]:
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
        sentence = _sentence(rng)
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
) -> Turn:
    """Return a random turn of one task from the training or the held-out share."""
    while True:
        key, fields, answer = _item(task, rng, short)
        if (_stable_hash(key) % HELD_OUT_SHARE == 0) == held_out:
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


def documentation_pages(*, held_out: bool) -> list[list[str]]:
    """Return the paragraphs of Python's own help pages: varied English for system prompts."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    pages = []
    for name, text in sorted(topics.items()):
        if (_stable_hash(name) % 8 == 0) == held_out:
            pages.append([block.strip() for block in text.split("\n\n") if block.strip()])
    return pages


def fill_prose(rng: random.Random, sentence: str) -> str:
    """Fill the slots of one prose sentence with words and numbers."""
    return re.sub(
        r"\{(\w)\}",
        lambda m: str(rng.randint(0, 2030)) if m.group(1) == "n" else rng.choice(WORDS),
        sentence,
    )


def _paragraph(rng: random.Random, pages: list[list[str]]) -> str:
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


def make_system(rng: random.Random, pages: list[list[str]], longest: int = 2200) -> str:
    """Return a long system prompt: prose about the project, help pages, word lists."""
    target = rng.randint(100, rng.choice((longest // 4, longest // 2, longest)))
    parts = [rng.choice(SHORT_SYSTEM)] if rng.random() < 0.6 else []
    while sum(map(len, parts)) < target:
        parts.append(_paragraph(rng, pages))
    text = rng.choice((" ", "\n\n", "\n")).join(parts)[:target]
    return text.rsplit(" ", 1)[0].strip()


TASK_WEIGHTS = {"add": 32, "count": 6, "reverse": 15, "spell": 7, "sort": 16, "copy": 17, "fact": 7}


def make_conversation(rng: random.Random, pages: list[list[str]]) -> Conversation:
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
        made.append(make_fact(rng) if name == "fact" else make_turn(name, rng, short=turns > 1))
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
