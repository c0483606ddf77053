"""The real Dynamo runtime in the test's own process: discovery in a folder, streams on loopback."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import pytest

NEEDS = pytest.mark.needs("dynamo")
ENVIRONMENT = {
    "DYN_DISCOVERY_BACKEND": "file",
    "DYN_EVENT_PLANE": "zmq",
    "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "0",
    "DYN_REQUEST_PLANE": "tcp",
    "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
    "DYN_TCP_RPC_HOST": "127.0.0.1",
}


@pytest.fixture(autouse=True)
def _discovery(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test a cluster of its own."""
    for name, value in {**ENVIRONMENT, "DYN_FILE_KV": str(tmp_path / "discovery")}.items():
        monkeypatch.setenv(name, value)


discovery = _discovery


class Cluster:
    """The runtime as a test uses it: it serves handlers and calls endpoints."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._served: list[asyncio.Future[Any]] = []

    async def serve(self, handler: object, name: str = "generate") -> Any:
        """Serve a handler, and give a client that can reach it."""
        endpoint = self._runtime.endpoint(f"rx.backend.{name}")
        self._served.append(asyncio.ensure_future(endpoint.serve_endpoint(handler)))
        return await self.client(name)

    async def client(self, name: str = "generate") -> Any:
        client = await self._runtime.endpoint(f"rx.backend.{name}").client()
        await client.wait_for_instances()
        return client

    async def close(self) -> None:
        self._runtime.shutdown()
        await asyncio.gather(*self._served)


@asynccontextmanager
async def cluster() -> AsyncGenerator[Cluster]:
    """Join the runtime, and leave it when everything in flight has ended."""
    loop = asyncio.get_running_loop()
    joined = Cluster(import_module("dynamo.runtime").DistributedRuntime(loop, "file", "tcp"))
    try:
        yield joined
    finally:
        await joined.close()


def new_context(id: str = "r1", metadata: dict[str, str] | None = None) -> Any:
    """Make a context of the runtime's own."""
    return import_module("dynamo.runtime").Context(id, metadata)


async def received(stream: Awaitable[Any]) -> list[dict[str, Any]]:
    """Read a stream to its end: the data of its items."""
    return [item.data() async for item in await stream]


_READER = """
import asyncio
from dynamo.runtime import DistributedRuntime

async def main():
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    client = await runtime.endpoint("rx.backend.generate").client()
    await client.wait_for_instances()
    async for _item in await client.round_robin({"token_ids": [1]}):
        print(end=".", flush=True)

asyncio.run(main())
"""


@asynccontextmanager
async def killed_reader() -> AsyncGenerator[asyncio.StreamReader]:
    """Read a stream in a process of its own, a dot for each item; it is killed at the end."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", _READER, stdout=pipe)
    assert child.stdout is not None
    try:
        yield child.stdout
    finally:
        child.kill()
        await child.wait()


async def settled(condition: Callable[[], object]) -> None:
    """Go on once *condition* is true; the test's timeout is the limit."""
    # What the runtime's threads do tells nobody. In between they need the interpreter.
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)
