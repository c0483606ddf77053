"""Our handler, served by the real runtime and called through its own client."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, TypeAlias

import pytest

from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.dynamo import Handler, serving
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.errors import KINDS, Unknown
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest, convert_output, to_builtins
from tests.engines import ScriptedEngine, real_time, request, stop, token
from tests.rx_backend.dynamo._runtime import (
    NEEDS,
    cluster,
    killed_reader,
    new_context,
    received,
    settled,
)
from tests.rx_backend.test_protocols_dynamo import CLASSES
from tests.spans import Spans

pytestmark = NEEDS

EITHER_WAY = pytest.mark.parametrize("pushed", [True, False])


def either(handler: Handler, pushed: bool) -> Handler:
    """Return the handler as it is, or as one that the runtime has to pull."""

    def pulled(request: Mapping[str, Any], context: Any) -> AsyncIterator[dict[str, Any]]:
        return handler(request, context)

    return handler if pushed else pulled


class Endless(LLMEngine):
    """Gives tokens until a request is stopped, then the ``cancelled`` terminal."""

    def __init__(self) -> None:
        self.aborts: list[str] = []
        self.closed = 0

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="endless")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        try:
            while not context.is_stopped:
                yield token(1)
                await asyncio.sleep(0)
            yield LLMEngineOutput.cancelled()
        finally:
            self.closed += 1

    async def abort(self, context: RequestContext) -> None:
        self.aborts.append(context.id)


@pytest.mark.rows("S1", "S2")
@EITHER_WAY
def test_a_stream_arrives_unchanged(pushed: bool, spans: Spans) -> None:
    """Tokens, order, finish reason and the trace stamp; the engine sees id and metadata."""
    seen: list[RequestContext] = []
    engine = ScriptedEngine(seen.append, *map(token, range(5)), stop())

    @real_time
    async def run() -> None:
        handler = serving(EngineAdapter(engine, tracer=spans.tracer), coalesce=False)
        async with cluster() as joined:
            client = await joined.serve(either(handler, pushed))
            context = new_context("r1", {"tenant": "t"})
            sent = client.round_robin(to_builtins(request()), context=context)
            chunks = [convert_output(data) for data in await received(sent)]
        assert [token_id for chunk in chunks for token_id in chunk.token_ids] == list(range(5))
        assert chunks[0].token_ids == [0]
        assert chunks[0].worker_trace_link is not None
        assert chunks[-1] == stop()
        assert len(chunks) == 6

    run()
    assert (seen[0].id, dict(seen[0].metadata)) == ("r1", {"tenant": "t"})
    assert engine.aborts == []
    assert dict(spans.one("engine.generate").attributes or {})["finish_reason"] == "Stop"


@real_time
async def test_waiting_chunks_are_sent_as_one() -> None:
    """The first token comes alone, the rest in far fewer crossings, and none is lost."""
    engine = ScriptedEngine(*map(token, range(2_000)), stop())
    async with cluster() as joined:
        client = await joined.serve(serving(EngineAdapter(engine)))
        chunks = await received(client.round_robin({"token_ids": [1]}))
    assert [token_id for chunk in chunks for token_id in chunk["token_ids"]] == [*range(2_000)]
    assert chunks[0]["token_ids"] == [0]
    assert len(chunks) < 500


@pytest.mark.rows("S6")
@pytest.mark.parametrize("kind", sorted(KINDS))
@EITHER_WAY
@real_time
async def test_an_error_reaches_the_client_with_its_kind(kind: str, pushed: bool) -> None:
    """What came before it arrives, then the error of its class with its message."""
    engine = ScriptedEngine(token(1), KINDS[kind]("boom"))
    async with cluster() as joined:
        client = await joined.serve(either(serving(EngineAdapter(engine)), pushed))
        stream = await client.round_robin({"token_ids": [1]})
        first = (await anext(stream)).data()
        with pytest.raises(Exception, match="boom") as caught:
            await anext(stream)
    own = kind == "InvalidArgument"
    assert str(caught.value) == ("boom" if own else f"{CLASSES[kind]}: boom")
    assert first["token_ids"] == [1]


@pytest.mark.rows("S5")
@real_time
async def test_a_bad_request_gets_an_error_and_the_worker_survives() -> None:
    """What does not fit is named, a failed set-up has its kind, and the next request is served."""
    engine = ScriptedEngine(token(1), stop())
    broken = ScriptedEngine(setup=[ValueError("too long")])
    async with cluster() as joined:
        client = await joined.serve(serving(EngineAdapter(engine)))
        for bad in ({"token_ids": [-1]}, {}, [1]):
            with pytest.raises(Exception, match=r"^\$.*(expected|required)") as caught:
                await received(client.round_robin(bad))
            assert type(caught.value).__name__ == "InvalidArgument"
        assert len(await received(client.round_robin({"token_ids": [1]}))) == 2
        other = await joined.serve(serving(EngineAdapter(broken)), "broken")
        with pytest.raises(Exception, match=r"^too long$") as caught:
            await received(other.round_robin({"token_ids": [1]}))
        assert type(caught.value).__name__ == "InvalidArgument"
    assert engine.calls == 1


@pytest.mark.rows("H2")
@pytest.mark.parametrize(
    "ends",
    [
        [LLMEngineOutput.error("boom")],
        [Unknown("boom")],
        [LLMEngineOutput.error("boom"), convert_output({"index": 1, "finish_reason": "stop"})],
    ],
    ids=["terminal", "raised", "one of two answers"],
)
@EITHER_WAY
@real_time
async def test_a_probe_cannot_miss_an_error(
    ends: list[LLMEngineOutput | Unknown], pushed: bool
) -> None:
    """It is the first item, where a request has others around it; a good end is the only item."""
    engines = {"good": ScriptedEngine(token(1), stop()), "bad": ScriptedEngine(token(1), *ends)}
    probe: dict[str, Any] = {"token_ids": [1], "_HEALTH_CHECK": True}
    async with cluster() as joined:
        for name, engine in engines.items():
            handler = either(serving(EngineAdapter(engine)), pushed)
            client = await joined.serve(handler, name)
            stream = await client.round_robin({"token_ids": [1]})
            assert (await anext(stream)).data()["token_ids"] == [1]
            if name == "good":
                (chunk,) = await received(client.round_robin(probe))
                assert (chunk["token_ids"], chunk["finish_reason"]) == ([], "stop")
            else:
                probe["sampling_options"] = {"n": len(ends)}
                stream = await client.round_robin(probe)
                with pytest.raises(Exception, match=r"^Internal: boom$"):
                    await anext(stream)


@pytest.mark.rows("S5")
@real_time
async def test_a_prompt_longer_than_the_context_is_rejected() -> None:
    """One that just fits is served, and a health check's length is the engine's own affair."""
    engine = ScriptedEngine(token(1), stop())
    async with cluster() as joined:
        handler = serving(EngineAdapter(engine), context_length=lambda: 3)
        client = await joined.serve(handler)
        assert await received(client.round_robin({"token_ids": [1] * 3}))
        assert await received(client.round_robin({"token_ids": [1] * 9, "_HEALTH_CHECK": True}))
        with pytest.raises(Exception, match="the prompt has 4 tokens") as caught:
            await received(client.round_robin({"token_ids": [1] * 4}))
        assert type(caught.value).__name__ == "InvalidArgument"
    assert engine.calls == 2


Streams: TypeAlias = weakref.WeakSet[Any]


def watched(handler: Handler) -> tuple[Handler, Streams]:
    """Give the handler, and those of its streams that somebody still holds."""
    streams: Streams = weakref.WeakSet()

    def handle(
        request: Mapping[str, Any], context: Any, response_sender: Any = None
    ) -> AsyncIterator[dict[str, Any]]:
        stream = handler(request, context, response_sender)
        streams.add(stream)
        return stream

    return handle, streams


def all_over(streams: Streams) -> bool:
    """Whether everything that the streams hold is released."""
    return all(stream.is_over for stream in streams)


async def read_and_stop(client: Any, tokens: int, id: str) -> None:
    """Read some, then stop the request from the client's side."""
    context = new_context(id)
    async for _item in await client.round_robin({"token_ids": [1]}, context=context):
        tokens -= 1
        if tokens == 0:
            context.stop_generating()


