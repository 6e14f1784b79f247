"""Arithmetic intensity and achieved speed of prefill and decode, under the device's measured ceilings.

    python experiments/roofline.py --model-shape 0.6b --device cuda --out plots/data/h200-0.6b

Decode by batch and context, prefill by prompt length, both through the services, in the executor's own device times.
Bytes are those that a step has to move: weights once, keys and values of the context; activations stay out.
Operations are two for each weight and token, and attention's. A decode step does few operations a byte, so memory
bounds it; only batching raises that, and only for the weights' share.
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks import step_budget
from benchmarks.memory import BYTES_PER_VALUE
from benchmarks.report import rounded
from benchmarks.shapes import Shape
from benchmarks.steps import steps_between
from benchmarks.workloads import EqualWorkload, equal_prompts
from experiments.harness import Bench, Case, main
from experiments.sizes import Sizes
from experiments.store import Row, StudyError

NAME = "roofline"
_CEILING_REPS = 60
_CEILINGS = Path(__file__).with_name("ceilings.py")


def cases(sizes: Sizes, arguments: argparse.Namespace) -> list[Case]:
    """The ceilings, then decode for each batch and context that fits, then prefill for each length."""
    found = [Case("ceilings", {"reps": _CEILING_REPS}, None, alone=_ceilings)]
    longest = max(*sizes.roofline_contexts, *sizes.prefill_tokens) + sizes.roofline_steps + 16
    flags = (f"--max-model-len={longest}", f"--max-num-seqs={max(sizes.roofline_batches)}")
    points = [
        (batch, context)
        for context in sizes.roofline_contexts
        for batch in sizes.roofline_batches
        if batch * (context + sizes.roofline_steps) <= sizes.roofline_tokens
    ]
    found += [
        Case(
            f"decode, batch {batch}, context {context}",
            {"batch": batch, "context": context, "steps": sizes.roofline_steps},
            partial(_decode, batch=batch, context=context, steps=sizes.roofline_steps),
            flags,
            ("--no-enable-prefix-caching",),
        )
        for batch, context in points
    ]
    return found + [
        Case(
            f"prefill, {length} tokens",
            {"tokens": length, "reps": sizes.reps},
            partial(_prefill, workload=EqualWorkload(length, 1, sizes.equal.max_token_id), reps=sizes.reps),
            flags,
            ("--no-enable-prefix-caching",),
        )
        for length in sizes.prefill_tokens
    ]


def decode_operations(shape: Shape, batch: int, context: float) -> float:
    """Of a step: two a weight and sequence, and four a head's value and token of context (scores, and their sum)."""
    attention = 4 * shape.num_layers * shape.num_heads * shape.head_dim * context
    return batch * (2 * shape.num_step_parameters + attention)


def prefill_operations(shape: Shape, num_tokens: int) -> float:
    """Of one prompt: the output head for its last token alone, attention to what is before each token."""
    head = shape.vocab_size * shape.hidden_size
    attention = 2 * shape.num_layers * shape.num_heads * shape.head_dim * num_tokens**2
    return 2.0 * num_tokens * (shape.num_step_parameters - head) + 2 * head + attention


def prefill_bytes(shape: Shape, num_tokens: int, bytes_per_value: int) -> float:
    """Weights once, and the prompt's keys and values written."""
    return (shape.num_step_parameters + num_tokens * shape.kv_values_per_token) * float(bytes_per_value)


def point(operations: float, num_bytes: float, device_ms: float) -> Row:
    """A point of the roofline."""
    seconds = device_ms / 1e3
    return {
        "operations_per_byte": operations / num_bytes,
        "gflops": operations / seconds / 1e9,
        "gb_s": num_bytes / seconds / 1e9,
        "device_ms": device_ms,
    }


def _decode(bench: Bench, batch: int, context: int, steps: int) -> Row:
    given = argparse.Namespace(
        model_shape=bench.arguments.model_shape,
        context=context,
        output_tokens=steps,
        bandwidth=1.0,
        bytes_per_value=_bytes_per_value(bench),
    )
    row = step_budget.measure(bench.server, bench.clients, batch, given)
    operations = decode_operations(bench.shape, batch, row["context"])
    figures = point(operations, row["MB"] * 1e6, row["device_us"] / 1e3)
    labels = {"phase": "decode", "batch": batch, "context": row["context"]}
    return rounded(labels | figures | {"step_us": row["step_us"], "idle_share": row["idle_share"]})


def _prefill(bench: Bench, workload: EqualWorkload, reps: int) -> Row:
    bench.clients.run(equal_prompts(workload, 1, 0))
    before = bench.server.load()
    for rep in range(1, reps + 1):
        bench.clients.run(equal_prompts(workload, 1, rep))
    steps = steps_between(before, bench.server.load())
    num_tokens = workload.num_prompt_tokens
    num_bytes = prefill_bytes(bench.shape, num_tokens, _bytes_per_value(bench))
    figures = point(
        prefill_operations(bench.shape, num_tokens), num_bytes, steps.device_ms * steps.num_steps / reps
    )
    return rounded(
        {"phase": "prefill", "batch": 1, "context": num_tokens, **figures, "steps": steps.num_steps / reps}
    )


def _bytes_per_value(bench: Bench) -> int:
    # The virtual executor has no type; its points are no figures.
    return BYTES_PER_VALUE.get(bench.server.describe().dtype, 2)


def _ceilings(arguments: argparse.Namespace) -> Row:
    command = [sys.executable, str(_CEILINGS), f"--device={arguments.device}", f"--reps={_CEILING_REPS}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise StudyError((done.stderr.strip().splitlines() or ["no ceilings"])[-1])
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return {"phase": "ceilings", **row}


if __name__ == "__main__":
    sys.exit(main(__doc__, NAME, cases))
