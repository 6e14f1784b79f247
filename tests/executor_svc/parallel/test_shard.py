"""What each rank holds: all of a model between them, each its share of the bytes, every query head its own keys."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import QWEN3
from torch_harness import save_checkpoint

from executor_svc.kv_cache import KVCache
from executor_svc.models.config import ModelConfig, read_model_config
from executor_svc.models.qwen import QwenForCausalLM
from executor_svc.parallel.shard import Features, Shard
from executor_svc.weights import dummy_weights, load_weights

CPU = torch.device("cpu")


def config(
    num_heads: int, num_kv_heads: int, vocab_size: int = 64, intermediate_size: int = 64
) -> ModelConfig:
    return replace(
        QWEN3,
        vocab_size=vocab_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=8,
        tie_word_embeddings=False,
    )


def indices(features: Features) -> list[int]:
    return [index for run in features.runs for index in range(run.start, run.stop)]


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_every_query_head_finds_its_own_key_value_head_beside_it(
    num_kv_heads: int, readers: int, data: st.DataObject
) -> None:
    num_heads = num_kv_heads * readers
    size = data.draw(st.sampled_from([n for n in range(1, num_heads + 1) if num_heads % n == 0]))
    model, seen = config(num_heads, num_kv_heads), []
    for rank in range(size):
        shard = Shard(rank, size)
        query, kv = indices(shard.query_heads(model)), indices(shard.kv_heads(model))
        seen += query
        # Attention has local query head i read local key-value head i // (how many query heads there are for each).
        assert len(query) % len(kv) == 0
        group = len(query) // len(kv)
        assert [kv[i // group] for i in range(len(query))] == [head // readers for head in query]
        if num_kv_heads % size == 0:
            assert len(kv) == num_kv_heads // size
        elif size % num_kv_heads == 0:
            assert len(kv) == 1
    assert seen == list(range(num_heads))


@given(st.integers(1, 2000), st.integers(1, 3000), st.integers(1, 16))
def test_ranks_part_the_vocabulary_and_the_columns(vocab_size: int, columns: int, size: int) -> None:
    shards = [Shard(rank, size) for rank in range(size)]
    vocabularies = [shard.vocabulary(vocab_size) for shard in shards]
    assert [token for part in vocabularies for token in indices(part)] == list(range(vocab_size))
    assert all(part.count <= shards[0].padded_vocabulary(vocab_size) for part in vocabularies)
    assert all(part.runs[0].start % 4 == 0 for part in vocabularies if size > 1 and part.count)
    assert [index for shard in shards for index in indices(shard.columns(columns))] == list(range(columns))


@pytest.mark.parametrize(
    ("model", "size", "said"),
    [
        (config(6, 2), 4, r"4 does not divide the model's 6 attention heads \(with 2 key-value heads\)"),
        (config(8, 2, vocab_size=20), 8, "vocabulary is too small for 8"),
        (config(8, 2, intermediate_size=4), 8, "MLP is too small for 8"),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused_by_its_counts(
    model: ModelConfig, size: int, said: str
) -> None:
    with pytest.raises(ValueError, match=f"--tensor-parallel-size: .*{said}"):
        Shard(0, size).check(model)


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3"])
@pytest.mark.parametrize("size", [2, 4])
def test_the_shards_of_a_checkpoint_are_its_parts(tmp_path: Path, kind: str, size: int) -> None:
    bias = {"attention_bias": True} if kind == "Qwen3" else {}
    reference = save_checkpoint(tmp_path, kind, max_shard_size="15KB", **bias)
    rebuilt = {name: torch.full_like(tensor, torch.nan) for name, tensor in reference.named_parameters()}
    model_config = read_model_config(tmp_path)
    for rank in range(size):
        model = QwenForCausalLM(model_config, torch.float32, CPU, shard=Shard(rank, size))
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
        load_weights(model, tmp_path)
        assert not any(parameter.isnan().any() for parameter in model.parameters())
        for name, placement in model.checkpoint_tensors().items():
            for tensor, index in placement.pieces:
                rebuilt[name][index] = tensor
    for name, tensor in reference.named_parameters():
        assert torch.equal(rebuilt[name], tensor), name


def test_dummy_shards_are_parts_of_the_dummy_whole(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "Qwen3")
    model_config = read_model_config(tmp_path)
    models = [QwenForCausalLM(model_config, torch.float32, CPU, shard=s) for s in (Shard(), Shard(1, 2))]
    for model in models:
        dummy_weights(model, 5)
    whole = {name: placement.pieces[0][0] for name, placement in models[0].checkpoint_tensors().items()}
    for name, placement in models[1].checkpoint_tensors().items():
        for tensor, index in placement.pieces:
            assert torch.equal(tensor, whole[name][index]), name


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_a_rank_holds_its_share_of_the_bytes(tmp_path: Path, size: int, tied: bool) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_key_value_heads": 4, "vocab_size": 1001}
    save_checkpoint(tmp_path, "Qwen3", tie_word_embeddings=tied, **sizes)
    model_config = read_model_config(tmp_path)

    def bytes_of(shard: Shard) -> tuple[int, int]:
        model = QwenForCausalLM(model_config, torch.float32, CPU, shard=shard)
        cache = KVCache(model_config, 50, 16, torch.float32, CPU, shard)
        weights, kv = list(model.parameters()), [*cache.keys, *cache.values]
        return tuple(sum(t.untyped_storage().nbytes() for t in held) for held in (weights, kv))  # type: ignore[return-value]

    weights, kv = bytes_of(Shard())
    for rank in range(size):
        rank_weights, rank_kv = bytes_of(Shard(rank, size))
        print(
            f"rank {rank} of {size}: {rank_weights} of {weights} bytes of weights, {rank_kv} of {kv} of KV cache"
        )
        assert rank_weights == pytest.approx(weights / size, rel=0.05)
        assert rank_kv == kv // size
