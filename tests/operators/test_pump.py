"""`operators._core.pump`: a source that is pulled in a task of its own, on demand."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from reactivex import operators as ops

from operators import fuse, heartbeat
from operators._core.failures import SourceCancelled
from operators._core.pump import Pump
from operators.authoring import AnyOperator, FusedRun
from tests.operators._help import Engine, same, settle, spy, virtual

NUMBER: contextvars.ContextVar[int] = contextvars.ContextVar("NUMBER", default=0)


class Pumped:
    """A pump over an engine, and what it told."""

    def __init__(
        self,
        engine: Engine | AsyncGenerator[Any],
        context: contextvars.Context | None = None,
    ) -> None:
        self.items: list[Any] = []
        self.ends: list[str] = []
        self.journal: list[str] = []
        source = engine() if isinstance(engine, Engine) else engine
        self.run: FusedRun[Any] = FusedRun(
            source, [spy(self.journal)], own_context=context, enters=False
        )
        self.pump: Pump[Any] = Pump(
            self.run, self.items.append, lambda failure: self.ends.append(repr(failure))
        )

    async def demand(self) -> None:
        self.pump.demand()
        await asyncio.sleep(10)


@pytest.mark.rows("S4")
@virtual
async def test_one_demand_is_one_pull() -> None:
    """Nothing is pulled without a demand; one that comes while a pull is under way is the same."""
    engine = Engine([1, 2, 3], every_s=1.0)
    pumped = Pumped(engine)
    await asyncio.sleep(5)
    assert (engine.pulls, pumped.pump.task) == (0, None)
    for number in (1, 2):
        for _ in range(3):
            pumped.pump.demand()
            assert pumped.pump.busy
        await asyncio.sleep(10)
        assert (engine.pulls, len(pumped.items), pumped.pump.busy) == (number, number, False)
    pumped.pump.close()
    await pumped.pump.wait_closed()
    assert (pumped.items, pumped.ends, engine.closed) == ([1, 2], [], 1)


@pytest.mark.rows("S1", "S6")
@pytest.mark.parametrize("error", [None, LookupError("gone")], ids=["completed", "failed"])
@pytest.mark.parametrize("closing_s", [None, 2.0])
@virtual
async def test_the_end_is_told_once(error: Exception | None, closing_s: float | None) -> None:
    """With the failure or None; the source is closed, and later demands do nothing."""
    engine = Engine([1], error=error, closing_s=closing_s)
    pumped = Pumped(engine)
    for _ in range(4):
        await pumped.demand()
    assert (pumped.items, pumped.ends, engine.closed) == ([1], [repr(error)], 1)
    assert pumped.pump.task is not None
    assert pumped.pump.task.done()
    assert pumped.pump.task.exception() is None
    pumped.pump.close()
    await pumped.pump.wait_closed()
    assert len(pumped.ends) == 1


@pytest.mark.rows("S2")
@virtual
async def test_the_end_comes_with_the_last_item() -> None:
    """Where the source knows that an item is the last, no demand is needed for the end."""
    engine = Engine([1, 2, 3])
    items: list[Any] = []
    ends: list[Any] = []
    run = FusedRun[Any](fuse(engine(), [ops.take(2), same()]), [])
    pump = Pump(run, items.append, ends.append)
    for _ in range(2):
        pump.demand()
        await settle()
    assert (items, ends, engine.pulls) == ([1, 2], [None], 2)


@pytest.mark.rows("S7")
@pytest.mark.parametrize("closing_s", [None, 2.0])
@pytest.mark.parametrize("when", ["unpulled", "idle", "waiting"])
@virtual
async def test_closing(when: str, closing_s: float | None) -> None:
    """In every state: the source is dropped at once, nothing is told, and the release is waited for."""
    engine = Engine([1], ends=False, closing_s=closing_s)
    pumped = Pumped(engine)
    for _ in range(["unpulled", "idle", "waiting"].index(when)):
        await pumped.demand()
    begun = asyncio.get_running_loop().time()
    for _ in range(2):
        pumped.pump.close()
        pumped.pump.demand()
    assert pumped.journal[-1:] == ["!"]
    await asyncio.gather(*(pumped.pump.wait_closed() for _ in range(2)))
    has_begun = when != "unpulled"
    assert engine.closed == has_begun
    assert asyncio.get_running_loop().time() - begun == (closing_s or 0.0) * has_begun
    assert pumped.ends == []
    assert pumped.pump.task is None or pumped.pump.task.done()


@pytest.mark.rows("S6")
@pytest.mark.parametrize("is_waiting", [True, False])
@virtual
async def test_a_task_that_is_cancelled_tells_its_consumer(is_waiting: bool) -> None:
    """Whoever cancelled it, and wherever it waits: a consumer that waits is not left alone."""
    engine = Engine([1], ends=False)
    pumped = Pumped(engine)
    await pumped.demand()
    if is_waiting:
        await pumped.demand()
    assert pumped.pump.task is not None
    pumped.pump.task.cancel()
    await asyncio.sleep(10)
    (end,) = pumped.ends
    assert end.startswith("SourceCancelled" if is_waiting else "CancelledError")
    assert engine.closed == 1
    pumped.pump.demand()
    assert not pumped.pump.busy


@pytest.mark.rows("S6")
@virtual
async def test_an_engine_that_cancels_itself_has_failed() -> None:
    """Its own ``CancelledError`` is told as a failure of the source."""
    failures: list[BaseException | None] = []
    engine = Engine([1], error=asyncio.CancelledError())
    pump = Pump(FusedRun[Any](engine(), []), lambda _: None, failures.append)
    for _ in range(2):
        pump.demand()
        await settle()
    (failure,) = failures
    assert type(failure) is SourceCancelled


class TestHandlers:
    """``on_item`` and ``on_end`` as coroutine functions."""

    @pytest.mark.rows("S4")
    @virtual
    async def test_a_demand_made_while_an_item_is_handled_is_the_next_pull(self) -> None:
        """It is pulled when the handler has returned, and not before."""
        engine = Engine([1, 2, 3])
        pulls: list[tuple[int, int]] = []

        async def handle(item: int) -> None:
            pump.demand()
            await asyncio.sleep(1)
            pulls.append((item, engine.pulls))

        pump = Pump(FusedRun[Any](engine(), []), handle, lambda _: None)
        pump.demand()
        await asyncio.sleep(10)
        assert pulls == [(1, 1), (2, 2), (3, 3)]
        assert engine.closed == 1

    @pytest.mark.rows("S7")
    @pytest.mark.parametrize("is_inside", [True, False])
    @virtual
    async def test_closing_while_an_item_is_handled(self, is_inside: bool) -> None:
        """The handler is cancelled, unless it closes by itself; the source is closed."""
        engine = Engine([1, 2])
        noted: list[str] = []

        async def handle(item: int) -> None:
            noted.append(f"{item}")
            if is_inside:
                pump.close()
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                noted.append("cancelled")
                raise
            noted.append("handled")

        pump = Pump(FusedRun[Any](engine(), []), handle, lambda _: noted.append("end"))
        pump.demand()
        await asyncio.sleep(1)
        pump.close()
        await pump.wait_closed()
        assert noted == ["1", "handled" if is_inside else "cancelled"]
        assert engine.closed == 1

    @pytest.mark.rows("S6")
    @pytest.mark.parametrize("waits", [True, False])
    @virtual
    async def test_a_handler_that_fails(self, waits: bool) -> None:
        """Its error is the end, and the source is closed."""
        engine = Engine([1, 2])
        ends: list[str] = []

        async def handle(item: int) -> None:
            if waits:
                await asyncio.sleep(1)
            raise LookupError(item)

        async def end(failure: BaseException | None) -> None:
            await asyncio.sleep(1)
            ends.append(repr(failure))

        pump = Pump(FusedRun[Any](engine(), []), handle, end)
        pump.demand()
        await asyncio.sleep(10)
        assert (ends, engine.closed) == (["LookupError(1)"], 1)


@pytest.mark.rows("P9")
@virtual
async def test_all_pulls_run_in_one_task_and_context() -> None:
    """So an engine may hold across its ``yield`` what belongs to a task."""
    seen: list[tuple[asyncio.Task[Any] | None, int]] = []

    async def engine() -> AsyncGenerator[int]:
        for number in range(3):
            async with asyncio.timeout(1000):
                seen.append((asyncio.current_task(), NUMBER.get()))
                NUMBER.set(number)
                yield number

    context = contextvars.copy_context()
    context.run(NUMBER.set, 7)
    pumped = Pumped(engine(), context=context)
    for _ in range(4):
        await pumped.demand()
    assert seen == [(pumped.pump.task, number) for number in (7, 0, 1)]
    assert NUMBER.get() == 0
    assert pumped.ends == ["None"]


@pytest.mark.rows("S1")
@virtual
async def test_stopping_leaves_the_source_to_others() -> None:
    """The task ends; the run goes on where it was, for whoever pulls it."""
    engine = Engine([1, 2, 3])
    pumped = Pumped(engine)
    await pumped.demand()
    pumped.pump.stop()
    await settle()
    assert pumped.pump.task is not None
    assert pumped.pump.task.done()
    assert [item async for item in pumped.run] == [2, 3]
    assert (pumped.items, pumped.ends, engine.closed) == ([1], [], 1)


@pytest.mark.rows("S7")
@pytest.mark.parametrize("make", [lambda: heartbeat(5.0, "beat"), lambda: ops.delay(0.1)])
@pytest.mark.parametrize("pulls", [0, 1, 2])
@virtual
async def test_an_idle_pump_is_lost_with_its_stream(
    make: Callable[[], AnyOperator], pulls: int
) -> None:
    """Losing the last reference ends its task too, and nothing complains."""
    engine = Engine([1, 2, 3])
    stream = [fuse(engine(), [same(), make(), same()])]
    for _ in range(pulls):
        await anext(stream[0])
    stream.clear()
    gc.collect()
    await asyncio.sleep(100)
    assert engine.closed == (pulls > 0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
