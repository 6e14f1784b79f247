"""InferenceService: prompts in, streams out."""

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from typing import Any

import structlog
import xxhash

from nanoserve.arrays import pack_int32
from nanoserve.v1 import inference_pb2 as pb
from nanoserve.v1.inference_pb2_grpc import InferenceServiceServicer
from scheduler_svc.callers import caller_salt, caller_tenant
from scheduler_svc.core.request import Int32Array, Request, Sampling
from scheduler_svc.errors import InvalidRequest, ServiceError, handler
from scheduler_svc.frontend import Frontend
from scheduler_svc.guided_params import resolve_guide
from scheduler_svc.messages import Code, EngineState, Problem
from scheduler_svc.model import Model
from scheduler_svc.output import Output
from scheduler_svc.prompts import PromptReader
from scheduler_svc.resume import OutputLimits, resume_outputs, resumed_seed
from scheduler_svc.stream import RequestStream
from scheduler_svc.tracing import RequestTracer
from scheduler_svc.validation import (
    check_names,
    check_token_ids,
    resolve_max_tokens,
    resolve_sampling,
    resolve_stops,
)

# Detokenize takes as many ids as so many of the longest sequences have, but never more than the second.
_MAX_DETOKENIZE_SEQUENCES = 16
_MAX_DETOKENIZE_IDS = 1_000_000
# Text takes microseconds a byte, on a thread of a few that all long prompts share.
_MAX_TOKENIZE_BYTES = 1024 * 1024
# More ids are checked and decoded in a thread, so that streams go on meanwhile.
_MAX_IDS_ON_LOOP = 4096
_log = structlog.get_logger()


