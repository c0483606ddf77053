"""Resumable streams: start, lose the connection, come back by id and position."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from operators import PositionUnknown
from operators.authoring import Stage, operator
from rx_backend import (
    Disconnected,
    EngineAdapter,
    EngineShutdown,
    InvalidArgument,
    LLMEngineOutput,
    RequestContext,
    Unknown,
)
from rx_backend.engines import SampleEngine
from rx_backend.protocols import PreprocessedRequest, SamplingOptions
from rx_backend.resumable import ResumableReader, ResumableStreams, StreamNotFound, parse_event_id
from tests.engines import virtual
from tests.engines.scripted import ScriptedEngine, now, stop
from tests.rx_backend.resumable.answers import (
    REQUEST,
    Item,
    adapter_of,
    collect,
    leave_after,
    told,
    turns,
    until_stopped,
    words,
)
from tests.spans import Spans


@virtual
async def test_event_ids_resume_at_their_position() -> None:
    """Each item's id is that of the position after it, merged or not."""
    adapter, _ = adapter_of(*words(10, 1.0), stop())
    async with ResumableStreams(adapter) as streams:
        reader = await streams.start(REQUEST)
        items = await leave_after(reader, 3)
        assert [parse_event_id(item.id or "") for item in items] == [
            (reader.stream_id, n) for n in (1, 2, 3)
        ]
        await asyncio.sleep(4.5)
        stream_id, position = parse_event_id(items[1].id or "")
        async with await streams.resume(stream_id, position) as back:
            merged = await anext(back)
            assert told([merged]) == [2, 3, 4, 5, 6]
            assert (merged.id, back.position) == (f"{stream_id}:7", 7)
            assert told(await collect(back)) == [7, 8, 9]
            assert back.position == 11