async def read_and_drop(client: Any, tokens: int, id: str) -> None:
    """Read some, then lose the stream."""
    async for _item in await client.round_robin({"token_ids": [1]}, context=new_context(id)):
        tokens -= 1
        if tokens == 0:
            return


@pytest.mark.rows("A2", "S7")
@pytest.mark.parametrize("leave", [read_and_stop, read_and_drop])
@EITHER_WAY
def test_a_disconnect_is_one_abort(leave: Any, pushed: bool, spans: Spans) -> None:
    """Of many clients that go at different moments each makes one abort, and nothing stays."""
    engine = Endless()
    ids = [f"r{number}" for number in range(24)]

    @real_time
    async def run() -> None:
        async with cluster() as joined:
            adapter = EngineAdapter(engine, tracer=spans.tracer)
            handler, open_streams = watched(serving(adapter))
            client = await joined.serve(either(handler, pushed))
            before = asyncio.all_tasks()
            going = (leave(client, 1 + at % 7, name) for at, name in enumerate(ids))
            await asyncio.gather(*going)
            await settled(lambda: engine.closed == len(ids) and len(engine.aborts) == len(ids))
            await settled(lambda: all_over(open_streams) and not spans.open)
            await settled(lambda: asyncio.all_tasks() == before)

    run()
    assert sorted(engine.aborts) == sorted(ids)


@pytest.mark.rows("A2", "S7")
@real_time
async def test_a_kill_is_one_abort() -> None:
    """A process that dies in the middle of a stream is noticed without polling."""
    engine = Endless()
    async with cluster() as joined:
        handler, open_streams = watched(serving(EngineAdapter(engine)))
        await joined.serve(handler)
        before = asyncio.all_tasks()
        async with killed_reader() as read:
            await read.readexactly(3)
        await settled(lambda: engine.aborts and engine.closed and all_over(open_streams))
        await settled(lambda: asyncio.all_tasks() == before)
    assert len(engine.aborts) == 1
    assert engine.closed == 1


@pytest.mark.rows("A6", "S3")
@real_time
async def test_a_stop_by_the_worker_keeps_the_engines_terminal() -> None:
    """The client gets the ``cancelled`` terminal, where the runtime would have cut it off."""
    engine = ScriptedEngine(
        token(1), RequestContext.stop_generating, token(2), LLMEngineOutput.cancelled()
    )
    async with cluster() as joined:
        client = await joined.serve(serving(EngineAdapter(engine), coalesce=False))
        chunks = await received(client.round_robin({"token_ids": [1]}))
    assert [chunk["token_ids"] for chunk in chunks] == [[1], [2], []]
    assert chunks[-1]["finish_reason"] == "cancelled"
    assert len(engine.aborts) == 1