class InferenceService(InferenceServiceServicer):
    """Serves one model through a frontend."""

    def __init__(self, model: Model, frontend: Frontend, tracer: RequestTracer | None = None) -> None:
        """`tracer` None: no spans are made."""
        self._model, self._frontend, self._tracer = model, frontend, tracer
        self._prompts = PromptReader(model.tokenizer)

    @handler
    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:
        """Streams the outputs of one request."""
        arrival = time.monotonic()
        core_request, outputs = await self._resolve(request)
        stream = RequestStream(
            core_request.request_id,
            core_request.prompt_token_ids,
            core_request.seed,
            _digest(core_request.prompt_token_ids),
            outputs,
            arrival,
            told=[index for index, held in enumerate(request.resume.outputs) if held.finished],
        )
        key = None
        if all(output.finished is not None for output in outputs):
            stream.start(0, time.monotonic())
            stream.end(0, time.monotonic())
        else:
            key = await self._frontend.submit(core_request, stream, caller_tenant())
        try:
            while not stream.is_complete:
                await context.write(await stream.next_message())
        finally:
            if key is not None:
                self._frontend.leave(key)
            _log_request(stream)
            if self._tracer is not None:
                self._tracer.record(stream, core_request, context.invocation_metadata(), caller_tenant())

    @handler
    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        """Token ids of a text or chat."""
        self._check_model(request.model)
        kind = request.WhichOneof("prompt")
        if kind == "text" and not request.text:
            return pb.TokenizeResponse()
        if kind is not None and request.ByteSize() > _MAX_TOKENIZE_BYTES:
            raise InvalidRequest(kind, f"must come to {_MAX_TOKENIZE_BYTES} bytes at most")
        ids = await self._prompts.read(request, max_tokens=2**31, vocab_size=0)
        return pb.TokenizeResponse(token_ids=ids.tolist())

    @handler
    async def Detokenize(self, request: pb.DetokenizeRequest, context: Any) -> pb.DetokenizeResponse:
        """Text of token ids."""
        self._check_model(request.model)
        state, count = self._state, len(request.token_ids)
        limit = min(_MAX_DETOKENIZE_SEQUENCES * state.max_model_len, _MAX_DETOKENIZE_IDS)
        if count > limit:
            raise InvalidRequest("token_ids", f"has {count} ids, must have {limit} at most")
        arguments = (request.token_ids, state.vocab_size, request.skip_special_tokens)
        if count > _MAX_IDS_ON_LOOP:
            text = await asyncio.to_thread(self._decode, *arguments)
        else:
            text = self._decode(*arguments)
        return pb.DetokenizeResponse(text=text)

    def _decode(self, token_ids: Sequence[int], vocab_size: int, skip_special_tokens: bool) -> str:
        check_token_ids("token_ids", token_ids, vocab_size)
        return self._model.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    @handler
    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        """What is served."""
        self._check_model(request.model)
        model, state = self._model, self._state
        return pb.GetModelResponse(
            model=model.name,
            architecture=model.architecture,
            vocab_size=state.vocab_size,
            max_model_len=state.max_model_len,
            eos_token_ids=model.eos_token_ids,
            default_sampling=_sampling_message(model.default_sampling),
            model_fingerprint=model.fingerprint,
            weights_fingerprint=state.weights_fingerprint,
            has_chat_template=model.tokenizer.chat_template is not None,
            server_version=version("nanoserve"),
        )

    @property
    def _state(self) -> EngineState:
        """What the engine can do. ServiceError before the first session, when nothing is known."""
        state = self._frontend.state
        if not state.vocab_size:
            raise ServiceError(Problem(Code.UNAVAILABLE, "there is no executor yet"))
        return state

    def _check_model(self, name: str) -> None:
        if name and name != self._model.name:
            description = f"{name!r} is not served here, {self._model.name!r} is"
            raise ServiceError(Problem(Code.NOT_FOUND, description, "model"))

    async def _resolve(self, request: pb.GenerateRequest) -> tuple[Request, list[Output]]:
        """Checks a request; returns what the engine gets, and its outputs to be."""
        self._check_model(request.model)
        check_names(request)
        state, model = self._state, self._model
        sampling, num_outputs = resolve_sampling(request, model.default_sampling, state.vocab_size)
        stops = resolve_stops(request.stop, model.eos_token_ids, state.vocab_size)
        guide = resolve_guide(request, model.eos_token_ids)
        prompt_token_ids = await self._prompts.read(request, state.max_model_len, state.vocab_size)
        max_tokens = resolve_max_tokens(stops, len(prompt_token_ids), state.max_model_len)
        tokenizer = model.tokenizer
        outputs = [
            Output(stops.output_rules, tokenizer.token_bytes, tokenizer.raw_token_bytes)
            for _ in range(num_outputs)
        ]
        resumed: tuple[Int32Array | None, ...] = ()
        if request.HasField("resume"):
            seed = resumed_seed(request)
            limits = OutputLimits(frozenset(stops.end_token_ids), max_tokens, state.vocab_size)
            resumed = await resume_outputs(request.resume, _digest(prompt_token_ids), outputs, limits)
        else:
            seed = request.sampling.seed if request.sampling.HasField("seed") else secrets.randbits(64)
        core_request = Request(
            request_id=request.request_id or secrets.token_hex(16),
            prompt_token_ids=prompt_token_ids,
            max_tokens=max_tokens,
            seed=seed,
            n=num_outputs,
            sampling=sampling,
            min_tokens=stops.min_tokens,
            end_token_ids=stops.end_token_ids,
            priority=request.priority,
            cache_salt=caller_salt(request.cache_salt),
            resumed=resumed,
            guide=guide,
        )
        return core_request, outputs


def _digest(token_ids: Int32Array) -> bytes:
    """What `started` echoes and `resume` has to show."""
    return xxhash.xxh3_128_digest(pack_int32(token_ids))


def _sampling_message(sampling: Sampling) -> pb.SamplingParams:
    """Every parameter but the seed."""
    names = {entry.name for entry in fields(Sampling)} & set(pb.SamplingParams.DESCRIPTOR.fields_by_name)
    values = {name: getattr(sampling, name) for name in names - {"logit_bias"}}
    return pb.SamplingParams(n=1, **values)


def _log_request(stream: RequestStream) -> None:
    """The canonical line of a request, at its end."""
    _log.info(
        "request",
        request_id=stream.request_id,
        tenant=caller_tenant() or None,
        num_prompt_tokens=stream.num_prompt_tokens,
        num_cached_tokens=stream.num_cached_tokens,
        num_output_tokens=stream.num_output_tokens,
        num_preemptions=stream.num_preemptions,
        finish_reasons=stream.finish_reasons,
        problem=stream.problem.description if stream.problem is not None else None,
        queue_seconds=round(stream.queue_seconds, 6),
        first_token_seconds=round(stream.first_token_seconds, 6),
        total_seconds=round(stream.total_seconds, 6),
    )
