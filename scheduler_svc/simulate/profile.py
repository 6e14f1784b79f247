"""Executor profiles: what a step costs, and how large the executor is. A JSON object:

    fixed_ms              each forward pass                                                          required
    token_us              each token computed                                                        required
    kv_token_ns           each KV position that attention reads: a row reads its own once a pass     required
    boundary_latency_ms   from scheduler to executor, and the same back                              default 0
    num_kv_blocks, block_size, max_num_seqs, max_model_len, max_num_batched_tokens,
    max_num_decode_steps                                                                             optional
    source                where the figures come from, for people                                    default ""

The sizes are those of `nanoserve-executor`; the flags of the same names come before them.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from executor_svc.virtual import CostModel
from scheduler_svc.simulate.public_traces import read_text
from scheduler_svc.simulate.trace import FieldReader

SIZES = (
    "num_kv_blocks",
    "block_size",
    "max_num_seqs",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_decode_steps",
)


@dataclass(frozen=True, slots=True)
class ExecutorProfile:
    """See the module's docstring; a size that is None is not said."""

    fixed_ms: float
    token_us: float
    kv_token_ns: float
    boundary_latency_ms: float = 0.0
    num_kv_blocks: int | None = None
    block_size: int | None = None
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_decode_steps: int | None = None
    source: str = ""

    @property
    def cost(self) -> CostModel:
        """The virtual executor's cost model."""
        return CostModel(self.fixed_ms * 1e6, self.token_us * 1e3, self.kv_token_ns)


def read_profile(path: Path) -> ExecutorProfile:
    """Reads a profile; TraceError names the file and the field at fault."""
    fields = FieldReader.of_line(str(path), read_text(path))
    sizes = {name: fields.integer(name, 1) for name in SIZES if name in fields.values}
    profile = ExecutorProfile(
        fixed_ms=fields.number("fixed_ms"),
        token_us=fields.number("token_us"),
        kv_token_ns=fields.number("kv_token_ns"),
        boundary_latency_ms=fields.number("boundary_latency_ms", default=0.0),
        source=fields.string("source", default=""),
        **sizes,
    )
    fields.finish()
    return profile


def write_profile(path: Path, profile: ExecutorProfile) -> None:
    """Writes a profile that `read_profile` reads, without the sizes that are None."""
    fields = {name: value for name, value in asdict(profile).items() if value is not None}
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
