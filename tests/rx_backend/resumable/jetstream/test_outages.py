"""NATS that is away, full, or not what it should be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StreamConfig

from rx_backend import EngineAdapter, PreprocessedRequest, RequestContext
from rx_backend.errors import CannotConnect, InvalidArgument
from rx_backend.protocols import LLMEngineOutput
from rx_backend.resumable import ResumableStreams
from rx_backend.resumable.jetstream import EntryTooLarge, JetStreamSource, StreamFull
from tests.engines import real_time
from tests.proxy import Proxy, proxy
from tests.rx_backend.resumable.jetstream._answers import (
    CountingEngine,
    expected,
    leaves_sockets,
    process,
    read,
    request,
    tokens,
    until,
)
from tests.rx_backend.resumable.jetstream._nats import NatsServer, nats_server

pytestmark = pytest.mark.cluster


async def connect(url: str) -> tuple[Client, Any]:
    """What an operator of NATS has."""
    client = Client()
    await client.connect(url)
    return client, JetStreamContext(client)


@real_time
async def test_nothing_is_lost_when_nats_is_killed(nats: NatsServer) -> None:
    """`kill -9`, away for 5 s in mid-stream: streams wait, those in memory do not notice."""
    engine, memory_engine = CountingEngine(0.02), CountingEngine(0.02)
    async with (
        process(nats.url, engine) as here,
        process(nats.url, CountingEngine()) as there,
        ResumableStreams(EngineAdapter(memory_engine)) as memory,
    ):
        begun = await here.start(request(150), owner="me")
        readers = [
            begun,
            await here.resume(begun.stream_id, owner="me"),
            await there.resume(begun.stream_id, owner="me"),
        ]
        reading = [asyncio.create_task(read(reader)) for reader in readers]
        in_memory = asyncio.create_task(read(await memory.start(request(150))))
        await until(lambda: min(reader.position for reader in readers) >= 20)
        nats.kill()
        away = asyncio.get_running_loop().time() + 5.0
        stood = [reader.position for reader in readers]
        assert await in_memory == expected(150)
        assert not any(task.done() for task in reading)
        # What was read before is all that can be read now, and the engine waits too.
        assert all(
            reader.position <= before + 70 for reader, before in zip(readers, stood, strict=True)
        )
        assert engine.made < 150
        await asyncio.sleep(away - asyncio.get_running_loop().time())
        nats.start()
        assert await asyncio.gather(*reading) == [expected(150)] * 3
        assert engine.made == 150
        assert len(engine.requests) == 1


@real_time
async def test_an_unreachable_nats_is_reported_at_the_start(tmp_path: Path) -> None:
    """As `CannotConnect`, with the address; nothing is left behind."""
    server = NatsServer(tmp_path)
    source = JetStreamSource(EngineAdapter(CountingEngine()), server.url, timeout_s=0.3)
    with pytest.raises(CannotConnect, match=server.url):
        await source.__aenter__()
    server.start()
    try:
        async with source:
            pass
    finally:
        server.kill()


@real_time
async def test_a_server_without_jetstream_is_reported(tmp_path: Path) -> None:
    """As `CannotConnect`."""
    with (
        nats_server(tmp_path, jetstream=False) as server,
        pytest.raises(CannotConnect, match="JetStream"),
    ):
        async with process(server.url, CountingEngine()):
            pass


@real_time
async def test_nothing_starts_while_nats_is_unreachable(nats: NatsServer) -> None:
    """Neither a new answer nor a look for an old one; the engine's stream is released."""
    engine = CountingEngine()
    async with process(nats.url, engine, timeout_s=0.3) as here:
        nats.kill()
        with pytest.raises(CannotConnect):
            await here.start(request(5))
        with pytest.raises(CannotConnect):
            await here.resume("A" * 22)
        assert engine.live == 0
        assert not len(here)
        nats.start()
        async with asyncio.timeout(20):
            while True:
                try:
                    reader = await here.start(request(5))
                except CannotConnect:
                    continue
                break
        assert await read(reader) == expected(5)


@real_time
async def test_everything_closes_while_nats_is_unreachable(nats: NatsServer) -> None:
    """In mid-stream, as the owner and as a follower: no task is left, and no close takes long."""
    async with (
        process(nats.url, CountingEngine(0.01)) as here,
        process(nats.url, CountingEngine()) as there,
    ):
        reader = await here.start(request(100_000))
        other = await there.resume(reader.stream_id)
        await anext(reader)
        await anext(other)
        nats.kill()
        await asyncio.sleep(0.1)


