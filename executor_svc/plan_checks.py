"""What a plan's values must be, whatever the rows hold: ranges of ids, lengths and sampling parameters."""

import math

import numpy as np

from executor_svc.plan import ErrorCode, RowSampling, StartRow, StepFailure
from executor_svc.runner import RunnerLimits
from nanoserve.arrays import Int32Array

_MAX_ALTERNATIVES = 20
# Far beyond what clients may ask for, and so small that no number of penalties makes a float32 overflow.
MAX_PENALTY = 1e4


def invalid(field: str, description: str, rows: tuple[int, ...] = ()) -> StepFailure:
    """The failure of a plan that breaks the contract at `field`."""
    return StepFailure(ErrorCode.INVALID_ARGUMENT, description, field, rows)


def first_true(flags: np.ndarray) -> int | None:
    """Index of the first true element, None where there is none."""
    return int(flags.argmax()) if np.count_nonzero(flags) else None


def check_ids(field: str, ids: Int32Array, low: int, high: int, rows: tuple[int, ...] = ()) -> None:
    """Raises where an id is not in [low, high); `rows` are those then at fault."""
    # Unsigned, what is below `low` wraps far beyond `high`: one comparison, on the path of every step.
    if (bad := first_true((ids - low).astype(np.uint32) >= high - low)) is not None:
        raise invalid(f"{field}[{bad}]", f"{ids[bad]} is not in [{low}, {high})", rows)


def check_once(field: str, ids: Int32Array, rows: tuple[int, ...] = ()) -> None:
    """Raises where an id is listed twice; `rows` are those then at fault."""
    if len(ids) < 2:
        return
    ordered = np.sort(ids)
    if (bad := first_true(ordered[1:] == ordered[:-1])) is not None:
        repeated = ordered[bad]
        second = int(np.flatnonzero(ids == repeated)[1])
        raise invalid(f"{field}[{second}]", f"{repeated} is listed twice", rows)


def check_start(field: str, start: StartRow, limits: RunnerLimits) -> None:
    """Raises where a start breaks a rule that does not depend on other rows."""
    num_known, rows = len(start.token_ids), (start.row,)
    if not 0 <= start.row < limits.max_num_seqs:
        raise invalid(f"{field}.row", f"{start.row} is not in [0, {limits.max_num_seqs})")
    if not 1 <= num_known <= limits.max_model_len:
        raise invalid(f"{field}.token_ids", f"{num_known} tokens, not 1 to {limits.max_model_len}", rows)
    check_ids(f"{field}.token_ids", start.token_ids, 0, limits.vocab_size, rows)
    if not 1 <= start.num_prompt_tokens <= num_known:
        raise invalid(
            f"{field}.num_prompt_tokens", f"{start.num_prompt_tokens} is not in [1, {num_known}]", rows
        )
    num_computed = start.num_computed_tokens
    if not 0 <= num_computed < num_known or num_computed % limits.block_size:
        what = f"{num_computed} is not a multiple of {limits.block_size} in [0, {num_known})"
        raise invalid(f"{field}.num_computed_tokens", what, rows)
    check_table(field, start, limits)
    check_sampling(f"{field}.sampling", start.sampling, limits, rows)
    if start.sampling.prompt_logprobs is not None and num_computed:
        raise invalid(f"{field}.sampling.prompt_logprobs", "needs num_computed_tokens 0", rows)


def check_table(field: str, start: StartRow, limits: RunnerLimits) -> None:
    """Raises where a start's block table is too short, too long, or names a block wrongly or twice."""
    field, table, rows = f"{field}.block_table", start.block_table, (start.row,)
    most = max_blocks_per_row(limits)
    fewest = start.num_computed_tokens // limits.block_size
    if not fewest <= len(table) <= most:
        raise invalid(field, f"{len(table)} blocks, not {fewest} to {most}", rows)
    check_ids(field, table, 1, limits.num_blocks, rows)
    check_once(field, table, rows)


def max_blocks_per_row(limits: RunnerLimits) -> int:
    """How many blocks the longest sequence needs."""
    return -(-limits.max_model_len // limits.block_size)


def check_sampling(field: str, sampling: RowSampling, limits: RunnerLimits, rows: tuple[int, ...]) -> None:
    """Raises, blaming `rows`, where a sampling parameter is out of the range that the contract gives."""
    most_tokens, vocab_size = limits.max_model_len, limits.vocab_size
    penalty_rule = f"in [{-MAX_PENALTY:g}, {MAX_PENALTY:g}]"
    ranges = (
        ("temperature", 0 <= sampling.temperature < math.inf, "finite and at least 0"),
        ("top_k", sampling.top_k >= 0, "at least 0"),
        ("top_p", 0 < sampling.top_p <= 1, "in (0, 1]"),
        ("min_p", 0 <= sampling.min_p <= 1, "in [0, 1]"),
        ("repetition_penalty", 0 < sampling.repetition_penalty < math.inf, "finite and above 0"),
        ("frequency_penalty", abs(sampling.frequency_penalty) <= MAX_PENALTY, penalty_rule),
        ("presence_penalty", abs(sampling.presence_penalty) <= MAX_PENALTY, penalty_rule),
        ("min_tokens", 0 <= sampling.min_tokens <= most_tokens, f"in [0, {most_tokens}]"),
    )
    for name, holds, rule in ranges:
        if not holds:
            raise invalid(f"{field}.{name}", f"must be {rule}, got {getattr(sampling, name)}", rows)
    most = min(_MAX_ALTERNATIVES, vocab_size)
    for name in ("logprobs", "prompt_logprobs"):
        count = getattr(sampling, name)
        if count is not None and not 0 <= count <= most:
            raise invalid(f"{field}.{name}", f"must be in [0, {most}], got {count}", rows)
    check_ids(f"{field}.end_token_ids", sampling.end_token_ids, 0, vocab_size, rows)
    _check_logit_bias(field, sampling, vocab_size, rows)


def _check_logit_bias(field: str, sampling: RowSampling, vocab_size: int, rows: tuple[int, ...]) -> None:
    ids, bias = sampling.logit_bias_ids, sampling.logit_bias
    if len(ids) != len(bias):
        raise invalid(f"{field}.logit_bias", f"{len(bias)} addends for {len(ids)} ids", rows)
    check_ids(f"{field}.logit_bias_ids", ids, 0, vocab_size, rows)
    check_once(f"{field}.logit_bias_ids", ids, rows)
    if (bad := first_true(~np.isfinite(bias))) is not None:
        raise invalid(f"{field}.logit_bias[{bad}]", f"must be finite, got {bias[bad]}", rows)
