"""`operators._core.pump`: a source that is pulled in a task of its own, and clients slower than it."""

# The types of ``reactivex`` leave open what an operator without a source works on.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncGenerator, Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
import reactivex
from hypothesis import given
from hypothesis import strategies as st
from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.subject import Subject

from operators import coalesce, fuse, share_replay
from operators._core.failures import SourceCancelled
from operators._core.pump import Pump
from operators.authoring import AnyOperator, FusedRun, operator
from rx_backend.testing import run_virtual
from tests.examples import examples
from tests.operators._help import LONG_S, Engine, Seen, collect, same

if TYPE_CHECKING or find_spec("aioreactive"):
    import aioreactive as rx


@operator
async def delayed(source: FusedRun[Any], delay_s: float) -> AsyncGenerator[Any]:
    """Delay each item, and pull no further meanwhile."""
    async for item in source:
        await asyncio.sleep(delay_s)
        yield item


AHEAD: dict[str, Callable[[AsyncGenerator[int]], Any]] = {
    "coalesce": lambda engine: fuse(engine, [coalesce(max_chunks=1000)]),
    "share_replay": lambda engine: share_replay(max_ahead=1000)(engine).read(),
}


@pytest.mark.parametrize("ahead", AHEAD)
@examples(25)
@given(count=st.integers(100, 300), first=st.integers(1, 5))
def test_an_engine_that_never_waits_yields_to_other_tasks(
    ahead: str, count: int, first: int
) -> None:
    """While it is pulled ahead, other tasks of the loop run after a few items."""

    async def main() -> None:
        pulled = longest = 0

        async def engine() -> AsyncGenerator[int]:
            nonlocal pulled
            for number in range(count):
                pulled += 1
                yield number

        async def others() -> None:
            nonlocal longest
            before = 0
            while before < count:
                longest, before = max(longest, pulled - before), pulled
                await asyncio.sleep(0)

        other = asyncio.create_task(others())
        stream = AHEAD[ahead](engine())
        for _ in range(first):
            await anext(stream)
        await other
        assert longest <= 32
        await stream.aclose()

    run_virtual(main())


class TestHandlers:
    """``on_item`` and ``on_end`` as coroutine functions."""

    @pytest.mark.rows("S4")
    async def test_a_demand_during_handling_is_the_next_pull(self) -> None:
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
        pump.demand()
        assert not pump.busy
        assert noted == ["1", "handled" if is_inside else "cancelled"]
        assert engine.closed == 1

    @pytest.mark.rows("S6")
    @pytest.mark.parametrize("waits", [True, False])
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


# The library's own type is that of whole seconds.
PERIOD_S: Any = 0.005


async def slowly(stream: Any, client_s: float) -> tuple[list[Any], int]:
    """All items of a stream, for a client that takes so long for each; and how many waited at most."""
    items: list[Any] = []
    most = 0
    async for item in stream:
        items.append(item)
        await asyncio.sleep(client_s)
        most = max(most, len(stream._chain.source._inbox))
    return items, most


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
    def test_everything_comes_out_in_order_and_bounded(
        self, period_ms: int, client_ms: int, every_ms: int, count: int
    ) -> None:
        """The engine continues, what waits is bounded, and the request ends."""

        async def run() -> None:
            engine = Engine(range(count), every_s=every_ms / 1000)
            stream = fuse(engine(), [ops.buffer_with_time(period_ms / 1000)])
            async with asyncio.timeout(100):
                lists, most = await slowly(stream, client_ms / 1000)
            assert [item for each in lists for item in each] == list(range(count))
            assert engine.closed == 1
            assert most <= 65

        run_virtual(run())

    @pytest.mark.rows("S4")
    @pytest.mark.parametrize(
        "make",
        [
            lambda: ops.merge(reactivex.interval(0.005)),
            pytest.param(
                lambda: rx.merge(rx.interval(0.005, PERIOD_S)),
                marks=pytest.mark.needs("aioreactive"),
            ),
        ],
        ids=["reactivex", "aioreactive"],
    )
    async def test_at_most_one_pull_per_pull_of_the_consumer(
        self, make: Callable[[], AnyOperator]
    ) -> None:
        """Also where a timer has filled what waits."""
        engine = Engine(range(999))
        stream = fuse(engine(), [make()])
        for number in range(50):
            await anext(stream)
            await asyncio.sleep(0.1)
            assert engine.pulls <= number + 1
        assert engine.pulls >= 49
        await stream.aclose()

    async def test_an_operators_timer_waits_for_the_client(self) -> None:
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

    async def test_an_operator_that_pushes_without_end_fails_the_stream(self) -> None:
        """An operator that can't be held back is named when too much waits; what waits comes first."""
        subject: Subject[int] = Subject()
        engine = Engine([1], ends=False)
        stream = fuse(engine(), [ops.map(lambda item: item), ops.merge(subject), same()])
        assert await anext(stream) == 1
        for number in range(10_000):
            subject.on_next(number)
        seen = await collect(stream)
        assert seen.items == list(range(4096))
        assert seen.end.startswith(
            "RuntimeError('map, merge: more than 4096 items wait for the cons"
        )
        assert (engine.closed, subject.observers) == (1, [])

    @pytest.mark.parametrize(
        ("listed", "burst", "name"),
        [
            ([ops.delay(1.0)], 4096, None),
            ([ops.delay(1.0)], 4097, "delay"),
            ([ops.buffer_with_time(1.0), ops.flat_map(reactivex.of)], 4097, None),
            # The operator's name in front differs from release to release.
            (
                [ops.buffer_with_time(1.0), ops.flat_map(reactivex.from_iterable)],
                4097,
                ", flat_map",
            ),
            ([delayed(1.0)], 4097, None),
        ],
    )
    async def test_a_burst_from_a_timer_is_bounded(
        self, listed: list[AnyOperator], burst: int, name: str | None
    ) -> None:
        """A burst of items held back and then released; the error says what to do instead."""
        engine = Engine(range(burst), closing_s=5.0)
        seen = await collect(fuse(engine(), listed))
        if name is None:
            assert seen.end == "completed"
        else:
            assert seen.end.startswith("RuntimeError('")
            assert f"{name}: more than 4096 items wait for the consumer" in seen.end
            assert "use an async generator operator" in seen.end

    async def test_a_burst_from_the_source_is_not_bounded(self) -> None:
        """One item may become any number of them."""
        stream = fuse(Engine([1])(), [ops.flat_map(lambda _: reactivex.range(0, 10_000))])
        assert await collect(stream) == Seen(list(range(10_000)), "completed")


