"""transformers' `generate`, one request after the other: the baseline that is none of our code, in a process of its
own.

Reads requests (JSON) from stdin, answers the first one as a warm-up, then all, and prints one JSON line. The
experiments call it; by hand: `python experiments/naive_transformers.py --model DIR --device cuda --no-kv-cache <
requests.json`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.report import rounded
from benchmarks.shapes import SHAPES, write_model
from benchmarks.workloads import TEMPERATURE, Prompt
from experiments.store import Row, StudyError
from nanoserve.checkpoint import demo_checkpoint

_SECONDS = 480.0


def in_a_process(
    arguments: argparse.Namespace, prompts: Sequence[Prompt], *, use_cache: bool, num_runs: int
) -> Row:
    """The row of these prompts for the command line's model and device; StudyError with the end of what went wrong."""
    with TemporaryDirectory() as folder:
        if arguments.model_shape in SHAPES:
            write_model(SHAPES[arguments.model_shape], Path(folder))
            flags = [f"--model={folder}", "--load-format=dummy"]
        else:
            flags = [f"--model={demo_checkpoint()}"]
        flags += [
            f"--device={arguments.device}",
            f"--runs={num_runs}",
            *([] if use_cache else ["--no-kv-cache"]),
        ]
        done = subprocess.run(
            [sys.executable, __file__, *flags],
            input=json.dumps([asdict(prompt) for prompt in prompts]),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    if done.returncode:
        raise StudyError((done.stderr.strip().splitlines() or ["transformers failed"])[-1])
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return rounded(row)


def measure(model: Any, prompts: Sequence[Row], device: str, use_cache: bool, num_runs: int) -> Row:
    """Generates for each prompt in turn, sampling as the services do; the run in the middle counts."""
    import torch

    def generate(prompt: Row) -> None:
        ids, count = torch.tensor([prompt["token_ids"]], device=device), prompt["num_output_tokens"]
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            use_cache=use_cache,
            pad_token_id=0,
        )
        output.cpu()  # waits for the device

    torch.manual_seed(0)
    generate(prompts[0])
    times = []
    for _ in range(num_runs):
        begun = time.monotonic()
        for prompt in prompts:
            generate(prompt)
        times.append(time.monotonic() - begun)
    seconds = sorted(times)[num_runs // 2]
    output_tokens = sum(prompt["num_output_tokens"] for prompt in prompts)
    return {
        "requests": len(prompts),
        "prompt_tokens": sum(len(prompt["token_ids"]) for prompt in prompts),
        "output_tokens": output_tokens,
        "seconds": seconds,
        "tok_s": output_tokens / seconds,
        "tok_s_all": [round(output_tokens / each, 4) for each in times],
    }


def _load(folder: str, load_format: str, device: str) -> Any:
    """The model, in the types that the executor takes: bfloat16 on a GPU, float32 on a CPU."""
    import torch
    import transformers

    factory: Any = transformers.AutoModelForCausalLM
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if load_format == "auto":
        return factory.from_pretrained(folder, dtype=dtype).to(device).eval()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        return factory.from_config(transformers.AutoConfig.from_pretrained(folder)).eval()


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="DIR")
    parser.add_argument("--load-format", choices=("auto", "dummy"), default="auto")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--no-kv-cache", action="store_true", help="compute every token from the whole sequence"
    )
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="equal runs (default: %(default)s)")
    arguments = parser.parse_args()
    prompts = json.load(sys.stdin)
    import transformers

    model = _load(arguments.model, arguments.load_format, arguments.device)
    row = measure(model, prompts, arguments.device, not arguments.no_kv_cache, arguments.runs)
    print(json.dumps({"transformers": transformers.__version__, **row}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