@pytest.mark.rows("E3")
@virtual
async def test_several_answers_are_resumed() -> None:
    """Each chunk keeps the answer that it belongs to."""
    request = PreprocessedRequest(token_ids=[1], sampling_options=SamplingOptions(n=2))
    chunks = [LLMEngineOutput([n], text=f"{n} ", index=n // 3 % 2) for n in range(12)]
    ends = [LLMEngineOutput(index=index).with_tokens([]) for index in (0, 1)]
    for end in ends:
        end.finish_reason = LLMEngineOutput.stop().finish_reason
    adapter, _ = adapter_of(*chunks, *ends)
    async with ResumableStreams(adapter) as streams:
        reader = await streams.start(request)
        whole = await leave_after(reader, 100)
        for position in range(15):
            async with await streams.resume(reader.stream_id, position) as back:
                rest = await collect(back)
            for index in (0, 1):
                mine = [item for item in rest if item.data and item.data.index == index]
                wanted = [n for n in range(position, 12) if n // 3 % 2 == index]
                # The first chunk, with its trace link, is without an index of its own.
                assert told(mine) == wanted
            assert len(whole) >= 5


async def take_all(reader: ResumableReader, into: list[Item]) -> None:
    while True:
        into.append(await anext(reader))


# ------------------------------------------------------------------ how an answer ends


@virtual
async def test_a_failure_in_mid_stream_is_kept() -> None:
    """Later readers get the error item at its position (row S6)."""
    adapter, _ = adapter_of(*words(5), Disconnected("peer gone"))
    async with ResumableStreams(adapter) as streams:
        reader = await streams.start(REQUEST)
        await leave_after(reader, 100)
        for position in (0, 3, 5):
            async with await streams.resume(reader.stream_id, position) as back:
                *rest, last = await collect(back)
            assert told(rest) == list(range(position, 5))
            assert isinstance(last.error, Disconnected)
            assert last.id == f"{reader.stream_id}:6"


@virtual
async def test_a_failure_after_the_pipeline_is_raised_to_every_reader() -> None:
    """What an operator raises after the error mapping comes unchanged, after the items."""
    adapter, _ = adapter_of(*words(9, 1.0), stop())

    @operator
    def failing() -> Stage[Item, Item]:
        item = yield
        for _ in range(3):
            item = yield item
        raise KeyError("mine")

    async with ResumableStreams(adapter.with_operators(failing())) as streams:
        reader = await streams.start(REQUEST)
        for position in (None, 0, 3):
            back = reader
            if position is not None:
                back = await streams.resume(reader.stream_id, position)
            got: list[Item] = []
            with pytest.raises(KeyError, match="mine"):
                await take_all(back, got)
            assert told(got) == list(range(position or 0, 3))
        assert (streams.stats().running, streams.stats().kept) == (0, 1)


@virtual
async def test_items_of_another_type_are_rejected() -> None:
    """A pipeline that ends in something else than annotated items can't be resumed."""

    @operator
    def as_text() -> Stage[Item, str]:
        item = yield
        while True:
            item = yield item.data.text or "" if item.data else ""

    adapter, engine = adapter_of()
    async with ResumableStreams(adapter.with_operators(as_text())) as streams:  # type: ignore[arg-type]
        reader = await streams.start(REQUEST)
        with pytest.raises(InvalidArgument, match="expected Annotated items"):
            await anext(reader)
        await turns()
        assert engine.closed == 1


@pytest.mark.rows("A2")
@virtual
async def test_a_client_stops_its_answer() -> None:
    """One abort, and the engine's terminal for all readers; stopping again does nothing."""
    adapter, engine = adapter_of(*words(2, 1.0), until_stopped, LLMEngineOutput.cancelled())
    async with ResumableStreams(adapter) as streams:
        reader = await streams.start(REQUEST, owner="ann")
        assert told(await collect(reader, 2)) == [0, 1]
        with pytest.raises(StreamNotFound):
            await streams.stop(reader.stream_id, owner="eve")
        assert not reader.context.is_stopped
        await streams.stop(reader.stream_id, owner="ann")
        await streams.stop(reader.stream_id, owner="ann")
        (last,) = await collect(reader)
        assert last.data == LLMEngineOutput.cancelled()
        await streams.stop(reader.stream_id, owner="ann")
        assert len(engine.aborts) == 1


# ------------------------------------------------------------------ before the first token


@virtual
async def test_a_failed_set_up_leaks_nothing(spans: Spans) -> None:
    """It is raised by start, as by the adapter (row S5), and gives its place back."""
    engine = ScriptedEngine(setup=[EngineShutdown("cold")])
    adapter = EngineAdapter(engine, tracer=spans.tracer)
    async with ResumableStreams(adapter, max_streams=1) as streams:
        for _ in range(2):
            with pytest.raises(EngineShutdown, match="cold"):
                await streams.start(REQUEST)
        with pytest.raises(InvalidArgument, match="request: expected a PreprocessedRequest"):
            await streams.start("please")  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="owner: expected a string, got 7"):
            await streams.start(REQUEST, owner=7)  # type: ignore[arg-type]
        assert len(streams) == 0
    assert len(spans.finished) == 2


@pytest.mark.rows("S7")
@pytest.mark.parametrize("turn", range(16))
@virtual
async def test_a_cancelled_peek_leaks_and_consumes_nothing(turn: int) -> None:
    """Whenever it is cancelled: the reader has the whole answer, or has left; never a part."""
    ahead = LLMEngineOutput(extra_args={"ahead": True})
    adapter, _ = adapter_of(0.0, ahead, 0.0, ahead, *words(3, every_s=0.0), stop())
    async with ResumableStreams(adapter) as streams:
        reader = await streams.start(REQUEST)
        peek = asyncio.ensure_future(reader.peek_first())
        await turns(turn)
        peek.cancel()
        await asyncio.wait([peek])
        items = await collect(reader)
        assert told(items) in ([0, 1, 2], [])
        assert not items or parse_event_id(items[0].id or "")[1] == 1
        assert streams.stats().readers == 0
        # It can be read on from where it says.
        async with await streams.resume(reader.stream_id, reader.position) as back:
            assert told(items) + told(await collect(back)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([LLMEngineOutput(), Disconnected("gone")], Disconnected),
        ([1.0, LLMEngineOutput.error("no")], Unknown),
    ],
)
@virtual
async def test_peek_first_raises_an_early_failure(
    script: list[LLMEngineOutput], error: type[Exception]
) -> None:
    """And the stream is forgotten, as there is nothing to come back to."""
    adapter, engine = adapter_of(*script)
    async with ResumableStreams(adapter) as streams:
        reader = await streams.start(REQUEST)
        with pytest.raises(error):
            await reader.peek_first()
        assert len(streams) == 0
        assert engine.closed == 1
        with pytest.raises(StreamNotFound):
            await streams.resume(reader.stream_id)


@virtual
async def test_a_failure_that_another_reader_peeks_at_makes_it_leave() -> None:
    """The stream is kept: it is not this reader's."""
    gone = Disconnected("gone")
    gone.__cause__ = ConnectionResetError()
    adapter, _ = adapter_of(1.0, gone)
    async with ResumableStreams(adapter) as streams:
        first = await streams.start(REQUEST)
        other = await streams.resume(first.stream_id)
        with pytest.raises(Disconnected) as raised:
            await other.peek_first()
        assert isinstance(raised.value.__cause__, ConnectionResetError)
        assert (len(streams), streams.stats().readers) == (1, 1)
        assert await collect(other) == []
        assert len(await collect(first)) == 1


@virtual
async def test_what_was_peeked_at_is_not_handed_out_after_leaving() -> None:
    """A reader that has left is at its end."""
    adapter, _ = adapter_of(LLMEngineOutput(), *words(3), stop())
    async with ResumableStreams(adapter) as streams:
        reader = await (await streams.start(REQUEST)).peek_first()
        await reader.aclose()
        assert (await collect(reader), reader.position) == ([], 0)


@virtual
async def test_peeking_consumes_nothing() -> None:
    """All items come from the beginning, with their positions."""
    adapter, _ = adapter_of(LLMEngineOutput(), *words(3, 1.0), stop())
    async with ResumableStreams(adapter) as streams:
        reader = await streams.start(REQUEST)
        assert await reader.peek_first() is reader
        assert (now(), reader.position) == (1.0, 0)
        items: list[Item] = []
        async for item in reader:
            items.append(item)
            assert item.id == f"{reader.stream_id}:{reader.position}"
        assert told(items) == [0, 1, 2]
        assert reader.position == 5


# ------------------------------------------------------------------ who may read, and from where


@virtual
async def test_a_stolen_id_is_not_found() -> None:
    """Both get the same error, and learn nothing."""
    adapter, _ = adapter_of()
    async with ResumableStreams(adapter) as streams:
        reader = await streams.start(REQUEST, owner="ann")
        stream_id = reader.stream_id
        for asking in ("eve", None):
            with pytest.raises(StreamNotFound) as stolen:
                await streams.resume(stream_id, owner=asking)
            assert stolen.value.message == f"there is no stream {stream_id!r}"
        with pytest.raises(StreamNotFound, match="there is no stream 'nonsense'"):
            await streams.resume("nonsense", owner="ann")
        with pytest.raises(StreamNotFound) as long:
            await streams.resume("x" * 50_000, owner="ann")
        assert len(long.value.message) < 100
        async with await streams.resume(stream_id, owner="ann") as back:
            assert told(await collect(back, 1))
        await reader.aclose()


@virtual
async def test_an_owner_decides_who_may_read() -> None:
    """Any rule of two owners; what says neither yes nor no is an error, and not a yes."""
    adapter, _ = adapter_of()
    asked: list[tuple[str | None, str | None]] = []

    def may_read(owner: str | None, asking: str | None) -> bool:
        asked.append((owner, asking))
        return asking == "support" if asking != "?" else "yes"  # type: ignore[return-value]

    async with ResumableStreams(adapter, may_read=may_read) as streams:
        reader = await streams.start(REQUEST, owner="ann")
        await (await streams.resume(reader.stream_id, owner="support")).aclose()
        with pytest.raises(StreamNotFound):
            await streams.resume(reader.stream_id, owner="ann")
        with pytest.raises(TypeError, match="may_read: expected True or False, got str"):
            await streams.resume(reader.stream_id, owner="?")
        assert asked == [("ann", "support"), ("ann", "ann"), ("ann", "?")]
        await reader.aclose()


@virtual
async def test_invalid_positions_are_rejected() -> None:
    """A position of the future, and what is no position."""
    adapter, _ = adapter_of(*words(3, 1.0), stop())
    async with ResumableStreams(adapter) as streams:
        reader = await streams.start(REQUEST)
        await anext(reader)
        with pytest.raises(PositionUnknown, match="position 2 is unknown: items so far: 1"):
            await streams.resume(reader.stream_id, 2)
        for wrong in (-1, 1.0, True, "1"):
            with pytest.raises(InvalidArgument, match="after: expected a whole number of items"):
                await streams.resume(reader.stream_id, wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="id: expected a string, got 5"):
            await streams.resume(5)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="id: expected a string, got 6"):
            await streams.stop(6)  # type: ignore[arg-type]
        await reader.aclose()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        ":1",
        "abc:",
        "abc:-1",
        "abc:1 ",
        "abc:1:2",
        "abc:1\n",
        "a b:1",
        "abc:²",
        "é:1",
        f"{'a' * 129}:1",
        f"abc:{'1' * 16}",
        # As of a header that is not there.
        None,
        b"abc:1",
    ],
)
def test_malformed_event_ids_are_rejected(text: Any) -> None:
    """With what was expected, and without repeating a long text."""
    with pytest.raises(InvalidArgument, match="event id: expected <stream id>:<position>") as error:
        parse_event_id(text)
    assert len(error.value.message) < 160


