"""Answers that one process makes and others hand out, on a server that is always there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from operators import PositionUnknown
from operators.authoring import Stage, operator
from rx_backend import EngineAdapter, FailoverEngine, PreprocessedRequest, RequestContext
from rx_backend.errors import Disconnected, InvalidArgument
from rx_backend.protocols import Annotated, LLMEngineOutput
from rx_backend.resumable import ResumableStreams, StreamNotFound
from rx_backend.resumable.jetstream import JetStreamSource
from tests.engines import real_time
from tests.proxy import Proxy
from tests.rx_backend.resumable.jetstream._answers import (
    CountingEngine,
    expected,
    process,
    request,
    tokens,
    until,
)
from tests.rx_backend.resumable.jetstream._nats import NatsServer

pytestmark = pytest.mark.cluster

Item = Annotated[LLMEngineOutput]


@real_time
async def test_another_process_resumes_from_every_position(nats: NatsServer) -> None:
    """Of a running answer and of an ended one, each position is found elsewhere."""

    async def rest_of_all(streams: ResumableStreams, stream_id: str) -> list[list[int]]:
        """What a client has that read up to a position in one process, and on in another."""

        async def rest(after: int) -> list[int]:
            while True:
                try:
                    reader = await streams.resume(stream_id, after, owner="me")
                except PositionUnknown:
                    await asyncio.sleep(0.005)
                else:
                    async with reader:
                        got = tokens([item async for item in reader])
                    return expected(40)[:after] + got

        return await asyncio.gather(*map(rest, range(41)))

    async with (
        process(nats.url, CountingEngine(0.01)) as here,
        process(nats.url, CountingEngine()) as there,
        await here.start(request(40), owner="me") as reader,
    ):
        assert await rest_of_all(there, reader.stream_id) == [expected(40)] * 41
        async with process(nats.url, CountingEngine()) as third:
            assert await rest_of_all(third, reader.stream_id) == [expected(40)] * 41


@real_time
async def test_items_arrive_unchanged(nats: NatsServer) -> None:
    """Everything that an item carries is the same in another process, errors too."""

    class Failing(CountingEngine):
        async def generate(
            self, request: PreprocessedRequest, context: RequestContext
        ) -> AsyncGenerator[LLMEngineOutput]:
            chunk = LLMEngineOutput(
                [1], tokens=["a"], cum_log_probs=float("-inf"), log_probs=[-0.5]
            )
            chunk.engine_data = {"any": [1, None, "x"]}
            yield chunk
            raise Disconnected("the worker is gone") from OSError("reset")

    async with (
        process(nats.url, Failing()) as here,
        process(nats.url, CountingEngine()) as there,
        await here.start(request(3)) as first,
        await there.resume(first.stream_id) as second,
    ):
        made, read = [item async for item in first], [item async for item in second]
    assert [item.data for item in made] == [item.data for item in read]
    assert [item.id for item in made] == [item.id for item in read]
    for items in (made, read):
        assert isinstance(items[-1].error, Disconnected)
        assert str(items[-1].error) == "BackendDisconnected: the worker is gone"


@pytest.mark.rows("P10")
@real_time
async def test_text_that_can_not_be_encoded_is_repaired(nats: NatsServer) -> None:
    """Half of a surrogate pair costs no item: in chunks, in errors, in what belongs to the request."""

    class Cutting(CountingEngine):
        async def generate(
            self, request: PreprocessedRequest, context: RequestContext
        ) -> AsyncGenerator[LLMEngineOutput]:
            yield LLMEngineOutput([1], text="a\ud83d", engine_data={"\ud83d": ["\ud83d", 1]})
            raise Disconnected("lost \ud83d")

    context = RequestContext(metadata={"name": "\ud83d"})
    async with (
        process(nats.url, Cutting()) as here,
        process(nats.url, CountingEngine()) as there,
        await here.start(request(3, extra_args="\ud83d"), context) as first,
        await there.resume(first.stream_id) as second,
    ):
        made, read = [item async for item in first], [item async for item in second]
    assert [item.data and item.data.text for item in made] == ["a\ud83d", None]
    assert [item.data and item.data.text for item in read] == ["a\ufffd", None]
    assert read[0].data is not None
    assert read[0].data.engine_data == {"\ufffd": ["\ufffd", 1]}
    assert str(read[1].error) == "BackendDisconnected: lost \ufffd"


@pytest.mark.parametrize("wrong", [object(), 2**70])
@real_time
async def test_an_item_that_can_not_be_stored_ends_the_answer(
    nats: NatsServer, wrong: object
) -> None:
    """With the same error in every process, after all items that came before."""

    class Odd(CountingEngine):
        async def generate(
            self, request: PreprocessedRequest, context: RequestContext
        ) -> AsyncGenerator[LLMEngineOutput]:
            for token in range(3, 6):
                yield LLMEngineOutput([token])
            yield LLMEngineOutput([6], engine_data=wrong)
            await context.stopped()

    engine, taking = Odd(), CountingEngine()
    async with (
        process(nats.url, engine) as here,
        process(nats.url, taking) as there,
        await here.start(request(9)) as first,
    ):
        for reader in (first, await there.resume(first.stream_id)):
            async with reader:
                *items, last = [item async for item in reader]
            assert tokens(items) == [3, 4, 5]
            assert isinstance(last.error, InvalidArgument)
            assert "plain data" in last.error.message
        assert not taking.requests


@real_time
async def test_items_of_another_type_are_rejected(nats: NatsServer) -> None:
    """A pipeline that ends in something else than annotated items can't be resumed."""

    @operator
    def as_text() -> Stage[Item, str]:
        item = yield
        while True:
            item = yield item.data.text or "" if item.data else ""

    adapter: Any = EngineAdapter(CountingEngine()).with_operators(as_text())
    async with (
        JetStreamSource(adapter, nats.url) as source,
        ResumableStreams(source) as streams,
        await streams.start(request(3)) as reader,
    ):
        (item,) = [item async for item in reader]
    assert isinstance(item.error, InvalidArgument)
    assert "expected Annotated items for a resumable stream, got str" in item.error.message


