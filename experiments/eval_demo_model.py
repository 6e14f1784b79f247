"""Evaluate a demo checkpoint on held-out prompts, greedily, with Hugging Face transformers.

Prints, for each prompt set, the exact-match rate of each task and the margins (the gap
between the largest and the second largest logit) over all generated positions.  The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import collections
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import demo_tasks as tasks
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PERCENTILES = (0.1, 1.0, 10.0, 50.0)


@dataclass(frozen=True)
class Result:
    """The greedy answer to one conversation and the margins of its tokens."""

    task: str
    prompt: str
    expected: str
    answer: str
    tokens: tuple[int, ...]
    margins: tuple[float, ...]

    @property
    def right(self) -> bool:
        """Whether the answer is exact, its end token included."""
        return self.answer == self.expected + tasks.IM_END


def prompt_sets(args: argparse.Namespace) -> dict[str, list[tasks.Conversation]]:
    """Return the evaluation conversations by the name of their set."""
    facts = [tasks.Conversation("", (turn,)) for turn in tasks.all_facts()]
    library = tasks.HELD_OUT_SYSTEM[0]
    facts_long = [tasks.Conversation(library, (turn,)) for turn in tasks.all_facts()]
    return {
        "plain": tasks.evaluation_set(args.prompts, args.seed),
        "long-system": tasks.evaluation_set(args.extra, args.seed, "long"),
        "short-system": tasks.evaluation_set(args.extra, args.seed, "short"),
        "multi-turn": tasks.evaluation_set(args.extra, args.seed, "none", turns=4),
        "facts": facts,
        "facts-long-system": facts_long,
        "free-copy": tasks.free_copy_set(),
        "free-copy-long-system": tasks.free_copy_set(library),
    }


@torch.inference_mode()
def answer_batch(model: Any, tokenizer: Any, batch: list[tasks.Conversation]) -> list[Result]:
    """Answer one batch of conversations."""
    inputs = tokenizer(
        [item.prompt() for item in batch], return_tensors="pt", padding=True, padding_side="left"
    ).to(model.device)
    limit = max(len(tokenizer.encode(item.turns[-1].answer)) for item in batch) + 8
    inputs.pop("token_type_ids", None)
    output = model.generate(
        **inputs,
        max_new_tokens=limit,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    new = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    steps = [logits.float().topk(2).values for logits in output.logits]
    gaps = torch.stack([top[:, 0] - top[:, 1] for top in steps], dim=1).tolist()
    stops = set(model.generation_config.eos_token_id)
    results = []
    for item, ids, margins in zip(batch, new, gaps, strict=True):
        size = next((n + 1 for n, token in enumerate(ids) if token in stops), len(ids))
        turn, text = item.turns[-1], tokenizer.decode(ids[:size])
        tokens, kept = tuple(ids[:size]), tuple(margins[:size])
        results.append(Result(turn.task, item.prompt(), turn.answer, text, tokens, kept))
    return results


def answer_all(
    model: Any,
    tokenizer: Any,
    items: list[tasks.Conversation],
    batch_size: int,
) -> list[Result]:
    """Answer conversations, similar lengths together; results come in the given order."""

    def size(index: int) -> tuple[int, int]:
        answer, prompt = items[index].turns[-1].answer, items[index].prompt()
        return len(answer) // 64, len(prompt)

    order = sorted(range(len(items)), key=size)
    results: dict[int, Result] = {}
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        rows = answer_batch(model, tokenizer, [items[i] for i in chosen])
        results |= dict(zip(chosen, rows, strict=True))
    return [results[i] for i in range(len(items))]


def exact_match(results: list[Result]) -> float:
    """Return the share of exact answers."""
    return round(sum(row.right for row in results) / len(results), 5)


def margin_figures(results: list[Result]) -> dict[str, float]:
    """Return the least margin, low percentiles and counts of small margins."""
    margins = torch.tensor([gap for row in results for gap in row.margins])
    figures = {"positions": len(margins), "min": round(margins.min().item(), 3)}
    for percent in PERCENTILES:
        figures[f"p{percent:g}"] = round(margins.quantile(percent / 100).item(), 3)
    figures["below_1"] = int((margins < 1).sum())
    return figures


def report(name: str, results: list[Result], misses: int) -> dict[str, Any]:
    """Print the table of one prompt set and return its figures."""
    by_task: dict[str, list[Result]] = collections.defaultdict(list)
    for row in results:
        by_task[row.task].append(row)
    print(f"\n{name:22}{'prompts':>8}{'exact':>8}{'min':>8}{'p0.1':>8}{'p1':>8}{'p50':>8}")
    for task, rows in [*sorted(by_task.items()), ("all", results)]:
        gaps = margin_figures(rows)
        cells = "".join(f"{gaps[key]:8.2f}" for key in ("min", "p0.1", "p1", "p50"))
        print(f"  {task:20}{len(rows):8}{exact_match(rows):8.4f}{cells}")
    for row in [row for row in results if not row.right][:misses]:
        print(f"  miss: {row.prompt[-90:]!r} -> {row.answer!r}, not {row.expected!r}")
    rates = {task: exact_match(rows) for task, rows in sorted(by_task.items())}
    return {"exact_match": exact_match(results), "by_task": rates, "margins": margin_figures(results)}


def evaluate(args: argparse.Namespace, dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate in one number format; return the figures and the results by set."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, dtype))
    model = model.to(args.device).eval()
    begun = time.monotonic()
    figures, answers = {}, {}
    print(f"\n=== {dtype} on {args.device}")
    for name, items in prompt_sets(args).items():
        if args.sets and name not in args.sets:
            continue
        answers[name] = answer_all(model, tokenizer, items, args.batch_size)
        figures[name] = report(name, answers[name], args.misses)
    print(f"\n{dtype}: {time.monotonic() - begun:.1f} s")
    return figures, answers


def agreement(first: dict[str, list[Result]], second: dict[str, list[Result]]) -> dict[str, Any]:
    """Return how many answers agree token by token between two number formats."""
    same = total = 0
    for name, rows in first.items():
        for one, two in zip(rows, second[name], strict=True):
            same, total = same + (one.tokens == two.tokens), total + 1
    return {"answers": total, "same": same}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, or the arguments given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/demo-qwen3"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="float32, bfloat16")
    parser.add_argument("--prompts", type=int, default=1000, help="held-out plain prompts")
    parser.add_argument("--extra", type=int, default=300, help="prompts of the other sets")
    parser.add_argument("--sets", nargs="*", help="evaluate only these prompt sets")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--misses", type=int, default=5, help="wrong answers to print per set")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate and print tables; the last line is one JSON object."""
    args = parse_args(argv)
    figures, answers = {}, {}
    for dtype in args.dtypes:
        figures[dtype], answers[dtype] = evaluate(args, dtype)
    summary: dict[str, Any] = {"model": str(args.model), "seed": args.seed, "figures": figures}
    if len(args.dtypes) > 1:
        one, two = args.dtypes[:2]
        summary["agreement"] = {f"{one}={two}": agreement(answers[one], answers[two])}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
