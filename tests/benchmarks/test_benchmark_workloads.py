"""The workloads are those that the peers' figures were measured with."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import targets
from benchmarks.load import shares
from benchmarks.workloads import (
    W1,
    W2,
    W3,
    W5,
    W6,
    EqualWorkload,
    Prompt,
    ThroughputWorkload,
    equal_prompts,
    lognormal_prompts,
    throughput_prompts,
)


def peer_rows(test: str, num_requests: int) -> Iterator[dict[str, Any]]:
    for line in Path(targets.PEERS).read_text().splitlines():
        row = json.loads(line)
        if row["test"] == test and row.get("requests") == num_requests:
            yield row


@pytest.mark.parametrize("workload", [W1, W2])
@pytest.mark.parametrize("run", [0, 1])
def test_totals_are_those_of_the_peers_rows(workload: ThroughputWorkload, run: int) -> None:
    prompts = throughput_prompts(workload, run)
    totals = (sum(len(p.token_ids) for p in prompts), sum(p.num_output_tokens for p in prompts))
    rows = list(peer_rows("throughput", workload.num_requests))
    assert rows
    assert {(row["prompt_tokens"], row["output_tokens"]) for row in rows} == {totals}


def test_a_run_repeats_and_another_has_the_same_lengths_with_fresh_ids() -> None:
    first, again, other = (throughput_prompts(W2, run) for run in (0, 0, 1))
    assert first == again
    assert [len(p.token_ids) for p in first] == [len(p.token_ids) for p in other]
    assert [p.num_output_tokens for p in first] == [p.num_output_tokens for p in other]
    assert not {p.token_ids[:16] for p in first} & {p.token_ids[:16] for p in other}


@pytest.mark.parametrize("workload", [W3, W5])
def test_no_two_equal_requests_share_a_block_in_any_run(workload: EqualWorkload) -> None:
    prompts = [prompt for run in range(3) for prompt in equal_prompts(workload, 64, run)]
    assert len({prompt.token_ids[:16] for prompt in prompts}) == len(prompts)
    assert {len(prompt.token_ids) for prompt in prompts} == {workload.num_prompt_tokens}


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 8))
def test_clients_share_slots_evenly_and_prompts_in_proportion(
    num_prompts: int, num_slots: int, num_clients: int
) -> None:
    num_clients = min(num_clients, num_slots)
    prompts = [Prompt((index,), 1) for index in range(num_prompts)]
    parts = shares(prompts, num_slots, num_clients)
    assert sorted(p.token_ids for _, own in parts for p in own) == [p.token_ids for p in prompts]
    assert sum(slots for slots, _ in parts) == num_slots
    assert max(slots for slots, _ in parts) - min(slots for slots, _ in parts) <= 1
    assert all(abs(len(own) * num_slots - slots * num_prompts) <= slots * num_slots for slots, own in parts)


def test_ids_stay_in_range() -> None:
    workload = ThroughputWorkload(8, 5, 9, max_token_id=3)
    ids = [token for prompt in throughput_prompts(workload, 2) for token in prompt.token_ids]
    assert set(ids) == {0, 1, 2, 3}


def test_w6_has_the_same_skewed_lengths_in_every_run_and_fresh_ids() -> None:
    first, again, other = (lognormal_prompts(W6, run) for run in (0, 0, 1))
    lengths = sorted(prompt.num_output_tokens for prompt in first)
    assert first == again
    assert [p.num_output_tokens for p in first] == [p.num_output_tokens for p in other]
    assert not {p.token_ids[:16] for p in first} & {p.token_ids[:16] for p in other}
    assert {len(prompt.token_ids) for prompt in first} == {128}
    assert (len(lengths), lengths[0], lengths[-1]) == (512, 16, 1024)
    # Of lognormal(ln 128, 1): half over 128, about a sixth over 128 e = 348.
    assert 110 < lengths[256] < 146
    assert 0.12 < sum(length > 348 for length in lengths) / 512 < 0.2


def test_requests_share_just_the_prefixes_that_a_workload_has() -> None:
    prompts = lognormal_prompts(replace(W6, num_requests=9, num_prefixes=3, num_prefix_tokens=100))
    assert {len(prompt.token_ids) for prompt in prompts} == {128}
    assert len({prompt.token_ids[:100] for prompt in prompts}) == 3
    assert prompts[1].token_ids[:100] == prompts[4].token_ids[:100]
    assert len({prompt.token_ids[100:] for prompt in prompts}) == 9
