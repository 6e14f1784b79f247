"""What each field that a server answers has to mean, and calls after which every one of them has been seen."""

import contextlib
import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import grpc
from contract import Api
from generate_cases import LONG_PROMPT, MAX_NUM_SEQS, until

from nanoserve.v1 import admin_pb2
from nanoserve.v1 import inference_pb2 as pb

_VOCAB_SIZE = 768
_LANES = {"scheduler", "boundary", "executor host", "device"}
_SPANS = {"schedule", "send", "result", "update", "publish", "plan", "decode", "launch", "encode", "step"}


def not_negative(value: float) -> bool:
    return value >= 0


def positive(value: float) -> bool:
    return value > 0


def not_positive(value: float) -> bool:
    return value <= 0


def token_id(value: int) -> bool:
    return 0 <= value < _VOCAB_SIZE


def text(value: str) -> bool:
    return bool(value.encode())


def hexadecimal(value: str) -> bool:
    return len(value) >= 32 and int(value, 16) > 0


def exactly(wanted: Any) -> Callable[[Any], bool]:
    return lambda value: value == wanted


MEANINGS: dict[str, Callable[[Any], bool]] = {
    "GenerateResponse.request_id": text,
    "GenerateResponse.seq": not_negative,
    "GenerateStarted.num_prompt_tokens": positive,
    "GenerateStarted.num_cached_tokens": not_negative,
    "GenerateStarted.seed": not_negative,
    "GenerateStarted.prompt_digest": lambda value: len(value) == 16,
    "GeneratePrompt.first_position": positive,
    "TokenLogprob.token_id": token_id,
    "TokenLogprob.logprob": not_positive,
    "TokenLogprob.rank": lambda value: 1 <= value <= _VOCAB_SIZE,
    "TokenAlternative.token_id": token_id,
    "TokenAlternative.logprob": not_positive,
    "GenerateDelta.index": not_negative,
    "GenerateDelta.text": lambda value: "\ufffd" not in value,
    "GenerateDelta.token_ids": token_id,
    "GenerateFinished.index": not_negative,
    "GenerateFinished.finish_reason": lambda value: value in pb.FinishReason.values() and value,
    "GenerateFinished.stop_string": exactly(" two"),
    "GenerateFinished.stop_token_id": token_id,
    "Usage.num_prompt_tokens": positive,
    "Usage.num_cached_tokens": not_negative,
    "Usage.num_output_tokens": not_negative,
    "Usage.num_preemptions": not_negative,
    "Timing.queue_seconds": positive,
    "Timing.first_token_seconds": positive,
    "Timing.total_seconds": positive,
    "TokenizeResponse.token_ids": token_id,
    "DetokenizeResponse.text": exactly("a b"),
    "GetModelResponse.model": text,
    "GetModelResponse.architecture": exactly("Qwen3ForCausalLM"),
    "GetModelResponse.vocab_size": exactly(_VOCAB_SIZE),
    "GetModelResponse.max_model_len": positive,
    "GetModelResponse.eos_token_ids": lambda value: value in (765, 767),
    "GetModelResponse.model_fingerprint": hexadecimal,
    "GetModelResponse.weights_fingerprint": hexadecimal,
    "GetModelResponse.has_chat_template": exactly(True),
    "GetModelResponse.server_version": exactly(version("nanoserve")),
    "SamplingParams.temperature": exactly(0),
    "SamplingParams.top_p": exactly(1),
    "SamplingParams.top_k": exactly(0),
    "SamplingParams.min_p": exactly(0),
    "SamplingParams.repetition_penalty": exactly(1),
    "SamplingParams.frequency_penalty": exactly(0),
    "SamplingParams.presence_penalty": exactly(0),
    "SamplingParams.n": exactly(1),
    "Load.num_running_requests": lambda value: 0 <= value <= MAX_NUM_SEQS,
    "Load.num_waiting_requests": not_negative,
    "Load.num_total_blocks": positive,
    "Load.num_free_blocks": not_negative,
    "Load.num_cached_blocks": not_negative,
    "Load.num_held_blocks": not_negative,
    "Load.num_shared_blocks": not_negative,
    "Load.num_unused_slots": not_negative,
    "Load.num_late_tokens": not_negative,
    "Load.num_padded_tokens": exactly(0),
    "Load.num_preemptions": not_negative,
    "Load.num_prefix_query_tokens": not_negative,
    "Load.num_prefix_hit_tokens": not_negative,
    "Load.num_steps": not_negative,
    "Load.num_output_tokens": not_negative,
    "Load.executor_epoch": positive,
    "Load.executor_healthy": exactly(True),
    "Load.draining": lambda value: isinstance(value, bool),
    "Load.num_plans_in_flight": not_negative,
    **{f"StepStats.{name}_ms": not_negative for name in ("device", "host", "queue", "idle", "round_trip")},
    "StepStats.schedule_ms": positive,
    **{f"StepTotals.{name}_seconds": not_negative for name in ("device", "host", "queue", "idle")},
    "StepTotals.round_trip_seconds": positive,
    "StepTotals.schedule_seconds": positive,
    "ResetPrefixCacheResponse.num_blocks": positive,
    "DrainResponse.num_aborted_requests": exactly(1),
    "StopProfileResponse.path": lambda value: value.endswith(".json.gz"),
    "StopProfileResponse.num_steps": positive,
    "StopProfileResponse.trace": lambda value: value.startswith(b"\x1f\x8b"),
    "ProfileSpan.lane": lambda value: value in _LANES,
    "ProfileSpan.name": lambda value: value in _SPANS,
    "ProfileSpan.step_id": positive,
    "ProfileSpan.sub_step": not_negative,
    "ProfileSpan.thread_id": not_negative,
    "ProfileSpan.begin_ns": positive,
    "ProfileSpan.end_ns": positive,
}
"""By message and field; holds for every value that comes, where the field is set or has no presence."""


