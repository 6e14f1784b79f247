"""The main job in one minute: starts both services and asks the shipped model many questions at once.

Streams the answers, then prints what each cost and what the server holds afterwards. Ends with status 0 only if every
answer is right and no block is held. `make demo` runs it.
"""

import argparse
import asyncio
import shutil
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import demo_tasks

from nanoserve_client import AsyncClient, Completion, Delta, Load, Message, NanoserveError
from nanoserve_client.supervisor import LocalServer

# Longer than many blocks, and never seen in training.
LONG_SYSTEM = demo_tasks.HELD_OUT_SYSTEM[1]
FACTS = {question: answer for questions, answer in demo_tasks.FACTS for question in questions}
MAX_TOKENS = 256
SETTLE_SECONDS = 5.0
_SETTLE_PAUSE_SECONDS = 0.05
_REPAINT_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its only right answer."""

    text: str
    expected: str
    system: str = ""

    @property
    def messages(self) -> list[Message]:
        """The question as a chat."""
        system = [Message("system", self.system)] if self.system else []
        return [*system, Message("user", self.text)]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and when by this process's clock, in seconds."""

    completion: Completion
    first_token_seconds: float
    total_seconds: float


def questions() -> list[Question]:
    """What the demo asks: each task, the last six behind one long system prompt."""
    sentence = "My rabbit likes the purple piano."
    return [
        add(123, 45),
        add(978, 654),
        count(3, 17),
        reverse("scheduler"),
        spell("kitchen"),
        sort_letters("umbrella"),
        Question(f"Repeat after me: {sentence}", sentence),
        fact("What is continuous batching?"),
        add(407, 86, LONG_SYSTEM),
        add(5, 999, LONG_SYSTEM),
        reverse("prefix", LONG_SYSTEM),
        sort_letters("violin", LONG_SYSTEM),
        spell("harbor", LONG_SYSTEM),
        fact("What is a KV block?", LONG_SYSTEM),
    ]


def add(a: int, b: int, system: str = "") -> Question:
    """An addition."""
    return Question(f"What is {a} + {b}?", str(a + b), system)


def count(first: int, last: int) -> Question:
    """The numbers from `first` to `last`."""
    return Question(f"Count from {first} to {last}.", ", ".join(map(str, range(first, last + 1))))


def reverse(word: str, system: str = "") -> Question:
    """A word backwards."""
    return Question(f'Reverse the word "{word}".', word[::-1], system)


def spell(word: str, system: str = "") -> Question:
    """A word letter by letter."""
    return Question(f'Spell the word "{word}".', "-".join(word), system)


def sort_letters(word: str, system: str = "") -> Question:
    """A word's letters in the order of the alphabet."""
    return Question(f'Sort the letters of "{word}".', "".join(sorted(word)), system)


def fact(question: str, system: str = "") -> Question:
    """A question about the project."""
    return Question(question, FACTS[question], system)


class Board:
    """Shows answers as they grow, a line each: repainted on a terminal, otherwise printed once whole."""

    def __init__(self, asked: Sequence[Question]) -> None:
        self._asked = asked
        self._texts = [""] * len(asked)
        self._width = max(len(question.text) for question in asked)
        size = shutil.get_terminal_size()
        self._live = sys.stdout.isatty() and size.lines > len(asked) + 1
        self._columns = size.columns - 1
        self._painted_at = 0.0
        if self._live:
            print("\n" * len(asked), end="")
            self._paint()

    def grow(self, index: int, text: str) -> None:
        """Adds to an answer."""
        self._texts[index] += text
        if self._live and time.monotonic() - self._painted_at > _REPAINT_SECONDS:
            self._paint()

    def finish(self, index: int) -> None:
        """An answer is whole."""
        if self._live:
            self._paint()
        else:
            print(self._line(index), flush=True)

    def close(self) -> None:
        """All answers are whole: shows what was too long for its line."""
        if self._live:
            self._columns = sys.maxsize
            self._paint()

    def _paint(self) -> None:
        self._painted_at = time.monotonic()
        lines = [f"\x1b[K{self._line(i)[: self._columns]}\n" for i in range(len(self._asked))]
        print(f"\x1b[{len(lines)}A{''.join(lines)}", end="", flush=True)

    def _line(self, index: int) -> str:
        mark = " +" if self._asked[index].system else "  "
        return f"{index + 1:2}{mark} {self._asked[index].text:{self._width}}  {self._texts[index]}"