@real_time
async def test_a_wrong_or_stolen_id_is_not_found(nats: NatsServer) -> None:
    """Neither one that was never given out, nor a pattern of subjects, nor another owner's."""
    wrong = ("x", "a.b", "*", ">", "", "no such-id", "é" * 22, "A" * 22)
    async with (
        process(nats.url, CountingEngine(0.01)) as here,
        process(nats.url, CountingEngine()) as there,
        await here.start(request(30), owner="me") as reader,
    ):
        stolen = [(reader.stream_id, owner) for owner in (None, "you")]
        for asked, owner in [*((each, "me") for each in wrong), *stolen]:
            with pytest.raises(StreamNotFound):
                await there.resume(asked, owner=owner)
            with pytest.raises(StreamNotFound):
                await there.stop(asked, owner=owner)
        assert tokens([item async for item in reader]) == expected(30)


@real_time
async def test_a_position_beyond_the_head_is_unknown(nats: NatsServer) -> None:
    """A client that claims more than was generated gets an error, and leaks nothing."""
    async with (
        process(nats.url, CountingEngine()) as here,
        process(nats.url, CountingEngine(), linger_s=0.0) as there,
        await here.start(request(5)) as reader,
    ):
        assert tokens([item async for item in reader]) == expected(5)
        with pytest.raises(PositionUnknown):
            await there.resume(reader.stream_id, 6)
        await until(lambda: not len(there))


@real_time
async def test_an_ended_answer_is_found_for_keep_s(nats: NatsServer) -> None:
    """Then it is gone: here, elsewhere and on the server."""
    async with (
        process(nats.url, CountingEngine(), keep_s=1.0) as here,
        process(nats.url, CountingEngine(), keep_s=1.0) as there,
    ):
        async with await here.start(request(5)) as reader:
            assert tokens([item async for item in reader]) == expected(5)
        async with await there.resume(reader.stream_id, 2) as again:
            assert tokens([item async for item in again]) == expected(5, 2)
        await until(lambda: not len(here) and not len(there))
        for streams in (here, there):
            with pytest.raises(StreamNotFound):
                await streams.resume(reader.stream_id)


def test_a_stop_in_another_process_reaches_the_engine(nats: NatsServer) -> None:
    """Whether that process reads the answer or not; all readers get the terminal."""

    async def main(*, reads: bool) -> None:
        engine = CountingEngine(0.01)
        async with (
            AsyncExitStack() as stack,
            process(nats.url, engine) as here,
            process(nats.url, CountingEngine()) as there,
            await here.start(request(100_000), owner="me") as reader,
        ):
            await anext(reader)
            if reads:
                await stack.enter_async_context(await there.resume(reader.stream_id, owner="me"))
            await there.stop(reader.stream_id, owner="me")
            items = [item async for item in reader]
            assert items[-1].data == LLMEngineOutput.cancelled()
            await until(lambda: not engine.live)

    asyncio.run(main(reads=False))
    asyncio.run(main(reads=True))