@leaves_sockets
@real_time
async def test_a_temporary_refusal_ends_nothing(nats: NatsServer) -> None:
    """Its refusal closes the client for good; a new one takes its place when the server has room."""
    async with (
        process(nats.url, CountingEngine(0.01)) as here,
        process(nats.url, CountingEngine()) as there,
    ):
        reader = await here.start(request(100))
        other = await there.resume(reader.stream_id)
        reading = [asyncio.create_task(read(each)) for each in (reader, other)]
        await until(lambda: min(reader.position, other.position) >= 5)
        nats.kill()
        nats.start({"authorization": "{ user: nobody, password: secret }"})
        # Longer than it takes to be refused.
        await asyncio.sleep(1.0)
        nats.kill()
        nats.start()
        assert await asyncio.gather(*reading) == [expected(100)] * 2


@real_time
async def test_a_full_stream_is_reported(nats: NatsServer) -> None:
    """Running answers end with the error, new ones are refused; what was stored stays readable."""
    engine = CountingEngine()
    async with process(nats.url, engine, stored_bytes=40_000) as here:
        # NATS counts a message a little larger than it was when it was let in, and then removes
        # the oldest one.
        await read(await here.start(request(10)))
        async with await here.start(request(10)) as reader:
            assert tokens([item async for item in reader]) == expected(10)
        async with await here.start(request(100_000)) as failing:
            items = [item async for item in failing]
        assert isinstance(items[-1].error, StreamFull)
        assert tokens(items[:-1]) == expected(100_000)[: len(items) - 1]
        await until(lambda: not engine.live)
        large = request(1, extra_args="x" * 1_000)
        with pytest.raises(StreamFull):
            await asyncio.gather(*(here.start(large) for _ in range(40)))
        async with process(nats.url, engine) as there:
            again = await there.resume(reader.stream_id)
            assert await read(again) == expected(10)


@real_time
async def test_batches_are_split_where_they_are_too_large(tmp_path: Path) -> None:
    """A batch larger than the server's `max_payload` is stored in parts; an item alone fails."""

    class Large(CountingEngine):
        async def generate(
            self, request: PreprocessedRequest, context: RequestContext
        ) -> AsyncGenerator[LLMEngineOutput]:
            async for chunk in super().generate(request, context):
                chunk.engine_data = "x" * 1_000
                yield chunk

    class TooLarge(CountingEngine):
        async def generate(
            self, request: PreprocessedRequest, context: RequestContext
        ) -> AsyncGenerator[LLMEngineOutput]:
            yield LLMEngineOutput([3])
            yield LLMEngineOutput([4], engine_data="x" * 10_000)

    with nats_server(tmp_path, {"max_payload": "4096"}) as server:
        async with process(server.url, Large()) as here, process(server.url, Large()) as there:
            reader = await here.start(request(200))
            other = await there.resume(reader.stream_id)
            assert await asyncio.gather(read(reader), read(other)) == [expected(200)] * 2
            with pytest.raises(EntryTooLarge):
                await here.start(request(1, extra_args="x" * 5_000))
        async with process(server.url, TooLarge()) as here:
            async with await here.start(request(2)) as reader:
                items = [item async for item in reader]
            assert tokens(items[:-1]) == [3]
            assert isinstance(items[-1].error, EntryTooLarge)


@real_time
async def test_a_stream_that_would_lose_items_is_rejected(nats: NatsServer) -> None:
    """One that is there already, with another configuration; it is left as it was."""
    client, jetstream = await connect(nats.url)
    config = StreamConfig(name="rx-streams", subjects=["rx-streams.*"])
    config.discard = DiscardPolicy.OLD
    await jetstream.add_stream(config)
    with pytest.raises(InvalidArgument, match="discard 'old': expected"):
        async with process(nats.url, CountingEngine()):
            pass
    await client.close()


