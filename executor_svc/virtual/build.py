"""A virtual runner as the command line asks for it."""

from pathlib import Path

from executor_svc.config import ExecutorConfig
from executor_svc.models.config import read_model_sizes
from executor_svc.runner import RunnerLimits
from executor_svc.virtual.cost import CostModel
from executor_svc.virtual.runner import VirtualRunner
from executor_svc.virtual.tokens import VirtualModel

# What is served where there is no model directory at all.
DEFAULT_VOCAB_SIZE = 1024
DEFAULT_MODEL_LEN = 4096
DEFAULT_FINGERPRINT = "0" * 32
# The most blocks taken where --num-kv-blocks says nothing: a virtual block costs little, but not nothing.
_MOST_BLOCKS = 16384


def build_virtual_runner(config: ExecutorConfig, model_dir: Path | None) -> VirtualRunner:
    """Sizes a runner by the flags and, where there is one, the model's config.json.

    CheckpointError where config.json does not say what is needed; ValueError where a flag does not fit the model.
    """
    vocab_size, model_len = DEFAULT_VOCAB_SIZE, DEFAULT_MODEL_LEN
    if model_dir is not None:
        sizes = read_model_sizes(model_dir)
        vocab_size, model_len = sizes.vocab_size, sizes.max_model_len
        if config.max_model_len is not None and config.max_model_len > model_len:
            raise ValueError(f"--max-model-len: must be at most the model's {model_len}")
    limits = _limits(config, config.virtual_vocab_size or vocab_size, config.max_model_len or model_len)
    cost = CostModel(config.virtual_step_ms * 1e6, config.virtual_token_us * 1e3, config.virtual_kv_token_ns)
    checked = config.virtual_poison or config.verify
    return VirtualRunner(limits, VirtualModel(limits.vocab_size), cost=cost, checked=checked)


def _limits(config: ExecutorConfig, vocab_size: int, max_model_len: int) -> RunnerLimits:
    blocks_for_all = config.max_num_seqs * -(-max_model_len // config.block_size)
    return RunnerLimits(
        num_blocks=config.num_kv_blocks or 1 + min(blocks_for_all, _MOST_BLOCKS),
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_decode_steps=config.max_num_decode_steps,
        max_plans_in_flight=config.max_plans_in_flight,
        vocab_size=vocab_size,
    )