# What pulls in a task of its own.
DETACHED: dict[str, Callable[[], AnyOperator]] = {
    "reactivex": lambda: ops.delay(0.001),
    "timer": lambda: ops.merge(reactivex.interval(0.001).pipe(ops.ignore_elements())),
    "aioreactive": lambda: rx.skip(0),
}
EACH = pytest.mark.parametrize(
    "name",
    ["reactivex", "timer", pytest.param("aioreactive", marks=pytest.mark.needs("aioreactive"))],
)


class TestPump:
    """The task that pulls for an operator, whatever becomes of it."""

    @pytest.mark.rows("S6")
    @EACH
    @pytest.mark.parametrize("client_s", [0.0, 0.03, 5.0])
    async def test_a_timeout_of_the_engine_ends_the_stream(
        self, name: str, client_s: float
    ) -> None:
        """Whether it fires in a pull or between pulls, the client gets the error."""

        async def engine() -> AsyncGenerator[int]:
            async with asyncio.timeout(0.1):
                for number in range(100):
                    await asyncio.sleep(0.01)
                    yield number

        stream = fuse(engine(), [DETACHED[name](), same()])

        async def consume() -> None:
            async for _ in stream:
                await asyncio.sleep(client_s)

        with pytest.raises((TimeoutError, SourceCancelled)):
            await asyncio.wait_for(consume(), LONG_S)
        assert asyncio.get_running_loop().time() < 100

    @pytest.mark.rows("S7")
    @pytest.mark.parametrize(
        "way",
        [
            "cycle",
            "frame",
        ],
    )
    @EACH
    def test_a_collected_stream_ends_its_pump(self, name: str, way: str) -> None:
        """In a cycle, also one through the engine's frame: closed, and asyncio says nothing."""
        said: list[str] = []
        closed: list[int] = []

        async def engine(owner: list[Any]) -> AsyncGenerator[int]:
            try:
                for number in range(9):
                    yield number
            finally:
                assert owner is not None
                closed.append(1)

        async def run() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, what: said.append(what["message"]))
            for _ in range(20):
                owner: list[Any] = []
                stream = fuse(engine(owner if way == "frame" else []), [DETACHED[name](), same()])
                owner.append(stream)
                owner.append(owner)
                await anext(stream)
                del stream, owner
                gc.collect()
                await asyncio.sleep(0.01)
            await asyncio.sleep(1)
            gc.collect()
            await asyncio.sleep(1)
            left = [task for task in asyncio.all_tasks() if "_pull_on_demand" in repr(task)]
            assert left == []

        run_virtual(run())
        gc.collect()
        assert (said, len(closed)) == ([], 20)

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
    @EACH
    def test_an_eager_task_factory_changes_nothing(self, name: str) -> None:
        """The pump shares the context that its first demand is made in."""

        async def run() -> Seen:
            loop = asyncio.get_running_loop()
            factory: Any = getattr(asyncio, "eager_task_factory")  # noqa: B009 - not in 3.11
            loop.set_task_factory(factory)
            stream = fuse(Engine(range(3))(), [DETACHED[name]()])
            return await collect(stream, take=3)

        assert run_virtual(run()) == Seen([0, 1, 2], "dropped")
