"""Train the demo checkpoint: a 3.7M-parameter Qwen3 network with its own small tokenizer.

One seeded run from scratch, in one stage of a fixed number of steps.  Worker processes make
tokenised batches of synthetic chats (see ``demo_tasks``); the main process trains on them and
writes a checkpoint folder that Hugging Face transformers loads.  Batches depend on the seed, the
number of workers and, through the help pages in them, Python's minor version.  The learning rate
depends on the step alone, unless ``--max-seconds`` turns out to be too short for the steps.
GPUs add in no fixed order, so two runs agree closely but not bit for bit.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import math
import multiprocessing as mp
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import demo_tasks as tasks
import eval_demo_model
import numpy as np
import torch
from demo_network import HEAD_DIM, HEADS, KV_HEADS, MAX_POSITIONS, NORM_EPS, ROPE_THETA, Qwen3
from demo_text import documentation_pages, learn_prefixes
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

BUCKETS = (48, 64, 80, 96, 128, 192, 256, 384, 512, 768, 1024, 1408)
PLAIN_SHARE = 0.01  # plain continuations among the chats
SPECIAL = (tasks.END_OF_TEXT, tasks.IM_START, tasks.IM_END)
Batch = tuple[NDArray[np.uint16], NDArray[np.bool_]]
Row = tuple[list[int], list[bool]]


def build_tokenizer(vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer that splits digits and adds nothing by itself."""
    prefixes = learn_prefixes(vocab_size - 256 - len(SPECIAL))
    merges = [("Ġ" + prefix[:-1], prefix[-1]) for prefix in prefixes]
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    return tokenizer


def encode(tokenizer: Tokenizer, samples: list[list[tuple[str, bool]]]) -> list[Row]:
    """Tokenise samples of (text, is trained on) pieces into ids and masks."""
    flat = [text for sample in samples for text, _ in sample]
    encoded = iter(tokenizer.encode_batch(flat, add_special_tokens=False))
    rows = []
    for sample in samples:
        ids: list[int] = []
        mask: list[bool] = []
        for _, trained in sample:
            piece = next(encoded).ids
            ids += piece
            mask += [trained] * len(piece)
        rows.append((ids, mask))
    return rows


def pad(rows: list[Row], length: int) -> Batch:
    """Right-pad rows to one length."""
    ids = np.zeros((len(rows), length), np.uint16)
    mask = np.zeros((len(rows), length), np.bool_)
    for index, (row_ids, row_mask) in enumerate(rows):
        ids[index, : len(row_ids)] = row_ids
        mask[index, : len(row_mask)] = row_mask
    return ids, mask


