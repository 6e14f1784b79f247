"""What the decoder layers of one row's decode step take on the GPU: in one resident launch, and launched one by one.

The layers of a model shape with random weights, without embedding, output head and sampling, in CUDA graphs, over
random keys and values. Prints a table, then one JSON line, last.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from benchmarks.report import print_json, print_table
from benchmarks.shapes import SHAPES, write_model
from executor_svc.attention import AttentionContext
from executor_svc.backends import make_backend
from executor_svc.kv_cache import KVCache
from executor_svc.models.config import read_model_config
from executor_svc.models.qwen import QwenForCausalLM
from executor_svc.weights import dummy_weights

BLOCK_SIZE, MAX_CONTEXT = 16, 8192 + 16
Row = dict[str, object]


class Step:
    """A decode step of a row of a model."""

    def __init__(self, shape: str) -> None:
        with TemporaryDirectory() as folder:
            write_model(SHAPES[shape], Path(folder))
            config = read_model_config(Path(folder))
        self.device = torch.device("cuda")
        self.model = QwenForCausalLM(config, torch.bfloat16, self.device, MAX_CONTEXT)
        dummy_weights(self.model, 0)
        width = MAX_CONTEXT // BLOCK_SIZE
        cache = KVCache(config, width + 1, BLOCK_SIZE, torch.bfloat16, self.device)
        for tensor in (*cache.keys, *cache.values):
            tensor.normal_()
        self.table = torch.randperm(width, dtype=torch.int32, device=self.device)[None] + 1
        self.chain = make_backend("triton", cache, resident_decode=False)
        self.resident = make_backend("triton", cache)

    def set_context(self, context: int) -> None:
        """The row's own token is the last of so many."""
        lengths = torch.full((1,), context - 1, dtype=torch.int32, device=self.device)
        self.x, self.rotation = self.model.embed_tokens.weight[:1], self.model.rotary(lengths)
        nothing = torch.zeros(1, dtype=torch.int32, device=self.device)
        block, offset = divmod(context - 1, BLOCK_SIZE)
        self.context = AttentionContext(
            slot_mapping=self.table[0, block : block + 1].long() * BLOCK_SIZE + offset,
            block_tables=self.table,
            lengths=lengths,
            decode_rows=nothing,
            prefill_rows=nothing[:0],
            prefill_starts=nothing,
        )

    def in_one_launch(self) -> torch.Tensor:
        """The layers' output, [1, hidden_size]; from the same input each time."""
        output, residual = self.model.run_layers(self.x, self.rotation, self.resident, self.context)
        assert residual is None, "the layers were launched one by one"
        return output

    def one_by_one(self) -> torch.Tensor:
        """The same."""
        x, residual = self.model.run_layers(self.x, self.rotation, self.chain, self.context)
        assert residual is not None
        return x + residual


def microseconds(compute: Callable[[], torch.Tensor], replays: int = 20) -> tuple[float, torch.Tensor]:
    """Median time of a replay of a graph of it, and what it computed."""
    compute()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = compute()
    times = []
    for _ in range(replays):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return median(times), output.float()


def measure(step: Step, context: int) -> Row:
    """Both ways."""
    step.set_context(context)
    chain, expected = microseconds(step.one_by_one)
    resident, output = microseconds(step.in_one_launch)
    return {
        "context": context,
        "one by one, us": round(chain, 1),
        "resident, us": round(resident, 1),
        "ratio": round(resident / chain, 3),
        "difference": round(((output - expected).norm() / expected.norm()).item(), 5),
    }


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-shape", choices=tuple(SHAPES), default="0.6b")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024, 8192], help="up to 8208")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/resident.py needs a CUDA device", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    with torch.inference_mode():
        step = Step(arguments.model_shape)
        rows = [measure(step, context) for context in arguments.contexts]
    print_table(rows, list(rows[0]))
    print_json(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