@real_time
async def test_a_deleted_stream_is_reported(nats: NatsServer) -> None:
    """Running answers end with an error item, new ones are refused."""
    engine = CountingEngine(0.01)
    async with process(nats.url, engine) as here:
        reader = await here.start(request(100_000))
        await anext(reader)
        client, jetstream = await connect(nats.url)
        await jetstream.delete_stream("rx-streams")
        await client.close()
        items = [item async for item in reader]
        assert "deleted" in str(items[-1].error)
        with pytest.raises(Exception, match="deleted"):
            await here.start(request(1))
        assert engine.live == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lease_s": 0}, "lease_s: expected a number of seconds, 0.2 or more, got 0"),
        ({"name": "a.b"}, "name: expected letters"),
        ({"replicas": 6}, "replicas: expected a whole number of servers, 1 to 5, got 6"),
        ({"max_age_s": float("nan")}, "max_age_s: expected"),
        ({"max_bytes": -1}, "max_bytes: expected"),
        ({"keep_s": "60"}, "keep_s: expected"),
        ({"max_takeovers": True}, "max_takeovers: expected"),
        ({"batch_items": 0}, "batch_items: expected"),
        ({"connect": {"error_cb": None}}, "connect: error_cb"),
        ({"connect": 7}, "connect: expected a mapping of options, got 7"),
        ({"servers": []}, "servers: expected"),
        ({"servers": [1]}, "servers: expected"),
        ({"adapter": None}, "adapter: expected an EngineAdapter, got NoneType"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, object], message: str) -> None:
    """When the source is made, before anything is connected."""
    arguments = {"adapter": EngineAdapter(CountingEngine()), "servers": "nats://x", **options}
    with pytest.raises(InvalidArgument, match=message):
        JetStreamSource(**arguments)  # type: ignore[arg-type]


@leaves_sockets
@real_time
async def test_a_lost_acknowledgement_duplicates_nothing(nats: NatsServer, between: Proxy) -> None:
    """What was stored without its process knowing is found there, and not stored again."""
    engine = CountingEngine(0.005)
    async with (
        process(between.url, engine, lease_s=600.0, timeout_s=0.5) as here,
        process(nats.url, CountingEngine(), lease_s=600.0) as there,
    ):
        reader = await here.start(request(400))
        other = await there.resume(reader.stream_id)
        reading = [asyncio.create_task(read(each)) for each in (reader, other)]
        lost = 0
        for position in (1, 50, 100, 150):
            await until(lambda position=position: reader.position >= position)
            between.drops_answers = True
            await until(lambda: other.position > reader.position or reading[0].done())
            lost += other.position > reader.position
            between.cut()
        assert await asyncio.gather(*reading) == [expected(400)] * 2
        assert lost
        assert len(engine.requests) == 1


FAULTS = st.lists(
    st.tuples(
        st.sampled_from(["first", "second"]),
        st.sampled_from(["lose answers", "cut", "silence"]),
        st.floats(0.0, 0.15),
        st.floats(0.0, 1.2),
    ),
    min_size=1,
    max_size=4,
)


@leaves_sockets
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=FAULTS)
def test_no_network_fault_loses_or_duplicates_a_token(
    nats: NatsServer, faults: list[tuple[str, str, float, float]]
) -> None:
    """
    Acknowledgements are lost, connections are cut and stand still, for less and more than the lease.

    Two processes take over from each other, back and forth; their readers have the same tokens, and
    a third process that only looks sees them too.
    """

    async def main() -> None:
        async with (
            process(first.url, CountingEngine(0.01), timeout_s=0.5, max_takeovers=99) as here,
            process(second.url, CountingEngine(0.01), timeout_s=0.5, max_takeovers=99) as there,
        ):
            reader = await here.start(request(60))
            other = await there.resume(reader.stream_id)
            reading = [asyncio.create_task(read(each)) for each in (reader, other)]
            for where, fault, after_s, for_s in faults:
                await asyncio.sleep(after_s)
                chosen = first if where == "first" else second
                chosen.drops_answers = fault == "lose answers"
                chosen.is_silent = fault == "silence"
                if fault != "cut":
                    await asyncio.sleep(for_s)
                chosen.cut()
            assert await asyncio.gather(*reading) == [expected(60)] * 2
            async with process(nats.url, CountingEngine()) as third:
                assert await read(await third.resume(reader.stream_id)) == expected(60)

    with proxy(nats.port, "nats") as first, proxy(nats.port, "nats") as second:
        asyncio.run(main())
