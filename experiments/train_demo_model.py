"""Train the demo checkpoint: a 3.7M-parameter Qwen3 network with its own small tokenizer.

One seeded, time-bounded run.  Worker processes make tokenised batches of synthetic chats
(see ``demo_tasks``); the main process trains on them and writes a checkpoint folder that
Hugging Face transformers loads.  The forward pass rounds every weight to bfloat16, so the
stored bfloat16 weights are exactly those that were trained.  Batches depend only on the seed;
the learning rate follows the elapsed time, so two runs agree closely but not bit for bit.
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
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

BUCKETS = (48, 64, 80, 96, 128, 192, 256, 384, 512, 768, 1024, 1408)
HEAD_DIM, HEADS, KV_HEADS, NORM_EPS, ROPE_THETA, MAX_POSITIONS = 64, 4, 2, 1e-6, 10000.0, 2048
PLAIN_SHARE = 0.01  # plain continuations among the chats
SPECIAL = (tasks.END_OF_TEXT, tasks.IM_START, tasks.IM_END)
Batch = tuple[NDArray[np.uint16], NDArray[np.bool_]]
Row = tuple[list[int], list[bool]]


def build_tokenizer(vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer that splits digits and adds nothing by itself."""
    prefixes = tasks.learn_prefixes(vocab_size - 256 - len(SPECIAL))
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
    pages = tasks.documentation_pages(held_out=False)
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


class Linear(nn.Module):
    """A bias-free linear map whose weight is rounded to the input's type."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Norm(nn.Module):
    """Root-mean-square normalisation over the last dimension."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), NORM_EPS)


class Attention(nn.Module):
    """Causal grouped-query attention with normalised queries and keys."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.q_proj = Linear(hidden, HEADS * HEAD_DIM)
        self.k_proj = Linear(hidden, KV_HEADS * HEAD_DIM)
        self.v_proj = Linear(hidden, KV_HEADS * HEAD_DIM)
        self.o_proj = Linear(HEADS * HEAD_DIM, hidden)
        self.q_norm, self.k_norm = Norm(HEAD_DIM), Norm(HEAD_DIM)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def rotate(y: Tensor) -> Tensor:
            first, second = y.chunk(2, dim=-1)
            return y * cos + torch.cat((-second, first), dim=-1) * sin

        shape = (*x.shape[:2], -1, HEAD_DIM)
        q = rotate(self.q_norm(self.q_proj(x).view(shape)).transpose(1, 2))
        k = rotate(self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2))
        v = self.v_proj(x).view(shape).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(*x.shape[:2], HEADS * HEAD_DIM))


class Mlp(nn.Module):
    """The gated feed-forward network."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = Linear(hidden, inner), Linear(hidden, inner)
        self.down_proj = Linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(hidden), Norm(hidden)
        self.self_attn, self.mlp = Attention(hidden), Mlp(hidden, inner)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3(nn.Module):
    """The network, with the parameter names of Qwen3ForCausalLM (tied embeddings)."""

    def __init__(self, vocab: int, hidden: int, layers: int, inner: int) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(vocab, hidden)
        nn.init.normal_(self.model.embed_tokens.weight, std=0.05)
        self.model.layers = nn.ModuleList(Layer(hidden, inner) for _ in range(layers))
        self.model.norm = Norm(hidden)
        for layer in self.model.layers:
            layer.self_attn.o_proj.weight.data *= (2 * layers) ** -0.5
            layer.mlp.down_proj.weight.data *= (2 * layers) ** -0.5
        inverse = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        angles = torch.outer(torch.arange(MAX_POSITIONS), inverse).repeat(1, 2)
        self.register_buffer("cos", angles.cos().bfloat16(), persistent=False)
        self.register_buffer("sin", angles.sin().bfloat16(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        table = self.model.embed_tokens.weight.bfloat16()
        x = F.embedding(ids, table)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.model.norm(x), table)

    def loss(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the mean cross-entropy of trained tokens and a small pull of logits to 0."""
        logits = self(ids[:, :-1]).float()
        keep = mask[:, 1:].float()
        norm = logits.logsumexp(-1)
        chosen = logits.gather(-1, ids[:, 1:, None]).squeeze(-1)
        return ((norm - chosen + 1e-4 * norm**2) * keep).sum() / keep.sum()


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
    """Train until the time or the steps run out; return run figures."""
    optimizer = make_optimizer(model, args.peak_lr)
    start, tokens, step = time.monotonic(), 0, 0
    while step < args.max_steps:
        ids, mask = to_device(next(batches), args.device)
        loss = model.loss(ids, mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        progress = (time.monotonic() - start) / args.max_seconds
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, step, args.peak_lr)
        optimizer.step()
        tokens, step = tokens + ids.numel(), step + 1
        if step % args.log_every == 0:
            rate = tokens / (time.monotonic() - start)
            print(f"step {step} loss {loss.item():.5f} done {progress:.3f} {rate:.3g} tok/s")
        if step % args.check_every == 0:
            check(model, args)
        if progress >= 1:
            break
    return {"steps": step, "tokens": tokens, "train_seconds": round(time.monotonic() - start, 1)}


@torch.no_grad()
def check(model: Qwen3, args: argparse.Namespace) -> None:
    """Print the share of held-out answers whose every token is the most likely one."""
    right: collections.Counter[str] = collections.Counter()
    total: collections.Counter[str] = collections.Counter()
    for system in ("none", "long"):
        chats = tasks.evaluation_set(240, 1, system)
        for chat in (chats[begin : begin + 60] for begin in range(0, len(chats), 60)):
            rows = encode(args.tokenizer, [item.segments() for item in chat])
            batch = pad(rows, max(len(ids) for ids, _ in rows))
            ids, mask = to_device(batch, args.device)
            wrong = (model(ids[:, :-1]).argmax(-1) != ids[:, 1:]) & mask[:, 1:]
            for item, good in zip(chat, (~wrong.any(1)).tolist(), strict=True):
                right[f"{item.turns[0].task}/{system}"] += good
                total[f"{item.turns[0].task}/{system}"] += 1
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
    parser.add_argument("--init-from", type=Path, help="continue from this checkpoint folder")
    parser.add_argument("--max-seconds", type=float, default=330, help="training time")
    parser.add_argument("--max-steps", type=int, default=10**9, help="stop earlier than that")
    parser.add_argument("--device", default="cuda", help="a torch device")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=14, help="data processes")
    parser.add_argument("--batch-tokens", type=int, default=49152, help="tokens in a batch")
    parser.add_argument("--peak-lr", type=float, default=2e-3)
    parser.add_argument("--log-every", type=int, default=250)
    parser.add_argument("--check-every", type=int, default=1500)
    parser.add_argument("--vocab", type=int, default=768)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--inner", type=int, default=512)
    return parser.parse_args()


def main() -> None:
    """Train and export; the last line is one JSON object."""
    args = parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.manual_seed(args.seed)
    args.tokenizer = build_tokenizer(args.vocab)
    batches = start_workers(args.tokenizer, args)
    model = Qwen3(args.vocab, args.hidden, args.layers, args.inner)
    if args.init_from:
        model.load_state_dict(load_file(args.init_from / "model.safetensors"))
    model.to(args.device)
    figures = train(model, batches, args)
    check(model, args)
    export(model, args)
    parameters = sum(p.numel() for p in model.parameters())
    print(json.dumps({"parameters": parameters, "torch": torch.__version__, **figures}))


if __name__ == "__main__":
    main()
