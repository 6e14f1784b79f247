"""Who is let in, and what each may do: real servers, with the API in the scheduler's process and in workers."""

import asyncio
import contextlib
import hashlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from scheduler_harness import Executor, Service, run

import nanoserve_client as ns
from nanoserve.address import CHANNEL_OPTIONS
from nanoserve.bearer import bearer_metadata
from nanoserve.v1.inference_pb2 import GetModelRequest
from nanoserve.v1.inference_pb2_grpc import InferenceServiceStub

WORKERS = pytest.mark.parametrize("api_workers", [0, 2])
PROMPT = list(range(1, 34))


def write_keys(path: Path, **fields: str) -> None:
    """Tenants by name, with their fields; the key of tenant NAME is key-NAME."""
    entries = []
    for tenant, more in fields.items():
        sha256 = hashlib.sha256(f"key-{tenant}".encode()).hexdigest()
        entries.append(f'[[keys]]\nsha256 = "{sha256}"\ntenant = "{tenant}"\n{more}\n')
    path.write_text("\n".join(entries))


class Secured(Service):
    """A service that asks for keys; `write_keys` says which."""

    def __init__(self, folder: Path, keys: dict[str, str], **config: Any) -> None:
        self.key_file = folder / "keys.toml"
        write_keys(self.key_file, **keys)
        super().__init__(folder, api_key_file=str(self.key_file), **config)

    def client(self, tenant: str | None = None, **options: Any) -> ns.AsyncClient:
        key = None if tenant is None else f"key-{tenant}"
        return ns.AsyncClient(self.address, api_key=key, **options)

    def reload(self, **keys: str) -> None:
        write_keys(self.key_file, **keys)
        self.server.reload_keys()


async def new_connections(service: Secured, tenant: str, count: int = 6) -> list[grpc.StatusCode]:
    """What a call is answered over each of several connections, which different workers serve."""
    codes = []
    for _ in range(count):
        options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(service.address, options=options) as channel:
            call = InferenceServiceStub(channel).GetModel(
                GetModelRequest(), metadata=bearer_metadata(f"key-{tenant}"), timeout=20
            )
            codes.append(await call.code())
    return codes


@WORKERS
def test_only_who_shows_a_good_key_is_let_in(api_workers: int, tmp_path: Path):
    async def test() -> None:
        async with Secured(tmp_path, {"a": ""}, api_workers=api_workers) as service:
            await service.serving()
            async with service.client("a") as client:
                assert (await client.generate(PROMPT, max_tokens=3, ignore_eos=True)).usage.num_output_tokens
            for tenant in ("b", "a-", None):
                async with service.client(tenant) as client:
                    for attempt in (client.generate("x"), client.model_info(), client.get_load()):
                        with pytest.raises(ns.Unauthenticated) as refusal:
                            await attempt
                        assert refusal.value.message == ""

    run(test)


@WORKERS
def test_only_an_administrators_key_opens_the_admin_service(api_workers: int, tmp_path: Path):
    async def test() -> None:
        keys = {"a": "", "root": "admin = true"}
        async with Secured(tmp_path, keys, api_workers=api_workers) as service:
            await service.serving()
            async with service.client("a") as client:
                for attempt in (client.get_load(), client.start_profile(), client.stop_profile()):
                    with pytest.raises(ns.PermissionDenied):
                        await attempt
            async with service.client("root") as client:
                assert (await client.get_load()).num_running_requests == 0
                assert (await client.model_info()).vocab_size

    run(test)


@WORKERS
def test_health_is_open_and_reflection_is_not(api_workers: int, tmp_path: Path):
    async def test() -> None:
        async with Secured(tmp_path, {"a": ""}, api_workers=api_workers) as service:
            await service.serving()
            async with grpc.aio.insecure_channel(service.address) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=20)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            for token, code in ((None, "UNAUTHENTICATED"), ("key-a", "OK")):
                assert await asyncio.to_thread(list_services, service.address, token) == code

    run(test)


def list_services(address: str, token: str | None) -> str:
    """What reflection ends with. By a blocking client: that of asyncio may tell of its own write first."""
    with grpc.insecure_channel(address) as channel:
        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]),
            metadata=bearer_metadata(token),
            timeout=20,
        )
        with contextlib.suppress(grpc.RpcError):
            assert list(listing)
        return str(listing.code().name)