@virtual
async def test_ids_are_long_and_unique() -> None:
    """22 characters that stand in a URL and in an event id."""
    adapter, _ = adapter_of(stop())
    ids: set[str] = set()
    async with ResumableStreams(adapter) as streams:
        for _ in range(100):
            reader = await streams.start(REQUEST)
            ids.add(reader.stream_id)
            assert parse_event_id(f"{reader.stream_id}:7") == (reader.stream_id, 7)
            await reader.aclose()
    assert len(ids) == 100
    assert set(map(len, ids)) == {22}


# ------------------------------------------------------------------ spans, and the end of it all


@pytest.mark.rows("P7")
@virtual
async def test_the_span_lasts_as_long_as_the_answer(spans: Spans) -> None:
    """One a request, which ends with the answer and not with a reader."""
    adapter, _ = adapter_of(*words(5, 1.0), stop(), tracer=spans.tracer)
    async with ResumableStreams(adapter) as streams:
        reader = await streams.start(REQUEST, RequestContext("r1"))
        assert reader.context.id == "r1"
        await leave_after(reader, 2)
        assert spans.finished == ()
        await asyncio.sleep(1)
        async with await streams.resume(reader.stream_id, 2) as back:
            await collect(back)
        span = spans.one()
        assert span.end_time is not None
        assert span.start_time is not None
        attributes = span.attributes or {}
        assert attributes["finish_reason"] == "Stop"
        assert attributes["output_tokens"] == 5


