"""`operators._core.pump`: a source that is pulled in a task of its own, and clients slower than it."""

# The types of ``reactivex`` leave open what an operator without a source works on.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import contextvars
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

from operators import coalesce, fuse, heartbeat, share_replay
from operators._core.failures import SourceCancelled
from operators._core.pump import Pump
from operators.authoring import AnyOperator, FusedRun, operator
from rx_backend.testing import run_virtual
from tests.engines import virtual
from tests.examples import examples
from tests.operators._help import LONG_S, Engine, Seen, collect, same, settle, spy

if TYPE_CHECKING or find_spec("aioreactive"):
    import aioreactive as rx

NUMBER: contextvars.ContextVar[int] = contextvars.ContextVar("NUMBER", default=0)


@operator
async def delayed(source: FusedRun[Any], delay_s: float) -> AsyncGenerator[Any]:
    """Delay each item, and pull no further meanwhile."""
    async for item in source:
        await asyncio.sleep(delay_s)
        yield item


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


AHEAD: dict[str, Callable[[AsyncGenerator[int]], Any]] = {
    "coalesce": lambda engine: fuse(engine, [coalesce(max_chunks=1000)]),
    "share_replay": lambda engine: share_replay(ahead=1000)(engine).read(),
}


@pytest.mark.parametrize("ahead", AHEAD)
@examples(25)
@given(count=st.integers(100, 300), first=st.integers(1, 5))
def test_an_engine_that_never_waits_leaves_others_their_turn(
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
    def test_everything_comes_out_in_order(
        self, period_ms: int, client_ms: int, every_ms: int, count: int
    ) -> None:
        """The engine goes on, what waits is bounded, and the request ends."""

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
    @virtual
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

    @virtual
    async def test_the_clock_of_an_operator_waits_for_the_client(self) -> None:
        """No tick is lost: what was due while the client was away comes when it is back."""
        ticks = reactivex.interval(1.0).pipe(ops.take(500))
        stream = fuse(Engine()(), [ops.merge(ticks)])
        first = await anext(stream)
        await asyncio.sleep(1000)
        assert [first, *[item async for item in stream]] == list(range(500))

    @virtual
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

    @virtual
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
        assert seen.end.startswith(
            'RuntimeError("map, merge: more than 4096 items wait for the cons'
        )
        assert (engine.closed, subject.observers) == (1, [])

    @pytest.mark.parametrize("burst", [4096, 4097])
    @pytest.mark.parametrize(
        ("listed", "name"),
        [
            ([ops.delay(1.0)], "delay"),
            ([ops.buffer_with_time(1.0), ops.flat_map(reactivex.of)], None),
            # The operator's name in front differs from release to release.
            ([ops.buffer_with_time(1.0), ops.flat_map(reactivex.from_iterable)], ", flat_map"),
            ([delayed(1.0)], None),
        ],
    )
    @virtual
    async def test_what_a_timer_emits_at_once_is_bounded(
        self, listed: list[AnyOperator], name: str | None, burst: int
    ) -> None:
        """A burst of an engine that it holds back and lets go; the error says what to do instead."""
        engine = Engine(range(burst), closing_s=5.0)
        seen = await collect(fuse(engine(), listed))
        if name is None or burst == 4096:
            assert seen.end == "completed"
        else:
            assert seen.end.startswith('RuntimeError("')
            assert f"{name}: more than 4096 items wait for the consumer" in seen.end
            assert "await in an operator that pulls its source" in seen.end

    @virtual
    async def test_what_the_source_brings_is_never_too_much(self) -> None:
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
    @virtual
    async def test_a_timeout_of_the_engine_ends_the_stream(
        self, name: str, client_s: float
    ) -> None:
        """Whether it fires in a pull or while the client is away, the client is told."""

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
    def test_a_lost_stream_takes_its_pump_along(self, name: str, way: str) -> None:
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
