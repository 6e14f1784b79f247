"""A scheduler and an executor that ask each other who they are."""

from pathlib import Path
from typing import Any

import pytest
from certificates import Authorities
from scheduler_harness import Executor, Service, run

from executor_svc.profile.profiler import Profiling
from nanoserve.tls import ServerTls
from nanoserve.v1 import admin_pb2


def guarded(folder: Path, tls: ServerTls | None, secret: str | None) -> Executor:
    """An executor, started, that wants certificates or a secret."""
    executor = Executor(f"unix:{folder}/executor")
    executor.tls, executor.secret, executor.profiling = tls, secret, Profiling(None)
    executor.start()
    return executor


def secret_file(folder: Path, name: str, secret: str) -> str:
    (folder / name).write_text(secret + "\n")
    return str(folder / name)


@pytest.mark.parametrize("with_tls", [False, True])
def test_a_scheduler_with_the_right_papers_is_let_in(with_tls: bool, tmp_path: Path, request: Any):
    async def test() -> None:
        config: dict[str, Any] = {"executor_secret_file": secret_file(tmp_path, "s", "right")}
        tls = None
        if with_tls:
            authorities: Authorities = request.getfixturevalue("authorities")
            ours, other = authorities.ours, authorities.other
            tls = ServerTls(ours.good.cert, ours.good.key, other.ca)
            config |= {"executor_tls_ca": ours.ca}
            config |= {"executor_tls_cert": other.good.cert, "executor_tls_key": other.good.key}
        executor = guarded(tmp_path, tls, "right")
        async with Service(tmp_path, executor=executor, **config) as service:
            await service.serving()
            assert (await service.generate([1, 2, 3], max_tokens=5)).completed.usage.num_output_tokens == 5
            # Profiles go by calls of their own.
            await service.admin.StartProfile(admin_pb2.StartProfileRequest())
            await service.generate([1, 2, 3], max_tokens=5)
            assert (await service.admin.StopProfile(admin_pb2.StopProfileRequest())).num_steps
            # And so does the next session.
            await executor.stop()
            executor.start()
            assert (await service.generate([1, 2, 3], max_tokens=5)).completed.usage.num_output_tokens == 5

    run(test)


@pytest.mark.parametrize("shown", [None, "wrong"])
def test_a_scheduler_with_the_wrong_secret_ends_and_says_why(shown: str | None, tmp_path: Path):
    async def test() -> None:
        executor = guarded(tmp_path, None, "right")
        path = None if shown is None else secret_file(tmp_path, "s", shown)
        async with Service(tmp_path, executor=executor, executor_secret_file=path) as service:
            exit_ = await service.exit()
            assert exit_.is_failure
            assert "--executor-secret-file" in exit_.reason
            assert "wrong" not in exit_.reason

    run(test)


def test_an_executor_whose_certificate_is_another_authoritys_is_waited_for(
    tmp_path: Path, authorities: Authorities
):
    async def test() -> None:
        ours = authorities.ours
        executor = guarded(tmp_path, ServerTls(ours.good.cert, ours.good.key), None)
        config = {"executor_tls_ca": authorities.other.ca, "executor_loss_timeout": 1.0}
        async with Service(tmp_path, executor=executor, **config) as service:
            exit_ = await service.exit()
            assert exit_.is_failure
            assert "--executor" in exit_.reason
            assert not service.server.serving.is_set()

    run(test)


def test_a_secret_that_cannot_be_read_is_told_at_the_start(tmp_path: Path):
    async def test() -> None:
        service = Service(tmp_path, executor_secret_file=str(tmp_path / "missing"))
        with pytest.raises(ValueError, match="--executor-secret-file"):
            async with service:
                pass
        await service.executor.stop()

    run(test)