@pytest.mark.parametrize(("max_ahead", "pulled"), [(0, 1), (256, 3)])
@virtual
async def test_closing_releases_everything(spans: Spans, max_ahead: int, pulled: int) -> None:
    """Readers that wait get EngineShutdown as an error item; each answer is aborted once."""
    adapter, engine = adapter_of(*words(3), 100.0, *words(3), stop(), tracer=spans.tracer)
    streams = ResumableStreams(adapter, max_ahead=max_ahead)
    reader = await streams.start(REQUEST)
    other = await streams.start(REQUEST)
    never = await streams.start(REQUEST)
    waiting = asyncio.create_task(collect(reader))
    await asyncio.sleep(1)
    await streams.aclose()
    await streams.aclose()
    *items, last = await waiting
    assert told(items) == [0, 1, 2]
    assert isinstance(last.error, EngineShutdown)
    # One that lags gets what is held, and then the same.
    *items, last = await collect(other)
    assert isinstance(last.error, EngineShutdown)
    assert isinstance((await collect(never))[-1].error, EngineShutdown)
    assert (engine.calls, engine.closed, len(engine.aborts)) == (3, pulled, 3)
    assert len(streams) == 0
    with pytest.raises(EngineShutdown):
        await streams.start(REQUEST)
    with pytest.raises(EngineShutdown):
        await streams.resume(reader.stream_id)
    with pytest.raises(EngineShutdown):
        await streams.stop(reader.stream_id)
    assert len(spans.finished) == 3


