"""The step runner that computes: a worker thread is the stream of device work, steps queue up before it."""

import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import torch

from executor_svc.attention import make_attention_backend
from executor_svc.batch import BatchState
from executor_svc.config import ExecutorConfig
from executor_svc.kv_cache import KVCache, block_bytes, default_num_blocks
from executor_svc.model_runner import ModelRunner, to_output
from executor_svc.models.config import ModelConfig, read_model_config
from executor_svc.models.qwen import QwenForCausalLM
from executor_svc.plan import ErrorCode, Step, StepFailure, SubStepOutput
from executor_svc.runner import RunnerLimits, sub_steps
from executor_svc.slot_tokens import SlotTokens
from executor_svc.weights import dummy_weights, load_weights
from nanoserve.checkpoint import CheckpointError

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step in the queue, or behind it; see PendingStep."""

    step: Step
    outputs: tuple[Future[SubStepOutput], ...]

    def wait(self, sub_step: int) -> SubStepOutput:
        return self.outputs[sub_step].result()


@dataclass(frozen=True, slots=True)
class _Reset:
    """A request to clear all rows."""

    done: threading.Event = field(default_factory=threading.Event)


class TorchRunner:
    """A StepRunner over a model in PyTorch. The worker thread alone touches the model's and the batch's state."""

    def __init__(self, model_runner: ModelRunner, limits: RunnerLimits, device: torch.device) -> None:
        self.limits = limits
        self.device = str(device)
        self.dtype = str(model_runner.model.embed_tokens.weight.dtype).removeprefix("torch.")
        self.model_runner = model_runner
        self._torch_device = device
        self._queue: queue.SimpleQueue[LaunchedStep | _Reset | None] = queue.SimpleQueue()
        self._failure: StepFailure | None = None
        self._last_end_ns: int | None = None
        self._worker = threading.Thread(target=self._work, name="device-stream", daemon=True)
        self._worker.start()

    def reset(self) -> None:
        """Clears all rows and any failure; returns when that is done."""
        request = _Reset()
        self._queue.put(request)
        request.done.wait()

    def launch(self, step: Step) -> LaunchedStep:
        """Queues a step; never blocks."""
        launched = LaunchedStep(step, tuple(Future() for _ in sub_steps(step)))
        self._queue.put(launched)
        return launched

    def close(self) -> None:
        """Ends the worker."""
        self._queue.put(None)
        self._worker.join()

    @torch.inference_mode()
    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            if isinstance(task, _Reset):
                self.model_runner.state.clear()
                self._failure = None
                self._last_end_ns = None
                task.done.set()
            else:
                self._run(task)

    def _run(self, launched: LaunchedStep) -> None:
        """Answers every sub-step of a step: with its output, or with the failure of this step or an earlier one."""
        if self._failure is None:
            try:
                for sub_step, output in enumerate(launched.outputs):
                    output.set_result(self._run_sub_step(launched.step, sub_step))
            except Exception as error:
                step_id = launched.step.plan.step_id
                _log.exception("step_failed", step_id=step_id)
                self._failure = as_step_failure(error, step_id)
        for output in launched.outputs:
            if not output.done():
                assert self._failure is not None
                output.set_exception(self._failure)

    def _run_sub_step(self, step: Step, sub_step: int) -> SubStepOutput:
        begin_ns = time.monotonic_ns()
        state = self.model_runner.state
        if sub_step == 0:
            state.apply(step.plan)
        tensors = self.model_runner.run(step, sub_step)
        if self._torch_device.type == "cuda":
            torch.cuda.synchronize(self._torch_device)
        end_ns = time.monotonic_ns()
        idle_ns = 0 if self._last_end_ns is None else begin_ns - self._last_end_ns
        self._last_end_ns = end_ns
        return to_output(tensors, state, end_ns - begin_ns, idle_ns)


def as_step_failure(error: Exception, step_id: int) -> StepFailure:
    """What the scheduler is told of an exception: that memory ran out, or that something is broken."""
    if isinstance(error, StepFailure):
        return error
    reason = (str(error).splitlines() or [""])[0]
    # The CPU's allocator has no exception of its own.
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error):
        return StepFailure(ErrorCode.RESOURCE_EXHAUSTED, f"step {step_id}: out of memory: {reason}")
    return StepFailure(ErrorCode.INTERNAL, f"step {step_id}: {type(error).__name__}: {reason}")


def build_torch_runner(config: ExecutorConfig, model_dir: Path) -> TorchRunner:
    """Loads the model in `model_dir` and makes its KV cache.

    CheckpointError where the checkpoint is damaged or not served; ValueError, naming the flag, where the device, the
    sizes or a mode cannot be had.
    """
    model_config = read_model_config(model_dir)
    device = _device(config.device)
    dtype = choose_dtype(config.dtype, model_config, model_dir, device)
    max_model_len = config.max_model_len or model_config.max_model_len
    if max_model_len > model_config.max_model_len:
        raise ValueError(f"--max-model-len: the model takes at most {model_config.max_model_len} tokens")
    try:
        model = QwenForCausalLM(model_config, dtype, device)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(f"--device: the weights do not fit on {device}: {_first_line(error)}") from error
    if config.load_format == "dummy":
        dummy_weights(model, config.seed)
    else:
        load_weights(model, model_dir)
    kv_cache = _kv_cache(config, model_config, max_model_len, dtype, device)
    limits = RunnerLimits(
        num_blocks=kv_cache.num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_decode_steps=config.max_num_decode_steps,
        max_plans_in_flight=config.max_plans_in_flight,
        vocab_size=model_config.vocab_size,
    )
    attention = make_attention_backend(config.attention_backend, kv_cache)
    state = BatchState(limits, device)
    slot_tokens = SlotTokens(limits, device) if config.verify else None
    model_runner = ModelRunner(model, attention, state, config.block_size, slot_tokens)
    return TorchRunner(model_runner, limits, device)


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("--device: cuda was asked for, but there is no CUDA device")
    return torch.device("cuda:0" if name == "cuda" or (name == "auto" and available) else "cpu")


def choose_dtype(name: str, model_config: ModelConfig, model_dir: Path, device: torch.device) -> torch.dtype:
    """The dtype that `--dtype` names; for "auto" float32 on a CPU, else the checkpoint's own."""
    chosen = name
    if name == "auto":
        chosen = "float32" if device.type == "cpu" else model_config.dtype
    if chosen == "float16":
        raise CheckpointError(
            f"{model_dir / 'config.json'}: dtype: float16 is not served; give --dtype bfloat16 or float32"
        )
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[chosen]


def _kv_cache(
    config: ExecutorConfig,
    model_config: ModelConfig,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
) -> KVCache:
    """The cache of `--num-kv-blocks`, or else of as many blocks as fit and all rows at full length could use."""
    num_blocks = config.num_kv_blocks
    if num_blocks is None:
        most_useful = config.max_num_seqs * -(-max_model_len // config.block_size) + 1
        bytes_per_block = block_bytes(model_config, config.block_size, dtype)
        num_blocks = default_num_blocks(bytes_per_block, most_useful, device, config.gpu_memory_utilization)
    try:
        return KVCache(model_config, num_blocks, config.block_size, dtype, device)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(f"--num-kv-blocks: {num_blocks} do not fit: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
