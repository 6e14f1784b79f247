"""Generate over a real channel, against what the virtual model is known to say."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import xxhash
from scheduler_harness import LIMITS, MODEL, Executor, Service, generate_request, refused, run

from executor_svc.virtual import RunnerHooks, VirtualModel
from nanoserve.address import CHANNEL_OPTIONS
from nanoserve.v1 import admin_pb2
from nanoserve.v1 import inference_pb2 as pb
from nanoserve.v1.inference_pb2_grpc import InferenceServiceStub
from scheduler_svc.core.request import sequence_seed


def expected(prompt: list[int], seed: int, num_tokens: int, index: int = 0) -> list[int]:
    seed = sequence_seed(seed, index)
    return [MODEL.token(seed, len(prompt) + i) for i in range(num_tokens)]


@pytest.mark.parametrize("api_workers", [0, 2])
def test_a_generation_tells_all_that_the_contract_says(tmp_path: Path, api_workers: int):
    async def test() -> None:
        async with Service(tmp_path, api_workers=api_workers) as service:
            await service.serving()
            prompt = [5, 6, 7, 8, 9, 10, 11, 12, 13]
            answer = await service.generate(
                prompt, seed=7, max_tokens=20, n=3, logprobs=2, prompt_logprobs=1, request_id="mine"
            )
            assert answer.request_id == "mine"
            assert answer.started.num_prompt_tokens == 9
            assert answer.started.seed == 7
            digest = xxhash.xxh3_128_digest(np.array(prompt, "<i4").tobytes())
            assert answer.started.prompt_digest == digest
            for index in range(3):
                token_ids = expected(prompt, 7, 20, index)
                assert answer.token_ids[index] == token_ids
                decoded = service.model.tokenizer.decode(token_ids, skip_special_tokens=True)
                assert answer.texts[index] == decoded
                assert [entry.token_id for entry in answer.logprobs[index]] == token_ids
                assert all(len(entry.alternatives) == 2 for entry in answer.logprobs[index])
                assert answer.finished[index].finish_reason == pb.FINISH_REASON_LENGTH
                assert answer.finished[index].WhichOneof("stop") is None
            assert [(position, entry.token_id) for position, entry in answer.prompt] == list(
                enumerate(prompt)
            )[1:]
            usage, timing = answer.completed.usage, answer.completed.timing
            assert (usage.num_prompt_tokens, usage.num_output_tokens) == (9, 60)
            assert 0 < timing.queue_seconds <= timing.first_token_seconds <= timing.total_seconds
            await service.until_idle()

    run(test)


@pytest.mark.parametrize("api_workers", [0, 2])
def test_a_second_request_hits_the_prefix_that_the_first_left(tmp_path: Path, api_workers: int):
    async def test() -> None:
        async with Service(tmp_path, api_workers=api_workers) as service:
            await service.serving()
            prompt = list(range(40))
            cold = await service.generate(prompt, seed=1, max_tokens=4)
            warm = await service.generate(prompt, seed=1, max_tokens=4)
            salted = await service.generate(prompt, seed=1, max_tokens=4, cache_salt="other")
            assert (cold.started.num_cached_tokens, warm.started.num_cached_tokens) == (0, 36)
            assert salted.started.num_cached_tokens == 0
            assert warm.completed.usage.num_cached_tokens == 36
            assert cold.token_ids == warm.token_ids == salted.token_ids
            reset = await service.admin.ResetPrefixCache(admin_pb2.ResetPrefixCacheRequest())
            assert reset.num_blocks > 0
            load = await service.until_idle()
            assert load.num_free_blocks == load.num_total_blocks
            assert (await service.generate(prompt, max_tokens=1)).started.num_cached_tokens == 0

    run(test)


def test_a_seed_is_minted_and_echoed_where_none_is_given(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            answers = [await service.generate([1, 2, 3], max_tokens=8) for _ in range(2)]
            seeds = [answer.started.seed for answer in answers]
            assert seeds[0] != seeds[1]
            for answer, seed in zip(answers, seeds, strict=True):
                assert answer.token_ids[0] == expected([1, 2, 3], seed, 8)

    run(test)


def test_without_max_tokens_as_many_come_as_fit(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            answer = await service.generate([1] * 10)
            assert len(answer.token_ids[0]) == LIMITS.max_model_len - 10
            assert answer.finished[0].finish_reason == pb.FINISH_REASON_LENGTH

    run(test)


def test_a_stop_token_ends_the_output_and_is_told(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            whole = expected([1, 2], 3, 30)
            stop = whole[9]
            answer = await service.generate([1, 2], seed=3, max_tokens=30, stop_token_ids=[stop])
            end = whole.index(stop) + 1
            assert answer.token_ids[0] == whole[:end]
            assert answer.finished[0].finish_reason == pb.FINISH_REASON_STOP
            assert answer.finished[0].stop_token_id == stop
            decoded = service.model.tokenizer.decode(whole[: end - 1], skip_special_tokens=True)
            assert answer.texts[0] == decoded
            late = await service.generate(
                [1, 2], seed=3, max_tokens=30, stop_token_ids=[stop], min_tokens=end + 1
            )
            assert len(late.token_ids[0]) > end

    run(test)


def test_the_models_end_token_stops_unless_it_is_to_be_ignored(tmp_path: Path):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/ex")
        executor.model = VirtualModel(768, end_token_id=767, end_probability=0.2)
        executor.start()
        async with Service(tmp_path, executor=executor) as service:
            await service.serving()
            stopped = await service.generate([1, 2], seed=3, max_tokens=50, ignore_eos=False)
            assert stopped.finished[0].stop_token_id == 767
            assert stopped.token_ids[0][-1] == 767
            assert len(stopped.token_ids[0]) < 50
            assert "<|" not in stopped.texts[0][-12:]
            ignored = await service.generate([1, 2], seed=3, max_tokens=50, ignore_eos=True)
            assert len(ignored.token_ids[0]) == 50
            assert ignored.token_ids[0][: len(stopped.token_ids[0])] == stopped.token_ids[0]

    run(test)


def test_a_stop_string_ends_one_output_and_frees_it_at_once(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            whole = [await service.generate([4, 5], seed=seed, max_tokens=60) for seed in (1, 2)]
            text = whole[0].texts[0]
            stop = text[20:24]
            assert stop not in whole[1].texts[0]
            for include in (False, True):
                answer = await service.generate(
                    [4, 5], seed=1, max_tokens=60, strings=[stop], include_stop_in_output=include
                )
                begin = text.index(stop)
                assert answer.texts[0] == text[: begin + (len(stop) if include else 0)]
                assert answer.finished[0].stop_string == stop
                assert answer.finished[0].finish_reason == pb.FINISH_REASON_STOP
                count = len(answer.token_ids[0])
                assert answer.token_ids[0] == whole[0].token_ids[0][:count]
                assert stop in service.model.tokenizer.decode(answer.token_ids[0], skip_special_tokens=True)
                assert answer.completed.usage.num_output_tokens == count
            other = await service.generate([4, 5], seed=2, max_tokens=60, strings=[stop])
            assert other.texts == whole[1].texts
            await service.until_idle()

    run(test)


@pytest.mark.parametrize("api_workers", [0, 2])
def test_many_concurrent_requests_each_equal_their_own_run(tmp_path: Path, api_workers: int):
    async def test() -> None:
        async with Service(tmp_path, api_workers=api_workers) as service:
            await service.serving()
            prompts = [[1, 2, 3, 4, 5, 6, 7, 8, *range(i % 7)] for i in range(40)]
            lengths = [10 + i * 5 % 60 for i in range(40)]
            answers = await asyncio.gather(
                *(
                    service.generate(prompt, seed=i, max_tokens=length, priority=i % 3)
                    for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
                )
            )
            for i, answer in enumerate(answers):
                assert answer.token_ids[0] == expected(prompts[i], i, lengths[i])
            load = await service.until_idle()
            # One preempted while its last token was under way is not computed again.
            num_recomputed = sum(answer.completed.usage.num_preemptions for answer in answers)
            assert 0 < num_recomputed <= load.num_preemptions

    run(test)


@pytest.mark.parametrize("api_workers", [0, 2])
def test_a_cancelled_call_frees_its_rows_and_blocks(tmp_path: Path, api_workers: int):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/ex", step_ms=10)
        executor.start()
        async with Service(tmp_path, api_workers=api_workers, executor=executor) as service:
            await service.serving()
            call = service.stub.Generate(generate_request([1, 2, 3], max_tokens=200, n=4))
            while (await call.read()).WhichOneof("event") != "delta":
                pass
            call.cancel()
            load = await service.until_idle()
            assert load.num_output_tokens < 100

    run(test)


@pytest.mark.parametrize("api_workers", [0, 2])
def test_a_deadline_ends_a_request_wherever_it_is(tmp_path: Path, api_workers: int):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/ex", step_ms=20)
        executor.start()
        async with Service(tmp_path, api_workers=api_workers, executor=executor) as service:
            await service.serving()
            with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
                request = pb.GenerateRequest(text="hello", stop=pb.StopParams(ignore_eos=True))
                async for _ in service.stub.Generate(request, timeout=0.2):
                    pass
            await service.until_idle()

    run(test)


@pytest.mark.parametrize("api_workers", [0, 2])
def test_a_slow_reader_gets_fewer_messages_and_the_same_tokens(tmp_path: Path, api_workers: int):
    async def test() -> None:
        limits = replace(LIMITS, num_blocks=1025, max_model_len=4096)
        executor = Executor(f"unix:{tmp_path}/ex", limits=limits, step_ms=0.01)
        executor.start()
        # So that the client's window does not grow with what is sent.
        options = [("grpc.http2.bdp_probe", 0), *CHANNEL_OPTIONS]
        async with (
            Service(tmp_path, api_workers=api_workers, executor=executor) as service,
            grpc.aio.insecure_channel(service.address, options=options) as channel,
        ):
            await service.serving()
            request = generate_request([1, 2, 3], seed=5, max_tokens=4000, logprobs=20)
            received: list[int] = []
            num_messages = 0
            async for message in InferenceServiceStub(channel).Generate(request):
                if num_messages == 0:
                    # Reads on when all has been computed: what waits is not one message a token.
                    await service.until(lambda load: load.num_output_tokens >= 4000)
                num_messages += 1
                received += message.delta.token_ids
            assert received == [MODEL.token(5, 3 + i) for i in range(4000)]
            assert num_messages < 2000

    run(test)


def test_a_chat_is_rendered_with_the_models_template(tmp_path: Path):
    async def test() -> None:
        async with Service(tmp_path) as service:
            await service.serving()
            chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hello")])
            tokens = await service.stub.Tokenize(pb.TokenizeRequest(chat=chat))
            template = service.model.tokenizer.chat_template
            assert template is not None
            text = template.render([{"role": "user", "content": "hello"}])
            assert (await service.stub.Tokenize(pb.TokenizeRequest(text=text))).token_ids == tokens.token_ids
            answer = await service.generate(chat, seed=1, max_tokens=5)
            assert answer.started.num_prompt_tokens == len(tokens.token_ids)
            assert answer.token_ids[0] == expected(list(tokens.token_ids), 1, 5)
            back = await service.stub.Detokenize(pb.DetokenizeRequest(token_ids=tokens.token_ids))
            assert back.text == text
            model = await service.stub.GetModel(pb.GetModelRequest(model="demo"))
            assert (model.vocab_size, model.max_model_len) == (768, 256)
            assert model.has_chat_template
            assert list(model.eos_token_ids) == list(service.model.eos_token_ids)
            for field in pb.SamplingParams.DESCRIPTOR.fields:
                if field.name not in ("seed", "logit_bias"):
                    assert model.default_sampling.HasField(field.name), field.name

    run(test)


def test_plans_are_sent_ahead_of_results(tmp_path: Path):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/ex", step_ms=5)
        executor.start()
        async with Service(tmp_path, executor=executor) as service:
            await service.serving()
            call = asyncio.ensure_future(service.generate([1, 2, 3], max_tokens=50))
            await service.until(lambda load: load.num_plans_in_flight == 2)
            await call
            load = await service.load()
            # With the next plan queued already, the device has next to nothing to wait for between two steps.
            assert load.step_stats.idle_ms < load.step_stats.device_ms / 5
            assert load.step_stats.round_trip_ms > load.step_stats.device_ms

    run(test)


@pytest.mark.parametrize(("max_plan_ms", "most_steps"), [(1000.0, 4), (0.0, 1)])
def test_fast_steps_are_planned_several_at_a_time(tmp_path: Path, max_plan_ms: float, most_steps: int):
    async def test() -> None:
        limits = replace(LIMITS, max_num_decode_steps=4)
        executor = Executor(f"unix:{tmp_path}/ex", limits=limits)
        sub_steps: list[int] = []
        executor.hooks = RunnerHooks(before_result=sub_steps.append)
        executor.start()
        async with Service(tmp_path, executor=executor, max_plan_ms=max_plan_ms) as service:
            await service.serving()
            answers = await asyncio.gather(
                *(service.generate([1, 2, 3], seed=seed, max_tokens=30 + seed) for seed in range(5))
            )
            for seed, answer in enumerate(answers):
                assert answer.token_ids[0] == expected([1, 2, 3], seed, 30 + seed)
            await service.until_idle()
        assert max(Counter(sub_steps).values()) == most_steps

    run(test)