@pytest.mark.rows("S7")
@pytest.mark.parametrize("gives_up", ["close", "peek"])
@virtual
async def test_a_cancelled_close_continues(gives_up: str) -> None:
    """A cancelled close, or a client that leaves as its stream is forgotten, leaves no stream."""
    engine = ScriptedEngine(LLMEngineOutput.error("no"), 1_000.0, closing=[5.0])
    two = PreprocessedRequest(token_ids=[1], sampling_options=SamplingOptions(n=2))
    async with ResumableStreams(EngineAdapter(engine)) as streams:
        readers = [await streams.start(two) for _ in range(3)]
        if gives_up == "close":
            for reader in readers:
                await anext(reader)
            waiting = [streams.aclose()]
        else:
            waiting = [reader.peek_first() for reader in readers]
        for each in waiting:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await each
        await asyncio.sleep(6)
        assert (len(streams), streams.stats().held_bytes, engine.closed) == (0, 0, 3)


@virtual
async def test_a_start_overtaken_by_close_leaks_nothing(spans: Spans) -> None:
    """It is killed and waited for; it fails with EngineShutdown, and what was opened is closed."""
    engine = ScriptedEngine(*words(3), stop(), setup=[5.0])
    streams = ResumableStreams(EngineAdapter(engine, tracer=spans.tracer))
    context = RequestContext()
    starting = asyncio.create_task(streams.start(REQUEST, context))
    await asyncio.sleep(1)
    await streams.aclose()
    assert (now(), context.is_killed, len(spans.finished)) == (5.0, True, 1)
    with pytest.raises(EngineShutdown):
        await starting


def test_an_invalid_source_is_rejected() -> None:
    """An engine without its adapter is refused by name."""
    with pytest.raises(
        InvalidArgument, match="source: expected an EngineAdapter or a StreamSource"
    ):
        ResumableStreams(SampleEngine())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("max_streams", 0, "a whole number of streams, 1 or more, got 0"),
        ("max_streams", 1.5, "a whole number of streams"),
        ("max_ahead", -1, "a whole number of items, 0 or more, got -1"),
        ("max_bytes", True, "a whole number of bytes, 1 or more, got True"),
        ("linger_s", -1, "a number of seconds, 0 or more, got -1"),
        ("linger_s", None, "a number of seconds"),
        ("stop_grace_s", float("nan"), "a number of seconds"),
        ("keep_s", float("inf"), "a number of seconds"),
        ("when_abandoned", "go on", "'stop' or 'continue', got 'go on'"),
        ("may_read", "ann", "a function that is not async"),
        ("may_read", asyncio.sleep, "a function that is not async"),
    ],
)
def test_options_are_checked(option: str, value: object, expected: str) -> None:
    """The error names the option and what was expected."""
    adapter, _ = adapter_of()
    with pytest.raises(InvalidArgument, match=f"{option}: expected {expected}"):
        ResumableStreams(adapter, **{option: value})  # type: ignore[arg-type]
