"""Sources that are pulled in a task of their own: lost with their stream, and held back by the client."""

# The types of ``reactivex`` leave open what an operator without a source works on.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
import reactivex
from hypothesis import given
from hypothesis import strategies as st
from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.subject import Subject

from operators import fuse, heartbeat
from operators._core.failures import SourceCancelled
from operators.authoring import AnyOperator
from rx_backend.testing import run_virtual
from tests.examples import examples
from tests.operators._help import Engine, Seen, collect, same, settle, spy

if TYPE_CHECKING or find_spec("aioreactive"):
    pass


@pytest.mark.rows("S6")
@pytest.mark.parametrize("make", [lambda: heartbeat(1e6, "beat"), lambda: ops.delay(0.1)])
async def test_a_task_that_is_cancelled_tells_its_consumer(make: Callable[[], AnyOperator]) -> None:
    """Whoever cancelled it: that is a failure for the stages, and a consumer that waits is told."""
    engine = Engine([1], ends=False)
    journal: list[str] = []
    stream = fuse(engine(), [spy(journal), make(), same()])
    others = asyncio.all_tasks()
    assert await anext(stream) == 1
    (pump,) = asyncio.all_tasks() - others
    pull = asyncio.create_task(collect(stream))
    await settle()
    pump.cancel()
    assert type((await pull).error) is SourceCancelled
    assert (journal, engine.closed) == (["1", "#"], 1)


@pytest.mark.rows("S7")
@pytest.mark.parametrize("make", [lambda: heartbeat(5.0, "beat"), lambda: ops.delay(0.1)])
@pytest.mark.parametrize("pulls", [0, 1, 2])
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


class TestSlowClient:
    """A timer that is faster than the client keeps nobody from the source."""

    @pytest.mark.rows("S1", "S4")
    @given(
        period_ms=st.integers(1, 20),
        client_ms=st.integers(0, 100),
        every_ms=st.integers(0, 30),
        count=st.integers(0, 200),
    )
    @examples(25)
    def test_everything_comes_out_in_order(
        self, period_ms: int, client_ms: int, every_ms: int, count: int
    ) -> None:
        """The engine goes on, what waits is bounded, and the request ends."""

        async def run() -> None:
            engine = Engine(range(count), every_s=every_ms / 1000)
            made: list[list[int]] = []
            ticking = [ops.buffer_with_time(period_ms / 1000), ops.do_action(made.append)]
            taken: list[list[int]] = []
            async with asyncio.timeout(100):
                async for items in fuse(engine(), ticking):
                    taken.append(items)
                    await asyncio.sleep(client_ms / 1000)
                    assert len(made) - len(taken) <= 65
            assert [item for items in taken for item in items] == list(range(count))
            assert engine.closed == 1

        run_virtual(run())

    @pytest.mark.rows("S4")
    async def test_at_most_one_pull_for_each_of_the_consumer(self) -> None:
        """Also where a timer has filled what waits."""
        engine = Engine(range(999))
        stream = fuse(engine(), [ops.merge(reactivex.interval(0.005))])
        for number in range(50):
            await anext(stream)
            await asyncio.sleep(0.1)
            assert engine.pulls <= number + 1
        assert engine.pulls >= 49
        await stream.aclose()

    async def test_the_clock_of_an_operator_waits_for_the_client(self) -> None:
        """No tick is lost: what was due while the client was away comes when it is back."""
        ticks = reactivex.interval(1.0).pipe(ops.take(500))
        stream = fuse(Engine()(), [ops.merge(ticks)])
        first = await anext(stream)
        await asyncio.sleep(1000)
        assert [first, *[item async for item in stream]] == list(range(500))

    async def test_a_disposed_timer_does_not_run(self) -> None:
        """One that waits for the client is gone with the operator that set it."""
        ran: list[int] = []
        leave: Subject[int] = Subject()

        def schedule(
            observer: abc.ObserverBase[int], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            assert scheduler is not None
            return scheduler.schedule_relative(80.5, lambda *_: ran.append(1))

        slow = Observable(schedule).pipe(ops.take_until(leave))
        stream = fuse(Engine(ends=False)(), [ops.merge(reactivex.interval(1.0), slow)])
        await anext(stream)
        await asyncio.sleep(200)
        leave.on_next(1)
        for _ in range(100):
            await anext(stream)
        assert ran == []
        await stream.aclose()

    async def test_who_pushes_without_end_fails_the_stream(self) -> None:
        """An operator that can't be held back is named when too much waits; what waits comes first."""
        subject: Subject[int] = Subject()
        engine = Engine([1], ends=False)
        stream = fuse(engine(), [ops.map(lambda item: item), ops.merge(subject), same()])
        assert await anext(stream) == 1
        for number in range(10_000):
            subject.on_next(number)
        seen = await collect(stream)
        assert seen.items == list(range(4096))
        assert seen.end == "RuntimeError('map, merge: more than 4096 items wait')"
        assert (engine.closed, subject.observers) == (1, [])

    async def test_what_the_source_brings_is_never_too_much(self) -> None:
        """One item may become any number of them."""
        stream = fuse(Engine([1])(), [ops.flat_map(lambda _: reactivex.range(0, 10_000))])
        assert await collect(stream) == Seen(list(range(10_000)), "completed")