def test_a_call_that_is_refused_is_over_before_anything_of_it_is_sent(tmp_path: Path):
    async def test() -> None:
        async with Secured(tmp_path, {"a": ""}) as service:
            await service.serving()
            async with grpc.aio.insecure_channel(service.address) as channel:
                # Neither of them ever sends a message, or says that there is none.
                for method in ("/nanoserve.v1.InferenceService/Generate", "/no.such.Service/Method"):
                    call = channel.stream_stream(method)(timeout=20)
                    assert await call.code() is grpc.StatusCode.UNAUTHENTICATED

    run(test)


@WORKERS
def test_keys_are_read_again_and_hold_for_every_worker(api_workers: int, tmp_path: Path):
    async def test() -> None:
        async with Secured(tmp_path, {"a": "", "b": ""}, api_workers=api_workers) as service:
            await service.serving()
            async with service.client("b") as client:
                stream = client.stream(PROMPT, max_tokens=200, ignore_eos=True)
                await anext(stream)
                service.reload(a="", c="")
                await asyncio.sleep(0.3)
                assert set(await new_connections(service, "b")) == {grpc.StatusCode.UNAUTHENTICATED}
                assert set(await new_connections(service, "c")) == {grpc.StatusCode.OK}
                # What had begun goes on.
                assert (await stream.result()).usage.num_output_tokens == 200

    run(test)