async def ask(client: AsyncClient, index: int, question: Question, board: Board) -> Answer:
    """Streams one answer onto the board."""
    begun = time.perf_counter()
    first_token_seconds = 0.0
    async with client.stream(question.messages, temperature=0, max_tokens=MAX_TOKENS) as stream:
        async for event in stream:
            if isinstance(event, Delta):
                first_token_seconds = first_token_seconds or time.perf_counter() - begun
                board.grow(index, event.text)
        board.finish(index)
        return Answer(await stream.result(), first_token_seconds, time.perf_counter() - begun)


async def settled_load(client: AsyncClient) -> Load:
    """The load once nothing is held any more, or SETTLE_SECONDS later: the last step may still be in flight."""
    for _ in range(int(SETTLE_SECONDS / _SETTLE_PAUSE_SECONDS)):
        if (await client.get_load()).num_held_blocks == 0:
            break
        await asyncio.sleep(_SETTLE_PAUSE_SECONDS)
    return await client.get_load()


async def run(address: str) -> bool:
    """Asks everything at once and reports; says whether all is as it must be."""
    asked = questions()
    async with AsyncClient(address) as client:
        info = await client.model_info()
        print(f"{len(asked)} questions at once to {info.model} ({info.architecture}) at {address};")
        print(f"those marked + stand behind one system prompt of {len(LONG_SYSTEM)} characters.\n")
        board = Board(asked)
        begun = time.perf_counter()
        answers = await asyncio.gather(*(ask(client, i, q, board) for i, q in enumerate(asked)))
        seconds = time.perf_counter() - begun
        board.close()
        load = await settled_load(client)
    return report(asked, answers, seconds, load)


def report(asked: Sequence[Question], answers: Sequence[Answer], seconds: float, load: Load) -> bool:
    """Prints the table; says whether every answer is right and nothing is held."""
    print("\n #   prompt  cached  output  TTFT ms  total ms  answer")
    wrong = []
    for number, (question, answer) in enumerate(zip(asked, answers, strict=True), 1):
        completion = answer.completion
        right = completion.text == question.expected
        if not right:
            wrong.append(f"{number}: {completion.text!r} instead of {question.expected!r}")
        print(
            f"{number:2}  {completion.usage.num_prompt_tokens:7} {completion.usage.num_cached_tokens:7}"
            f" {completion.usage.num_output_tokens:7} {answer.first_token_seconds * 1e3:8.1f}"
            f" {answer.total_seconds * 1e3:9.1f}  {'right' if right else 'WRONG'}"
        )
    num_tokens = sum(answer.completion.usage.num_output_tokens for answer in answers)
    hit_rate = load.num_prefix_hit_tokens / max(1, load.num_prefix_query_tokens)
    ttft = sorted(answer.first_token_seconds * 1e3 for answer in answers)
    print(f"\noutput        {num_tokens} tokens in {seconds:.2f} s: {num_tokens / seconds:.0f} tokens/s")
    print(f"TTFT          median {ttft[len(ttft) // 2]:.1f} ms, longest {ttft[-1]:.1f} ms")
    print(f"prefix cache  {hit_rate:.0%} of {load.num_prefix_query_tokens} prompt tokens were hits")
    print(
        f"blocks        {load.num_held_blocks} held, {load.num_cached_blocks} cached,"
        f" {load.num_free_blocks} free of {load.num_total_blocks}"
    )
    print(f"answers       {len(asked) - len(wrong)} of {len(asked)} right")
    for line in wrong:
        print(f"wrong answer {line}", file=sys.stderr)
    if load.num_held_blocks:
        print(f"{load.num_held_blocks} blocks are still held", file=sys.stderr)
    return not wrong and load.num_held_blocks == 0


def main() -> int:
    """Runs the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description="Serve the demo model and ask it a few questions.")
    parser.add_argument("--model", metavar="DIR", help="another checkpoint of the same tasks")
    arguments = parser.parse_args()
    log: deque[str] = deque(maxlen=30)

    def keep(service: str, line: str) -> None:
        log.append(f"{service}: {line}")
        if service == "supervisor":
            print(line, file=sys.stderr)

    print("starting an executor and a scheduler ...", file=sys.stderr)
    try:
        with LocalServer(arguments.model, log=keep) as server:
            return 0 if asyncio.run(run(server.address)) else 1
    except NanoserveError as error:
        print(*log, f"demo: {error}", sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
