"""Three NATS servers that store each answer: one may die, and all may be restarted one by one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rx_backend.errors import CannotConnect, InvalidArgument
from rx_backend.resumable import ResumableReader, ResumableStreams
from tests.logs import capture_logs
from tests.rx_backend.resumable.jetstream._answers import (
    CountingEngine,
    expected,
    process,
    request,
    tokens,
    until,
)
from tests.rx_backend.resumable.jetstream._nats import NatsServer
from tests.rx_backend.resumable.jetstream._nats_cluster import NatsCluster, nats_cluster

pytestmark = [
    pytest.mark.cluster,
    # Elections take 4 to 9 seconds.
    pytest.mark.timeout(120),
    # The client leaves the sockets of attempts to connect that fail to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

# More than the answer will have made by the time that it is cut short.
ENDLESS = 1_000_000
# An election, and the time until each client has noticed.
_ELECTED_S = 60.0


async def read_until_stopped(reader: ResumableReader) -> list[int]:
    async with reader:
        return tokens([item async for item in reader])


async def stop_and_check(
    streams: ResumableStreams, begun: ResumableReader, reading: list[asyncio.Task[list[int]]]
) -> int:
    """Check that all readers got the same tokens, each once; return how many."""
    await streams.stop(begun.stream_id)
    read = await asyncio.gather(*reading)
    later = await read_until_stopped(await streams.resume(begun.stream_id))
    for got in (*read, later):
        assert got == expected(len(later))
    return len(later)


def test_an_answer_goes_on_when_its_leader_is_killed(tmp_path: Path) -> None:
    """`kill -9` of the server that leads the stream; it comes back later, and misses nothing."""

    async def main(cluster: NatsCluster) -> None:
        await cluster.until_ready()
        engine, other_engine = CountingEngine(0.02), CountingEngine(0.02)
        async with (
            process(cluster.urls, engine, replicas=3, lease_s=3.0) as here,
            process(cluster.urls, other_engine, replicas=3, lease_s=3.0) as there,
        ):
            begun = await here.start(request(ENDLESS))
            readers = [begun, await there.resume(begun.stream_id)]
            reading = [asyncio.create_task(read_until_stopped(reader)) for reader in readers]
            await until(lambda: min(reader.position for reader in readers) >= 20)
            await cluster.until_in_sync("rx-streams")
            killed = await cluster.until_led("rx-streams")
            cluster.kill(killed)
            acknowledged = max(reader.position for reader in readers)
            # With two of three, which elect a leader within ten seconds; its consumers come after.
            await until(
                lambda: min(reader.position for reader in readers) >= acknowledged + 100, _ELECTED_S
            )
            assert await cluster.until_led("rx-streams") != killed
            cluster.start(killed)
            await cluster.until_in_sync("rx-streams")
            assert await stop_and_check(here, begun, reading) >= acknowledged + 100
            assert len(engine.requests) + len(other_engine.requests) == 1

    with nats_cluster(tmp_path) as cluster:
        asyncio.run(main(cluster))


def test_an_answer_goes_on_while_all_servers_are_restarted_one_by_one(tmp_path: Path) -> None:
    """As an update of the cluster does, the leader first."""

    async def main(cluster: NatsCluster) -> None:
        await cluster.until_ready()
        engine, other_engine = CountingEngine(0.02), CountingEngine(0.02)
        async with (
            process(cluster.urls, engine, replicas=3, lease_s=3.0) as here,
            process(cluster.urls, other_engine, replicas=3, lease_s=3.0) as there,
        ):
            begun = await here.start(request(ENDLESS))
            readers = [begun, await there.resume(begun.stream_id)]
            reading = [asyncio.create_task(read_until_stopped(reader)) for reader in readers]
            await until(lambda: min(reader.position for reader in readers) >= 20)
            leader = await cluster.until_led("rx-streams")
            for name in sorted(cluster.servers, key=lambda name: name != leader):
                cluster.kill(name)
                cluster.start(name)
                await cluster.until_in_sync("rx-streams")
                at = max(reader.position for reader in readers)
                await until(
                    lambda at=at: min(reader.position for reader in readers) > at, _ELECTED_S
                )
            await stop_and_check(there, begun, reading)
            assert len(engine.requests) + len(other_engine.requests) == 1

    with nats_cluster(tmp_path) as cluster:
        asyncio.run(main(cluster))


def test_too_few_servers_are_told(tmp_path: Path) -> None:
    """The option is named, and nothing is created with fewer replicas."""

    async def main(cluster: NatsCluster) -> None:
        await cluster.until_ready()
        with pytest.raises(CannotConnect, match="replicas: expected 5 servers"):
            async with process(cluster.urls, CountingEngine(), replicas=5):
                pass
        # No stream has been created meanwhile, so this one is.
        async with process(cluster.urls, CountingEngine(), replicas=3) as here:
            assert await read_until_stopped(await here.start(request(5))) == expected(5)

    with nats_cluster(tmp_path) as cluster:
        asyncio.run(main(cluster))


def test_a_single_server_is_told_where_more_are_wanted(nats: NatsServer) -> None:
    """As a wrong option, which it is."""

    async def main() -> None:
        with pytest.raises(InvalidArgument, match=r"replicas: expected 1 .* got 3"):
            async with process(nats.url, CountingEngine(), replicas=3):
                pass

    asyncio.run(main())


def test_a_stream_that_has_less_replicas_already_is_logged(nats: NatsServer) -> None:
    """It keeps its own, which whoever asked for more has to know."""

    async def main() -> None:
        async with process(nats.url, CountingEngine()):
            pass
        with capture_logs() as logs:
            async with process(nats.url, CountingEngine(), replicas=3) as here:
                assert await read_until_stopped(await here.start(request(5))) == expected(5)
        (warning,) = [line for line in logs if "replicas" in line["event"]]
        assert (warning["replicas"], warning["wanted"]) == (1, 3)

    asyncio.run(main())