@WORKERS
def test_a_garbled_file_leaves_the_keys_as_they_are(
    api_workers: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    async def test() -> None:
        async with Secured(tmp_path, {"a": ""}, api_workers=api_workers) as service:
            await service.serving()
            for content in ("[[keys]]\nsha256 = 'key-a'\n", "", "\0"):
                service.key_file.write_text(content)
                service.server.reload_keys()
            service.key_file.unlink()
            service.server.reload_keys()
            await asyncio.sleep(0.1)
            assert set(await new_connections(service, "a")) == {grpc.StatusCode.OK}

    run(test)
    log = "".join(capfd.readouterr())
    assert log.count("api keys not reloaded") == 4
    assert "key-a" not in log


def test_a_worker_that_comes_back_knows_the_keys(tmp_path: Path):
    async def test() -> None:
        async with Secured(tmp_path, {"a": ""}, api_workers=1) as service:
            await service.serving()
            service.reload(b="")
            pool: Any = service.server.api
            former = pool.processes[0]
            former.kill()
            async with asyncio.timeout(30):
                while pool.processes.get(0) in (None, former) or not pool.listening:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert await new_connections(service, "a", 1) == [grpc.StatusCode.UNAUTHENTICATED]
            assert await new_connections(service, "b", 1) == [grpc.StatusCode.OK]

    run(test)


@WORKERS
def test_concurrency_is_counted_over_all_workers_and_given_back(api_workers: int, tmp_path: Path):
    async def test() -> None:
        keys = {"a": "max_concurrency = 2", "b": ""}
        executor = Executor(f"unix:{tmp_path}/executor", step_ms=5)
        executor.start()
        async with Secured(tmp_path, keys, executor=executor, api_workers=api_workers) as service:
            await service.serving()
            async with service.client("a", connections=8) as client, service.client("b") as other:
                streams = [client.stream(PROMPT, max_tokens=200, ignore_eos=True) for _ in range(2)]
                for stream in streams:
                    await anext(stream)
                for _ in range(4):
                    third = client.stream(PROMPT, max_tokens=2)
                    with pytest.raises(ns.ResourceExhausted, match="2 may be") as refusal:
                        await anext(third)
                    assert refusal.value.retry_after_seconds
                assert (await other.generate(PROMPT, max_tokens=2)).usage
                streams[0].close()
                await until_accepted(client)
                assert (await streams[1].result()).usage.num_output_tokens == 200

    run(test)


def test_requests_whose_grammars_are_compiled_count_too(tmp_path: Path):
    async def test() -> None:
        executor = Executor(f"unix:{tmp_path}/executor", step_ms=10)
        executor.start()
        async with Secured(tmp_path, {"a": "max_concurrency = 2"}, executor=executor) as service:
            await service.serving()
            async with service.client("a") as client:
                guides = [ns.Guided(regex=f"[a-d]{{{length}}}") for length in range(20, 28)]
                asks = (client.generate(PROMPT, guided=guide, max_tokens=100) for guide in guides)
                answers = await asyncio.gather(*asks, return_exceptions=True)
                refusals = [answer for answer in answers if isinstance(answer, ns.ResourceExhausted)]
                whole = [answer for answer in answers if isinstance(answer, ns.Completion)]
                assert len(refusals) + len(whole) == len(guides)
                assert all("2 may be" in refusal.message for refusal in refusals)
                # They come at once, and are there for longer than that.
                assert len(whole) == 2
                await until_accepted(client)

    run(test)


async def until_accepted(client: ns.AsyncClient) -> None:
    """Tries as often as told to, until a request is accepted."""
    async with asyncio.timeout(20):
        while True:
            try:
                await client.generate(PROMPT, max_tokens=2)
            except ns.ResourceExhausted as refusal:
                await asyncio.sleep(refusal.retry_after_seconds or 0)
            else:
                return


@WORKERS
def test_tokens_of_prompt_and_output_count_against_the_rate_of_a_tenant(api_workers: int, tmp_path: Path):
    async def test() -> None:
        # The bucket holds 100 tokens; one request uses up 33 + 87, and leaves a debt of two seconds.
        keys = {"a": "tokens_per_second = 10", "b": ""}
        async with Secured(tmp_path, keys, api_workers=api_workers) as service:
            await service.serving()
            async with service.client("a", connections=8) as client, service.client("b") as other:
                await client.generate(PROMPT, max_tokens=87, ignore_eos=True)
                for _ in range(4):
                    with pytest.raises(ns.ResourceExhausted, match="10 tokens a second") as refusal:
                        await client.generate(PROMPT, max_tokens=2)
                    assert 0 < (refusal.value.retry_after_seconds or 0) <= 2.5
                assert (await other.generate(PROMPT, max_tokens=2)).usage
                await until_accepted(client)

    run(test)


@WORKERS
def test_prefixes_are_a_tenants_own_unless_they_are_shared_on_purpose(api_workers: int, tmp_path: Path):
    async def test() -> None:
        shared = "share_prefix_cache = true"
        keys = {"a": "", "b": "", "c": shared, "d": shared}
        async with Secured(tmp_path, keys, api_workers=api_workers) as service:
            await service.serving()

            async def num_cached(tenant: str, salt: str = "") -> int:
                async with service.client(tenant) as client:
                    return (await client.generate(PROMPT, max_tokens=1, cache_salt=salt)).num_cached_tokens

            assert await num_cached("a") == 0
            assert await num_cached("a") > 0
            assert await num_cached("b") == 0
            assert await num_cached("c") == 0
            assert await num_cached("d") > 0
            # Nothing that a request says finds what is another's, or what all share.
            for salt in ("a\0", "a", "\0", "\0a\0"):
                assert await num_cached("b", salt) == 0
                assert await num_cached("d", salt) == 0

    run(test)


def test_what_one_tenant_calls_its_requests_is_nothing_to_another(tmp_path: Path):
    async def test() -> None:
        async with Secured(tmp_path, {"a": "", "b": ""}) as service:
            await service.serving()
            async with service.client("a") as client, service.client("b") as other:
                stream = client.stream(PROMPT, max_tokens=200, ignore_eos=True, request_id="r")
                await anext(stream)
                with pytest.raises(ns.AlreadyExists):
                    await client.generate(PROMPT, max_tokens=2, request_id="r")
                assert (await other.generate(PROMPT, max_tokens=2, request_id="r")).request_id == "r"
                stream.close()

    run(test)


def test_callers_of_one_moment_are_never_taken_for_each_other(tmp_path: Path):
    async def test() -> None:
        tenants = [f"t{index}" for index in range(8)]
        keys = dict.fromkeys(tenants, "") | {"root": "admin = true"}
        async with Secured(tmp_path, keys, max_queue_size=1000) as service:
            await service.serving()
            clients = {tenant: service.client(tenant) for tenant in keys}

            async def ask(tenant: str, salt: int) -> tuple[str, int]:
                request = clients[tenant].generate(PROMPT, max_tokens=1, cache_salt=str(salt))
                completion = await request
                return tenant, completion.num_cached_tokens

            async def pry(tenant: str) -> None:
                with pytest.raises(ns.PermissionDenied):
                    await clients[tenant].get_load()

            asks = [ask(tenant, salt) for salt in range(4) for tenant in tenants]
            answers, *_ = await asyncio.gather(
                asyncio.gather(*asks), *map(pry, tenants), *(clients["root"].get_load() for _ in range(8))
            )
            assert all(num_cached == 0 for _, num_cached in answers)
            for client in clients.values():
                await client.close()

    run(test)
