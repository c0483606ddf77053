"""Three NATS servers that store each answer: one may die, and all may be restarted one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from rx_backend.errors import CannotConnect, InvalidArgument
from rx_backend.resumable import ResumableReader, ResumableStreams
from tests.engines import real_time
from tests.logs import capture_logs
from tests.rx_backend.resumable.jetstream._answers import (
    CountingEngine,
    expected,
    leaves_sockets,
    process,
    read,
    request,
    until,
)
from tests.rx_backend.resumable.jetstream._nats import NatsServer
from tests.rx_backend.resumable.jetstream._nats_cluster import NatsCluster, nats_cluster

pytestmark = [
    pytest.mark.cluster,
    # Elections take 4 to 9 seconds.
    pytest.mark.timeout(120),
    leaves_sockets,
]

# More than the answer will have made by the time that it is cut short.
ENDLESS = 1_000_000
# An election, and the time until each client has noticed.
_ELECTED_S = 60.0


@dataclass
class Answer:
    """An answer that runs on and on, read in the process that began it and in another one."""

    here: ResumableStreams
    there: ResumableStreams
    readers: list[ResumableReader]
    reading: list[asyncio.Task[list[int]]]

    @property
    def furthest(self) -> int:
        """How many items a reader has got."""
        return max(reader.position for reader in self.readers)

    async def until_read(self, position: int) -> None:
        """Wait until both readers have so many items."""
        await until(lambda: min(reader.position for reader in self.readers) >= position, _ELECTED_S)

    async def stop(self, streams: ResumableStreams) -> int:
        """Check that all readers got the same tokens, each once; return how many."""
        stream_id = self.readers[0].stream_id
        await streams.stop(stream_id)
        while_it_ran = await asyncio.gather(*self.reading)
        later = await read(await streams.resume(stream_id))
        for got in (*while_it_ran, later):
            assert got == expected(len(later))
        return len(later)


@asynccontextmanager
async def answer_of(cluster: NatsCluster) -> AsyncGenerator[Answer]:
    """Begin an answer, and wait until all three servers have its first items."""
    await cluster.until_ready()
    engine, other_engine = CountingEngine(0.02), CountingEngine(0.02)
    async with (
        process(cluster.urls, engine, replicas=3, lease_s=3.0) as here,
        process(cluster.urls, other_engine, replicas=3, lease_s=3.0) as there,
    ):
        begun = await here.start(request(ENDLESS))
        readers = [begun, await there.resume(begun.stream_id)]
        reading = [asyncio.create_task(read(reader)) for reader in readers]
        answer = Answer(here, there, readers, reading)
        await answer.until_read(20)
        await cluster.until_in_sync("rx-streams")
        yield answer
        assert len(engine.requests) + len(other_engine.requests) == 1


@real_time
async def test_an_answer_continues_when_its_leader_is_killed(tmp_path: Path) -> None:
    """`kill -9` of the server that leads the stream; it comes back later, and misses nothing."""
    with nats_cluster(tmp_path) as cluster:
        async with answer_of(cluster) as answer:
            killed = await cluster.until_led("rx-streams")
            cluster.kill(killed)
            acknowledged = answer.furthest
            # With two of three, which elect a leader within ten seconds; its consumers come after.
            await answer.until_read(acknowledged + 100)
            assert await cluster.until_led("rx-streams") != killed
            cluster.start(killed)
            await cluster.until_in_sync("rx-streams")
            assert await answer.stop(answer.here) >= acknowledged + 100


@real_time
async def test_an_answer_survives_a_rolling_restart(tmp_path: Path) -> None:
    """As an update of the cluster does, the leader first."""
    with nats_cluster(tmp_path) as cluster:
        async with answer_of(cluster) as answer:
            leader = await cluster.until_led("rx-streams")
            for name in sorted(cluster.servers, key=lambda name: name != leader):
                cluster.kill(name)
                cluster.start(name)
                await cluster.until_in_sync("rx-streams")
                await answer.until_read(answer.furthest + 1)
            await answer.stop(answer.there)


@real_time
async def test_too_few_servers_are_reported(tmp_path: Path) -> None:
    """The option is named, and nothing is created with fewer replicas."""
    with nats_cluster(tmp_path) as cluster:
        await cluster.until_ready()
        with pytest.raises(CannotConnect, match="replicas: expected at least 5 running servers"):
            async with process(cluster.urls, CountingEngine(), replicas=5):
                pass
        # No stream has been created meanwhile, so this one is.
        async with process(cluster.urls, CountingEngine(), replicas=3) as here:
            assert await read(await here.start(request(5))) == expected(5)


@real_time
async def test_a_single_server_is_reported_where_more_are_required(nats: NatsServer) -> None:
    """As a wrong option, which it is."""
    with pytest.raises(InvalidArgument, match=r"replicas: expected 1 .* got 3"):
        async with process(nats.url, CountingEngine(), replicas=3):
            pass


@real_time
async def test_an_existing_stream_with_fewer_replicas_is_logged(nats: NatsServer) -> None:
    """It keeps its own number of replicas, so the log says so."""
    async with process(nats.url, CountingEngine()):
        pass
    with capture_logs() as logs:
        async with process(nats.url, CountingEngine(), replicas=3) as here:
            assert await read(await here.start(request(5))) == expected(5)
    (warning,) = [line for line in logs if "replicas" in line["event"]]
    assert (warning["replicas"], warning["wanted"]) == (1, 3)
