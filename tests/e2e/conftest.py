"""Real processes over real sockets: what the end-to-end tests share."""

from collections.abc import Iterator

import pytest

from nanoserve_client.supervisor import LocalServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test of this folder."""
    for item in items:
        if "tests/e2e" in item.path.as_posix():
            item.add_marker("e2e")


@pytest.fixture(scope="session")
def demo_server() -> Iterator[LocalServer]:
    """The demo checkpoint, served with a cache that holds everything the tests ask for."""
    with LocalServer(executor_flags=["--verify", "--num-kv-blocks=2049", "--max-num-seqs=64"]) as server:
        yield server
