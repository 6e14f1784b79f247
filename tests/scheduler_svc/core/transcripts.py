"""Golden transcripts: a situation as text, each command followed by what the core decides.

A transcript is comments (`#`), commands (`>`), and, below each command, indented, what came of it. Commands:

    > core pipeline_depth=1                 the core's settings; first, where there are any
    > executor num_blocks=5                 the executor's sizes; next, where they are not core_harness's
    > add a prompt=1*7,2 max_tokens=9       a request, whose sequences are a, or a.0, a.1 with n=2
    > plan [steps=4]                        the next plan
    > result                                the oldest result under way is taken in
    > abort a
    > lose [instance_id=another ...]        the session is lost and another one opened
    > blocks                                how many are held, cached and free
    > finish                                plans and results until nothing is left; all tokens are checked

Prompts list token ids, `1*7` being seven times a 1. Tokens are the virtual executor's.
"""

from collections import deque
from typing import Any

import numpy as np
from core_harness import Harness

from scheduler_svc.core.request import Finish, Sampling
from scheduler_svc.core.scheduler import CoreConfig
from scheduler_svc.core.step import SequenceStart, StepPlan


class Transcript:
    """Runs the commands of one transcript."""

    def __init__(self) -> None:
        self._core: dict[str, Any] = {"max_num_batched_tokens": 16}
        self._executor: dict[str, Any] = {}
        self._harness: Harness | None = None
        self._names: dict[int, str] = {}
        """By sequence id."""
        self._rows: dict[int, str] = {}
        """Who holds each row, once the plans so far have run."""
        self._planned: deque[dict[int, str]] = deque()
        """For each result under way who held the rows that it samples for, when it was planned."""

    def run(self, text: str) -> str:
        """Returns the transcript with what each command brings now."""
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith(">"):
                name, *arguments = line[1:].split()
                lines += [line, *(f"    {outcome}" for outcome in self._execute(name, arguments))]
            elif not line.startswith(" "):
                lines.append(line)
        return "\n".join(lines) + "\n"

    @property
    def harness(self) -> Harness:
        """Made by the first command that needs it."""
        if self._harness is None:
            self._harness = Harness(CoreConfig(**self._core), **self._executor)
        return self._harness

    def _execute(self, name: str, arguments: list[str]) -> list[str]:
        values = dict(argument.split("=") for argument in arguments if "=" in argument)
        numbers = {key: _number(value) for key, value in values.items()}
        match name:
            case "core" | "executor":
                assert self._harness is None, "settings come first"
                (self._core if name == "core" else self._executor).update(numbers)
                return []
            case "add":
                return self._add(arguments[0], values)
            case "plan":
                return self._plan(numbers.get("steps", 1))
            case "result":
                return self._result()
            case "abort":
                ids = [key for key, known in self._names.items() if known == arguments[0]]
                self.harness.abort(ids[0])
                return []
            case "lose":
                self._planned.clear()
                self._rows.clear()
                self.harness.lose_session(**numbers)
                return self._no_room()
            case "blocks":
                return [self._blocks()]
            case "finish":
                return self._finish()
        raise AssertionError(f"no such command: {name}")

    def _add(self, name: str, values: dict[str, str]) -> list[str]:
        prompt: list[int] = []
        for part in values.pop("prompt").split(","):
            token, _, count = part.partition("*")
            prompt += [int(token)] * int(count or 1)
        changes: dict[str, Any] = {key: int(value) for key, value in values.items() if key != "end"}
        if "end" in values:
            changes["end_token_ids"] = (int(values["end"]),)
        if "prompt_logprobs" in changes:
            changes["sampling"] = Sampling(prompt_logprobs=changes.pop("prompt_logprobs"))
        ids = self.harness.add(prompt, **changes)
        for index, sequence_id in enumerate(ids):
            self._names[sequence_id] = name if len(ids) == 1 else f"{name}.{index}"
        return []

    def _plan(self, num_decode_steps: int = 1) -> list[str]:
        before, preemptions = dict(self._rows), self.harness.core.stats().num_preemptions
        plan = self.harness.plan(num_decode_steps)
        if plan is None:
            return ["nothing"]
        lines = [f"step {plan.step_id}"]
        if num_preempted := self.harness.core.stats().num_preemptions - preemptions:
            lines.append(f"preempted: {num_preempted}")
        for row in plan.release_rows:
            lines.append(f"release row {row} of {before[row]}")
            del self._rows[row]
        for start in plan.starts:
            self._rows[start.row] = self._names[start.sequence_id]
            lines.append(self._start(start))
        for row, block in zip(plan.new_block_rows, plan.new_block_ids, strict=True):
            lines.append(f"block {block} to {self._rows[row]}")
        for row, first, count, samples in plan.prefills:
            what = "and samples" if samples else "and goes on"
            lines.append(f"prefill {self._rows[row]} from {first}, {count} tokens, {what}")
        lines += self._decodes(plan)
        self._planned.extend([dict(self._rows)] * plan.num_decode_steps)
        return lines

    def _start(self, start: SequenceStart) -> str:
        again = " again" if start.is_restart else ""
        size = self.harness.session.block_size
        hits = start.block_table[: start.num_computed_tokens // size]
        own = start.block_table[len(hits) :]
        prefix = f"hits {hits}, " if hits else ""
        name = self._names[start.sequence_id]
        return f"start {name}{again} on row {start.row}, {len(start.token_ids)} tokens known, {prefix}blocks {own}"

    def _decodes(self, plan: StepPlan) -> list[str]:
        if not len(plan.decode_rows):
            return []
        names = [self._rows[row] for row in plan.decode_rows.tolist()]
        if plan.num_decode_steps == 1:
            return [f"decode {' '.join(names)}"]
        counts = zip(names, plan.decode_row_steps.tolist(), strict=True)
        return [f"decode, {plan.num_decode_steps} steps: {' '.join(f'{name}*{n}' for name, n in counts)}"]

    def _result(self) -> list[str]:
        if not self.harness.under_way:
            return ["none under way"]
        result, rows = self.harness.under_way[0], self._planned.popleft()
        outputs = self.harness.deliver()
        lines = [f"of step {result.step_id}" + (f", sub-step {result.sub_step}" if result.sub_step else "")]
        for index, (row, token) in enumerate(
            zip(result.rows.tolist(), result.token_ids.tolist(), strict=True)
        ):
            (where,) = np.nonzero(outputs.result_indices == index)
            if not len(where):
                lines.append(f"{rows[row]} has ended: token {token} is dropped")
                continue
            finish = Finish(outputs.finishes[where[0]])
            lines.append(f"{rows[row]} gets {token}" + (f", {finish.name}" if finish else ""))
        for sequence_id, index, num_known in outputs.prompt_slices:
            piece = result.prompt_slices[index]
            first, last = piece.first_position + num_known, piece.first_position + piece.num_positions - 1
            lines.append(f"{self._names[sequence_id]} gets its prompt judged at {first} to {last}")
        return lines

    def _no_room(self) -> list[str]:
        answers = self.harness.answers.items()
        return [f"{self._names[key]}: NO_ROOM" for key, answer in answers if answer.finish is Finish.NO_ROOM]

    def _blocks(self) -> str:
        stats = self.harness.core.stats()
        return (
            f"{stats.num_held_blocks} held, {stats.num_cached_blocks} cached, {stats.num_free_blocks} free;"
            f" {stats.num_running} running, {stats.num_waiting} waiting"
        )

    def _finish(self) -> list[str]:
        """Every sequence must have got what it gets alone; nothing may be held."""
        while self._plan() != ["nothing"] or self.harness.under_way:
            if self.harness.under_way:
                self._result()
        self.harness.check_answers()
        return [
            f"{self._names[key]}: {len(answer.tokens)} tokens, {answer.finish.name}"
            for key, answer in self.harness.answers.items()
        ]


def _number(text: str) -> Any:
    """An int, a truth value, or what else it is."""
    if text in ("True", "False"):
        return text == "True"
    return int(text) if text.isdecimal() else text
