"""A response stream as an AsyncObservable: pushed by a task, and held back by its observer."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from operators.authoring import AsyncObservableSource
from tests.rx_backend._engines import (
    Item,
    ScriptedEngine,
    Stream,
    adapter_of,
    chunk_of,
    collect,
    now,
    request,
    stop,
    token,
    virtual,
)
from tests.spans import Spans

if TYPE_CHECKING or find_spec("aioreactive"):
    import aioreactive as rx

pytestmark = pytest.mark.needs("aioreactive")


class Watch:
    """
    An observer that writes down what comes, with its time.

    Args:
        busy_s: How long it is busy with each item.
    """

    def __init__(self, busy_s: float = 0.0) -> None:
        self.events: list[str] = []
        self._busy_s = busy_s
        self.disposing: rx.AsyncDisposable | None = None

    async def subscribe(self, stream: Stream) -> rx.AsyncDisposable:
        return await stream.as_async_observable().subscribe_async(self.send, self.fail, self.end)

    async def send(self, item: Item) -> None:
        self.events.append(f"{now():g} {item.data.token_ids if item.data else 'error'}")
        if self.disposing is not None:
            await self.disposing.dispose_async()
            self.events.append(f"{now():g} disposed")
        await asyncio.sleep(self._busy_s)

    async def fail(self, error: Exception) -> None:
        self.events.append(f"{now():g} # {error}")

    async def end(self) -> None:
        self.events.append(f"{now():g} |")


@pytest.mark.rows("S1", "S6")
@virtual
async def test_items_and_end() -> None:
    """Items are sent as the engine makes them, an error item among them, and then the end."""
    done, failed = Watch(), Watch()
    await done.subscribe(
        await adapter_of(ScriptedEngine(1, token(1), 1, stop())).generate(request())
    )
    await failed.subscribe(
        await adapter_of(ScriptedEngine(1, ValueError("bad"))).generate(request())
    )
    assert done.events == failed.events == []
    await asyncio.sleep(5)
    assert done.events == ["1 [1]", "2 []", "2 |"]
    assert failed.events == ["1 error", "1 |"]


@pytest.mark.rows("S4")
@virtual
async def test_the_engine_waits_for_the_observer() -> None:
    """While ``asend`` is awaited, the engine is not pulled."""
    engine = ScriptedEngine(token(1), token(2), stop())
    watch = Watch(busy_s=10)
    await watch.subscribe(await adapter_of(engine).generate(request()))
    for pulls in (1, 2, 3):
        await asyncio.sleep(9.9)
        assert engine.pulls == pulls
        await asyncio.sleep(0.1)
    await asyncio.sleep(10)
    assert watch.events == ["0 [1]", "10 [2]", "20 []", "30 |"]


@pytest.mark.rows("S7")
@virtual
async def test_a_second_subscription_is_refused() -> None:
    """It gets an error; the first one is not disturbed."""
    stream = await adapter_of(ScriptedEngine(1, token(1), stop())).generate(request())
    first, second, third = Watch(), Watch(), Watch()
    await first.subscribe(stream)
    await second.subscribe(stream)
    stream.subscribe(lambda _: None, lambda error: third.events.append(f"# {error}"))
    await asyncio.sleep(5)
    assert first.events == ["1 [1]", "1 []", "1 |"]
    assert second.events == ["0 # a response stream can be subscribed to only once"]
    assert third.events == ["# a response stream can be subscribed to only once"]


@pytest.mark.rows("S7", "P5")
@pytest.mark.parametrize("at_s", [0.0, 0.5, 1.0, 1.5], ids=str)
@pytest.mark.parametrize("busy_s", [0.0, 60.0], ids=["waiting", "busy"])
@virtual
async def test_disposing_drops_the_stream(busy_s: float, at_s: float) -> None:
    """Whatever it is at: nothing more is sent, and the engine has closed when it returns."""
    spans = Spans()
    engine = ScriptedEngine(1, token(1), 60, token(2), closing=[2])
    watch = Watch(busy_s)
    subscription = await watch.subscribe(await adapter_of(engine, spans=spans).generate(request()))
    await asyncio.sleep(at_s)
    await subscription.dispose_async()
    events = [*watch.events]
    assert engine.closed == len(engine.closes) == (1 if engine.pulls else 0)
    assert spans.one().status.description == "stream dropped before terminal"
    await asyncio.sleep(100)
    assert watch.events == events
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.rows("S7")
@virtual
async def test_disposing_from_within_the_observer() -> None:
    """It may do so while it takes an item, and goes on when all is released."""
    engine = ScriptedEngine(1, token(1), token(2), stop(), closing=[2])
    watch = Watch(busy_s=1)
    watch.disposing = await watch.subscribe(await adapter_of(engine).generate(request()))
    await asyncio.sleep(60)
    assert watch.events == ["1 [1]", "3 disposed"]
    assert engine.closed == 1


@pytest.mark.rows("S6")
@virtual
async def test_an_observer_that_fails_is_told() -> None:
    """Its own failure ends the subscription, and drops the stream."""
    engine = ScriptedEngine(token(1), token(2), stop())
    stream = await adapter_of(engine).generate(request())
    events: list[str] = []

    async def refuse(item: Item) -> None:
        raise LookupError("no")

    async def fail(error: Exception) -> None:
        events.append(repr(error))

    await stream.as_async_observable().subscribe_async(refuse, fail)
    await asyncio.sleep(1)
    assert (events, engine.pulls, engine.closed) == (["LookupError('no')"], 1, 1)


@pytest.mark.rows("S7")
@virtual
async def test_who_never_subscribes_holds_nothing() -> None:
    """Losing the observable and the stream is a drop as any other."""
    spans = Spans()
    engine = ScriptedEngine(token(1), stop())
    observable = (await adapter_of(engine, spans=spans).generate(request())).as_async_observable()
    del observable
    await asyncio.sleep(1)
    assert (engine.pulls, engine.closes) == (0, [])
    assert spans.one().status.description == "stream dropped before terminal"


@pytest.mark.rows("S1", "S7")
@virtual
async def test_into_operators_of_the_library_and_back() -> None:
    """A stream goes through ``aioreactive`` operators and is pulled again; a drop reaches through."""

    async def late(item: Item) -> list[int]:
        await asyncio.sleep(1)
        return chunk_of(item).token_ids

    async def piped(engine: ScriptedEngine) -> AsyncObservableSource[Any]:
        stream = await adapter_of(engine).generate(request())
        return AsyncObservableSource(
            rx.pipe(stream.as_async_observable(), rx.map_async(late), rx.skip(1))
        )

    engine = ScriptedEngine(token(1), token(2), token(3), stop())
    assert await collect(await piped(engine)) == [[2], [3], []]
    assert engine.closed == 1
    dropped = ScriptedEngine(token(1), token(2), token(3), stop())
    source = await piped(dropped)
    assert await anext(source) == [2]
    await source.aclose()
    assert dropped.closed == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}