def hear_everything(api: Api) -> None:
    """Calls whose answers, all together, set every field; the server is drained in the end."""
    watch = api.stream("WatchLoad", interval_seconds=0.05)
    watching = threading.Thread(target=_keep, args=(api, watch))
    watching.start()
    _hear_of_the_model(api)
    _hear_of_a_profile(api)
    _hear_of_a_crowd(api)
    _hear_of_the_end(api)
    loads = admin_pb2.WatchLoadResponse
    until(api, lambda _: any(isinstance(heard, loads) and heard.load.draining for heard in api.received))
    watch.cancel()
    watching.join()


def _keep(api: Api, stream: Any) -> None:
    """Until it is cancelled."""
    with contextlib.suppress(grpc.RpcError):
        for response in stream:
            api.received.append(response)


def _hear_of_the_model(api: Api) -> None:
    api.ask("GetModel")
    api.ask("Detokenize", token_ids=api.tokenize(text="a b"))
    reported = {"logprobs": 2, "prompt_logprobs": 2}
    api.generate(text=LONG_PROMPT, sampling={"n": 2, "seed": 3}, output=reported, stop={"max_tokens": 4})
    for stop in ({"strings": [" two"]}, {"token_ids": api.tokenize(text=",")}):
        api.generate(text="one, two, one, two, one,", stop=stop | {"max_tokens": 40})


def _hear_of_a_profile(api: Api) -> None:
    api.ask("StartProfile")
    api.generate(text=LONG_PROMPT, stop={"max_tokens": 40, "ignore_eos": True})
    api.ask("StopProfile")
    api.ask("ResetPrefixCache")


def _hear_of_a_crowd(api: Api) -> None:
    """More than there are rows for, longer than there are blocks for, and all with the same beginning."""
    stop = {"max_tokens": 140, "ignore_eos": True}
    crowd = api.stream("Generate", text=LONG_PROMPT, sampling={"n": MAX_NUM_SEQS + 1}, stop=stop)
    until(api, lambda load: load.num_waiting_requests > 0 and load.num_plans_in_flight > 0)
    until(api, lambda load: load.num_shared_blocks > 0)
    assert api.finish(crowd).usage.num_preemptions > 0


def _hear_of_the_end(api: Api) -> None:
    before = api.load().num_output_tokens
    left = api.stream("Generate", text="x", stop={"ignore_eos": True})
    until(api, lambda load: load.num_output_tokens > before)
    api.ask("Drain", timeout_seconds=0.01)
    api.finish(left)
    api.load()
