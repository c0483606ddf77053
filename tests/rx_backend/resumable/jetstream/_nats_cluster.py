"""Three real NATS servers that form a cluster, each of which can be killed and started again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ClusterInfo, StreamConfig

from tests.rx_backend.resumable.jetstream._nats import NatsServer
from tests.rx_backend.worker._processes import free_port

__all__ = ("NatsCluster", "nats_cluster")

T = TypeVar("T")

_WITHIN_S = 20.0
_AGAIN_S = 0.05


class NatsCluster:
    """
    The servers by name.

    Attributes:
        servers: Each server by its name.
    """

    def __init__(self, folder: Path) -> None:
        self.servers: dict[str, NatsServer] = {}
        self._routes = {name: free_port() for name in ("one", "two", "three")}
        for name in self._routes:
            (folder / name).mkdir()
            self.servers[name] = NatsServer(folder / name)

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers.values()]

    def start(self, name: str) -> None:
        """Start one server, on its ports and with its files."""
        routes = ", ".join(f"nats://127.0.0.1:{port}" for port in self._routes.values())
        listen = f"127.0.0.1:{self._routes[name]}"
        cluster = f"{{ name: three, listen: '{listen}', routes: [{routes}] }}"
        self.servers[name].start({"server_name": name, "cluster": cluster})

    def kill(self, *names: str) -> None:
        """Kill servers as `kill -9` does; all of them by default."""
        for name in names or self.servers:
            self.servers[name].kill()

    async def until_ready(self) -> None:
        """Wait until the servers have found each other, so that all three can store a stream."""
        probe = StreamConfig(name="probe", subjects=["probe"], num_replicas=3)
        async with asyncio.timeout(_WITHIN_S), _client(self.urls) as jetstream:
            while True:
                try:
                    await jetstream.add_stream(probe)  # pyright: ignore[reportUnknownMemberType]
                except nats.errors.Error:
                    await asyncio.sleep(_AGAIN_S)
                else:
                    await jetstream.delete_stream("probe")
                    return

    async def until_led(self, stream: str) -> str:
        """Wait until a stream has a leader; return its name."""
        return await self._until(stream, lambda found: found.leader)

    async def until_in_sync(self, stream: str) -> None:
        """Wait until a stream has a leader, and both others have what it has."""
        await self._until(
            stream,
            lambda found: (
                found.leader
                and len(found.replicas or []) == 2
                and all(each.current for each in found.replicas or [])
            ),
        )

    async def _until(self, stream: str, condition: Callable[[ClusterInfo], T | None]) -> T:
        async with asyncio.timeout(_WITHIN_S), _client(self.urls) as jetstream:
            while True:
                try:
                    info = await jetstream.stream_info(stream)
                except nats.errors.Error:
                    info = None
                if info and info.cluster and (found := condition(info.cluster)):
                    return found
                await asyncio.sleep(_AGAIN_S)


@asynccontextmanager
async def _client(urls: list[str]) -> AsyncGenerator[JetStreamContext]:
    client = Client()
    await client.connect(urls)
    try:
        yield JetStreamContext(client)
    finally:
        await client.close()


@contextmanager
def nats_cluster(folder: Path) -> Generator[NatsCluster]:
    """Run three servers with their files in *folder*."""
    cluster = NatsCluster(folder)
    try:
        for name in cluster.servers:
            cluster.start(name)
        yield cluster
    finally:
        cluster.kill()