def make_batches(tokenizer: Tokenizer, seed: str, batch_tokens: int) -> Iterator[Batch]:
    """Yield batches of one length bucket each, forever."""
    rng = random.Random(seed)
    pages = documentation_pages(held_out=False)
    buckets: dict[int, list[Row]] = {size: [] for size in BUCKETS}
    while True:
        samples = [
            tasks.plain_text(rng)
            if rng.random() < PLAIN_SHARE
            else tasks.make_conversation(rng, pages).segments()
            for _ in range(256)
        ]
        for row in encode(tokenizer, samples):
            size = next((size for size in BUCKETS if len(row[0]) <= size), None)
            if size is None:
                continue
            buckets[size].append(row)
            if len(buckets[size]) == max(1, batch_tokens // size):
                yield pad(buckets[size], size)
                buckets[size] = []


def work(tokenizer_json: str, seed: str, batch_tokens: int, queue: mp.Queue[Batch]) -> None:
    """Fill one queue with batches until killed."""
    for batch in make_batches(Tokenizer.from_str(tokenizer_json), seed, batch_tokens):
        queue.put(batch)


def start_workers(tokenizer: Tokenizer, args: argparse.Namespace) -> Iterator[Batch]:
    """Start the worker processes and return their batches in a fixed order."""
    context = mp.get_context("fork")
    queues: list[mp.Queue[Batch]] = []
    for index in range(args.workers):
        queue: mp.Queue[Batch] = context.Queue(maxsize=32)
        seed = f"{args.seed}-{index}"
        arguments = (tokenizer.to_str(), seed, args.batch_tokens, queue)
        context.Process(target=work, args=arguments, daemon=True).start()
        queues.append(queue)
    return (queue.get() for queue in itertools.cycle(queues))


def to_device(batch: Batch, device: str) -> tuple[Tensor, Tensor]:
    """Copy a batch to the device."""
    ids, mask = (torch.from_numpy(part).to(device, non_blocking=True) for part in batch)
    return ids.long(), mask


def learning_rate(progress: float, step: int, peak: float) -> float:
    """Warm up over 300 steps, then fall along a cosine to zero."""
    return peak * min(1.0, (step + 1) / 300) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(model: nn.Module, peak: float) -> torch.optim.AdamW:
    """Return AdamW that decays matrices only."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)


def train(model: Qwen3, batches: Iterator[Batch], args: argparse.Namespace) -> dict[str, float]:
    """Train until the steps, or else the seconds, run out; return run figures."""
    optimizer = make_optimizer(model, args.peak_lr)
    start, tokens, step, progress, hurried = time.monotonic(), 0, 0, 0.0, 0
    while progress < 1:
        ids, mask = to_device(next(batches), args.device)
        loss = model.loss(ids, mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, step, args.peak_lr)
        optimizer.step()
        tokens, step = tokens + ids.numel(), step + 1
        if step == 1:
            start = time.monotonic()  # the first step loads kernels
        elapsed = time.monotonic() - start
        progress = max(step / args.steps, elapsed / args.max_seconds)
        hurried += progress > step / args.steps
        if step % args.log_every == 0:
            rate = tokens / elapsed
            print(f"step {step} loss {loss.item():.5f} done {progress:.3f} {rate:.3g} tok/s")
        if step % args.check_every == 0 and progress < 1:
            check(model, args)
    seconds = round(time.monotonic() - start, 1)
    return {"steps": step, "tokens": tokens, "seconds": seconds, "hurried_steps": hurried}


@torch.no_grad()
def check(model: Qwen3, args: argparse.Namespace) -> None:
    """Print the share of held-out answers whose every token is the most likely one."""
    right: collections.Counter[str] = collections.Counter()
    total: collections.Counter[str] = collections.Counter()
    sets = {system: tasks.evaluation_set(240, 1, system) for system in ("none", "long")}
    sets["free"] = tasks.free_copy_set()
    for label, chats in sets.items():
        for chat in (chats[begin : begin + 60] for begin in range(0, len(chats), 60)):
            rows = encode(args.tokenizer, [item.segments() for item in chat])
            batch = pad(rows, max(len(ids) for ids, _ in rows))
            ids, mask = to_device(batch, args.device)
            wrong = (model(ids[:, :-1]).argmax(-1) != ids[:, 1:]) & mask[:, 1:]
            for item, good in zip(chat, (~wrong.any(1)).tolist(), strict=True):
                right[f"{item.turns[0].task}/{label}"] += good
                total[f"{item.turns[0].task}/{label}"] += 1
    print("  ".join(f"{name} {right[name] / total[name]:.3f}" for name in sorted(total)))


def config(args: argparse.Namespace) -> dict[str, object]:
    """Return config.json, readable by transformers 4.51 and later."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": args.vocab,
        "hidden_size": args.hidden,
        "intermediate_size": args.inner,
        "num_hidden_layers": args.layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": args.layers,
        "layer_types": ["full_attention"] * args.layers,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": args.tokenizer.token_to_id(tasks.IM_END),
        "pad_token_id": args.tokenizer.token_to_id(tasks.END_OF_TEXT),
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def export(model: Qwen3, args: argparse.Namespace) -> None:
    """Write the checkpoint folder."""
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().bfloat16().cpu() for name, value in model.state_dict().items()}
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    args.tokenizer.save(str(out / "tokenizer.json"))
    (out / "chat_template.jinja").write_text(tasks.CHAT_TEMPLATE)
    stops = [args.tokenizer.token_to_id(text) for text in (tasks.IM_END, tasks.END_OF_TEXT)]
    contents = {
        "config.json": config(args),
        "generation_config.json": {
            "do_sample": False,
            "eos_token_id": stops,
            "pad_token_id": stops[1],
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": MAX_POSITIONS,
            "clean_up_tokenization_spaces": False,
            "eos_token": tasks.IM_END,
            "pad_token": tasks.END_OF_TEXT,
            "additional_special_tokens": list(SPECIAL[1:]),
            "chat_template": tasks.CHAT_TEMPLATE,
        },
    }
    for name, content in contents.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--steps", type=int, default=13500)
    parser.add_argument("--max-seconds", type=float, default=math.inf, help="anneal sooner to end by then")
    parser.add_argument("--evaluate", nargs="*", default=[], help="dtypes to evaluate in afterwards")
    parser.add_argument("--device", default="cuda", help="a torch device")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=14, help="data processes")
    parser.add_argument("--batch-tokens", type=int, default=49152, help="tokens in a batch")
    parser.add_argument("--peak-lr", type=float, default=2e-3)
    parser.add_argument("--log-every", type=int, default=250)
    parser.add_argument("--check-every", type=int, default=4500)
    parser.add_argument("--vocab", type=int, default=768)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--inner", type=int, default=512)
    return parser.parse_args()


def main() -> None:
    """Train, export and evaluate; print one JSON object for the run and one for the evaluation."""
    args = parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.manual_seed(args.seed)
    args.tokenizer = build_tokenizer(args.vocab)
    batches = start_workers(args.tokenizer, args)
    model = Qwen3(args.vocab, args.hidden, args.layers, args.inner)
    model.to(args.device)
    figures = train(model, batches, args)
    check(model, args)
    export(model, args)
    parameters = sum(p.numel() for p in model.parameters())
    print(json.dumps({"parameters": parameters, "torch": torch.__version__, **figures}))
    if args.evaluate:
        folder, dtypes = str(args.out), args.evaluate
        flags = ["--model", folder, "--device", args.device, "--batch-size", "256"]
        eval_demo_model.main([*flags, "--dtypes", *dtypes])


if __name__ == "__main__":
    main()
