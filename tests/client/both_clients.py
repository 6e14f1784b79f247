"""One way to call the sync and the async client."""

import asyncio
from typing import Any

import pytest

import nanoserve_client as ns

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


def call(kind: str, address: str, method: str, *args: Any, connect: Any = None, **params: Any) -> Any:
    """Calls a method of the client of one kind; for `stream` returns the list of events."""
    if kind == "sync":
        with ns.Client(address, **(connect or {})) as client:
            result = getattr(client, method)(*args, **params)
            return list(result) if method == "stream" else result

    async def run() -> Any:
        async with ns.AsyncClient(address, **(connect or {})) as client:
            result = getattr(client, method)(*args, **params)
            return [event async for event in result] if method == "stream" else await result

    return asyncio.run(run())