@real_time
async def test_readers_in_other_processes_keep_an_answer_going(nats: NatsServer) -> None:
    """Without a reader here the engine continues, as far ahead of the one elsewhere as it may."""
    engine = CountingEngine()
    async with (
        process(nats.url, engine, linger_s=0.3, max_ahead=8, batch_items=4) as here,
        process(nats.url, CountingEngine(), linger_s=0.3, max_ahead=8) as there,
    ):
        reader = await here.start(request(200))
        other = await there.resume(reader.stream_id)
        items = [await anext(other)]
        await reader.aclose()
        # Longer than it would linger without a reader.
        for _ in range(5):
            await asyncio.sleep(0.2)
            items.append(await anext(other))
            assert engine.made <= other.position + 8 + 8 + 4 + 2
        items += [item async for item in other]
        await other.aclose()
        assert tokens(items) == expected(200)


@real_time
async def test_an_answer_without_readers_anywhere_is_stopped(nats: NatsServer) -> None:
    """When the last reader has left, wherever it was, the engine is stopped after the linger."""
    engine = CountingEngine(0.005)
    async with (
        process(nats.url, engine, linger_s=0.2) as here,
        process(nats.url, CountingEngine(), linger_s=0.2) as there,
    ):
        reader = await here.start(request(100_000))
        other = await there.resume(reader.stream_id)
        await reader.aclose()
        await anext(other)
        await other.aclose()
        await until(lambda: not engine.live)
        async with await there.resume(reader.stream_id) as late:
            items = [item async for item in late]
        assert items[-1].data == LLMEngineOutput.cancelled()


@real_time
async def test_readers_of_a_process_that_dies_are_forgotten(
    nats: NatsServer, between: Proxy
) -> None:
    """A process that is not heard of for the lease holds nothing up."""
    engine = CountingEngine(0.005)
    async with process(nats.url, engine, linger_s=0.2) as here:
        reader = await here.start(request(100_000))
        async with process(between.url, CountingEngine()) as there:
            other = await there.resume(reader.stream_id)
            await anext(other)
            await reader.aclose()
            between.is_silent = True
            await until(lambda: not engine.live)
            between.cut()


@real_time
async def test_a_process_hands_its_answers_over_at_shutdown(nats: NatsServer) -> None:
    """In mid-stream, at once: readers elsewhere do not wait for the lease."""
    first, second = CountingEngine(0.01), CountingEngine()
    async with process(nats.url, second, lease_s=600.0) as there:
        async with process(nats.url, first, lease_s=600.0) as here:
            reader = await here.start(request(500))
            other = await there.resume(reader.stream_id)
            items = [await anext(other) for _ in range(5)]
        assert first.live == 0
        items += [item async for item in other]
        await other.aclose()
        assert tokens(items) == expected(500)
        assert first.made + second.made <= 500 + 2


@real_time
async def test_a_lost_worker_is_resumed_by_the_engine(nats: NatsServer) -> None:
    """A `FailoverEngine` resumes on its next engine; no reader notices, wherever it is."""

    class Lost(CountingEngine):
        async def generate(
            self, request: PreprocessedRequest, context: RequestContext
        ) -> AsyncGenerator[LLMEngineOutput]:
            async for chunk in super().generate(request, context):
                yield chunk
                if self.made == 10:
                    raise Disconnected("the worker is gone")

    engine = FailoverEngine(Lost(0.005), CountingEngine(0.005))
    async with (
        process(nats.url, engine) as here,
        process(nats.url, CountingEngine()) as there,
        await here.start(request(30)) as reader,
        await there.resume(reader.stream_id) as other,
    ):
        made, read = [item async for item in reader], [item async for item in other]
        assert tokens(made) == tokens(read) == expected(30)
        assert made[-1].data == read[-1].data


@real_time
async def test_an_id_or_request_that_can_not_be_stored_is_rejected(nats: NatsServer) -> None:
    """By name, before the engine is asked or with its stream released."""
    engine = CountingEngine()
    async with process(nats.url, engine) as here:
        with pytest.raises(InvalidArgument, match="plain data"):
            await here.start(request(3, extra_args=object()))
        assert engine.live == 0
        assert not len(here)
