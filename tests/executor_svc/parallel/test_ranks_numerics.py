"""Logits in bfloat16 of ranks that share a model are about as near to float32 as those of one rank."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from rank_processes import run_ranks
from small_models import QWEN3

from executor_svc.attention import AttentionContext
from executor_svc.backends import make_backend
from executor_svc.kv_cache import KVCache
from executor_svc.models.config import ModelConfig
from executor_svc.models.qwen import QwenForCausalLM
from executor_svc.parallel.peers import PeerMemory
from executor_svc.parallel.place import Place
from executor_svc.parallel.ranks import Ranks
from executor_svc.parallel.shard import Shard
from executor_svc.weights import dummy_weights

NUM_TOKENS, BLOCK_SIZE = 96, 16
MOST_OF_ONE_RANK_S_DISTANCE = 1.25
NUM_BLOCKS = NUM_TOKENS // BLOCK_SIZE + 1
QWEN3_14B = replace(
    QWEN3, vocab_size=151_936, hidden_size=5120, intermediate_size=17_408, num_hidden_layers=40, num_attention_heads=40,
    num_key_value_heads=8, head_dim=128, tie_word_embeddings=False,
)  # fmt: skip


@torch.inference_mode()
def logits_of_a_prompt(
    place: Place, device: torch.device, model: ModelConfig, all_reduce: str, exact: bool
) -> torch.Tensor:
    """[NUM_TOKENS, vocab_size], of all but the last token in one pass and the last in another.

    Of weights in bfloat16; what is `exact` is computed with them in float32.
    """
    ranks = Ranks(Shard(place.rank, place.size), model.vocab_size)
    if place.size > 1 and all_reduce != "group":
        ranks.peers = PeerMemory(all_reduce, place, device, 4 * NUM_TOKENS * model.hidden_size)
    network = QwenForCausalLM(model, torch.bfloat16, device, NUM_TOKENS, ranks.shard)
    dummy_weights(network, 0)
    dtype = torch.float32 if exact else torch.bfloat16
    network.to(dtype)
    cache = KVCache(model, NUM_BLOCKS, BLOCK_SIZE, dtype, device, ranks.shard)
    backend = make_backend("auto", cache, ranks)
    slots = torch.arange(NUM_TOKENS, device=device) + BLOCK_SIZE
    ids = (slots * 7919 % model.vocab_size).int()
    table = torch.arange(1, NUM_BLOCKS, dtype=torch.int32, device=device)[None]
    last, row = NUM_TOKENS - 1, torch.zeros(1, dtype=torch.int32, device=device)
    found = []
    for part, decodes, starts in ((slice(0, last), row[:0], [0, last]), (slice(last, NUM_TOKENS), row, [0])):
        context = AttentionContext(
            slot_mapping=slots[part],
            block_tables=table,
            lengths=row + part.start,
            decode_rows=decodes,
            prefill_rows=row[: 1 - len(decodes)],
            prefill_starts=torch.tensor(starts, dtype=torch.int32, device=device),
        )
        positions = torch.arange(NUM_TOKENS, dtype=torch.int32, device=device)[part]
        hidden = network(ids[part], positions, backend, context)
        found.append(ranks.full_logits(network.logits(hidden)))
    return torch.cat(found).float().cpu()


def check(model: ModelConfig, device: str, all_reduce: str) -> None:
    work = partial(logits_of_a_prompt, model=model, all_reduce=all_reduce)
    (exact,) = run_ranks(partial(work, exact=True), 1, device)
    (alone,) = run_ranks(partial(work, exact=False), 1, device)
    first, second = run_ranks(partial(work, exact=False), 2, device)
    assert torch.equal(first, second)
    ours, allowed = (float((logits - exact).norm() / exact.norm()) for logits in (first, alone))
    print(f"from float32: {ours:.2e} with two ranks, {allowed:.2e} with one, {all_reduce}")
    assert ours <= MOST_OF_ONE_RANK_S_DISTANCE * allowed


def test_two_ranks_on_cpus_are_as_exact_as_one() -> None:
    check(QWEN3, "cpu", "group")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices")
@pytest.mark.parametrize("all_reduce", ["auto", "group"])
def test_two_devices_are_as_exact_as_one_with_the_14b_shape(all_reduce: str) -> None:
    check(QWEN3_14B, "cuda", all_reduce)
