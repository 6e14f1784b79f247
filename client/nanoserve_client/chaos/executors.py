"""The executors that faults are tried on: the virtual one, and real ones with the model that is served."""

from dataclasses import dataclass

from nanoserve_client.chaos.verdicts import Rules


@dataclass(frozen=True, slots=True)
class ExecutorKind:
    """How an executor is started, what is asked of it, and what counts as equal."""

    name: str
    flags: tuple[str, ...]
    num_cases: int
    max_tokens: tuple[int, int]
    """Output tokens of a request, from and to."""
    rules: Rules
    """What counts as equal."""
    start_seconds: float
    """How long a start may take, about: whoever waits is as patient."""
    without: tuple[str, ...] = ()
    """Kinds of cases that are left out."""
    reference_flags: tuple[str, ...] = ()
    """More flags of the executor that is not disturbed, which change no token."""


# Design rule 5: candidates this close may change places where batching does.
_FLOAT32 = Rules(max_gap=1e-4, logprob_tolerance=1e-3)
# Between 16 and 32 a bfloat16 is an eighth from the next, and rounding adds up over the layers.
_BFLOAT16 = Rules(max_gap=0.5, logprob_tolerance=0.5)
# KV caches that are too small for all rows at once, so that sequences are preempted.
_SIZES = ("--max-num-seqs=16", "--num-kv-blocks=161", "--max-model-len=512")
EXECUTORS = {
    kind.name: kind
    for kind in (
        ExecutorKind(
            "virtual",
            (*_SIZES, "--virtual", "--virtual-poison", "--virtual-step-ms=3"),
            num_cases=40,
            max_tokens=(48, 128),
            rules=Rules(),
            start_seconds=10.0,
            reference_flags=("--virtual-step-ms=0.1",),
        ),
        ExecutorKind(
            "cpu",
            (*_SIZES, "--device=cpu", "--dtype=float32", "--verify"),
            num_cases=30,
            max_tokens=(24, 64),
            rules=_FLOAT32,
            start_seconds=30.0,
        ),
        *(
            ExecutorKind(
                name,
                ("--max-num-seqs=64", "--num-kv-blocks=513", "--max-model-len=1024", "--device=cuda", dtype),
                num_cases=40,
                max_tokens=(64, 256),
                rules=rules,
                start_seconds=120.0,
                without=("penalties", "filtered"),  # whose gaps cannot be told from the outside
            )
            for name, dtype, rules in (
                ("cuda", "--dtype=bfloat16", _BFLOAT16),
                ("cuda-float32", "--dtype=float32", _FLOAT32),
            )
        ),
    )
}
