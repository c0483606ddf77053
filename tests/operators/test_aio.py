"""`operators._core.aio`: any ``aioreactive`` operator, anywhere in a list."""

# The types of ``aioreactive`` leave open what an operator without a source works on.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
import reactivex
from hypothesis import given
from hypothesis import strategies as st
from reactivex import operators as ops

from operators import NotAnOperator, fuse, until_terminal
from operators._core.aio import AioOperator, AioSegment, is_aio_operator
from operators._core.aio_operator import answers_within_asend
from operators._core.failures import SourceCancelled
from operators.authoring import FusedRun
from rx_backend.testing import VirtualTimeLoop
from tests.operators._help import (
    LONG_S,
    Engine,
    Owner,
    Seen,
    by_aclose,
    by_close,
    by_losing_it,
    collect,
    same,
    settle,
    spy,
    terminal,
    token,
    twice,
    virtual,
)

if TYPE_CHECKING or find_spec("aioreactive"):
    import aioreactive as rx
    from expression import Nothing, Option, Some

pytestmark = pytest.mark.needs("aioreactive")

ITEMS = [3, 1, 4, 1, 5]
Make = Callable[[], AioOperator]


def now() -> float:
    return round(asyncio.get_running_loop().time(), 3)


def busy() -> list[str]:
    """What is left on the loop besides the running task: tasks, and timers that are set."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    timers = [timer for _, _, timer in loop._timers if not timer.cancelled()]  # pyright: ignore[reportPrivateUsage]
    return [*map(repr, tasks), *map(repr, timers)]


async def first_of(stream: FusedRun[Any]) -> Any:
    return await anext(stream)


async def last_of(stream: FusedRun[Any]) -> None:
    async with asyncio.timeout(LONG_S):
        while True:
            await anext(stream)


async def timed(stream: AsyncIterator[Any]) -> list[tuple[float, Any]]:
    """The items of a stream, each with the time at which it came, and how it ended."""
    came: list[tuple[float, Any]] = []

    async def note() -> None:
        async for item in stream:
            came.append((now(), item))  # noqa: PERF401 - what came before a failure counts

    try:
        await asyncio.wait_for(note(), LONG_S)
    except Exception as error:
        came.append((now(), repr(error)))
    else:
        came.append((now(), "|"))
    return came


def pushing(engine: Engine, tasks: list[asyncio.Task[None]]) -> rx.AsyncObservable[Any]:
    """An engine's items, sent by a task as fast as they come."""

    async def push(observer: rx.AsyncObserver[Any]) -> None:
        try:
            async for item in engine():
                await observer.asend(item)
                # Or a failure would overtake what is in a mailbox still.
                for _ in range(9):
                    await asyncio.sleep(0)
        except Exception as error:
            await observer.athrow(error)
        else:
            await observer.aclose()

    async def subscribe(observer: rx.AsyncObserver[Any]) -> rx.AsyncDisposable:
        tasks.append(asyncio.create_task(push(observer)))
        return rx.AsyncDisposable.empty()

    return rx.AsyncRx(rx.AsyncAnonymousObservable(subscribe))


async def alone(engine: Engine, operator: AioOperator) -> list[tuple[float, Any]]:
    """What an operator gives outside of any pipeline, as :func:`timed` tells it."""
    came: list[tuple[float, Any]] = []
    over = asyncio.Event()

    async def send(item: Any) -> None:
        came.append((now(), item))

    async def throw(error: Exception) -> None:
        came.append((now(), repr(error)))
        over.set()

    async def close() -> None:
        came.append((now(), "|"))
        over.set()

    tasks: list[asyncio.Task[None]] = []
    await operator(pushing(engine, tasks)).subscribe_async(send, throw, close)
    await over.wait()
    await asyncio.wait(tasks)
    # The library leaves its tasks behind.
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0)
    return came


def identity(item: Any) -> Any:
    return item


def tenfold(item: int) -> int:
    return item * 10


def above_one(item: int) -> bool:
    return item > 1


def third(item: int) -> bool:
    return item % 3 == 2


def even_place(item: int, index: int) -> bool:
    return index % 2 == 0


def add(before: int, item: int) -> int:
    return before + item


def numbered(item: int, index: int) -> tuple[int, int]:
    return item, index


def negative(item: int) -> Option[int]:
    return Some(-item) if item > 1 else Nothing


def refusing(item: int) -> int:
    raise LookupError(f"no {item}")


def refuse_to_add(before: int, item: int) -> int:
    return refusing(item)


def refuse_to_number(item: int, index: int) -> int:
    return refusing(item)


async def plus_one(item: int) -> int:
    await asyncio.sleep(0.25)
    return item + 1


async def is_odd(item: int) -> bool:
    await asyncio.sleep(0.25)
    return item % 2 == 1


async def is_third(item: int) -> bool:
    return third(item)


async def add_late(before: int, item: int) -> int:
    await asyncio.sleep(0.25)
    return before + item


async def slowly(item: int) -> int:
    await asyncio.sleep(5)
    return item


def pair(item: int) -> rx.AsyncObservable[int]:
    return rx.from_iterable([item, -item])


async def late_pair(item: int) -> rx.AsyncObservable[int]:
    await asyncio.sleep(0.25)
    return pair(item)


def timer_of(item: int) -> rx.AsyncObservable[int]:
    return rx.timer(item + 0.5)


def ticks_of(item: int) -> rx.AsyncObservable[int]:
    return rx.interval(3, 3)


def refused(item: int) -> rx.AsyncObservable[int]:
    return rx.pipe(rx.single(item), rx.map(refusing))


def unsubscribable(item: int) -> rx.AsyncObservable[int]:
    async def subscribe(observer: rx.AsyncObserver[int]) -> rx.AsyncDisposable:
        raise LookupError(f"no {item}")

    return rx.AsyncAnonymousObservable(subscribe)


def by_method(source: Any) -> Any:
    """Operators as methods, as ``AsyncRx`` has them."""
    return source.map(abs).skip(1)


def unknown(*operators: Callable[[Any], Any]) -> AioOperator:
    """Operators in a function of one's own, of which nothing is known."""

    def applied(source: Any) -> Any:
        for operator in operators:
            source = operator(source)
        return source

    return applied


# Operators that emit within the asend that they are given an item by.
AT_ONCE: dict[str, Make] = {
    "choose": lambda: rx.choose(negative),
    "filter": lambda: rx.filter(above_one),
    "filter_async": lambda: rx.filter_async(is_odd),
    "map": lambda: rx.map(tenfold),
    "map_async": lambda: rx.map_async(plus_one),
    "scan": lambda: rx.scan(add, 0),
    "scan_async": lambda: rx.scan_async(add_late, 0),
}

# Operators that hand their items to a task, or emit from a timer.
DETACHED: dict[str, Make] = {
    "by-method": lambda: by_method,
    "catch": lambda: rx.catch(lambda error: rx.from_iterable([7, 8])),
    "combine_latest": lambda: rx.combine_latest(rx.interval(0.5, 10)),
    "concat": lambda: rx.concat(rx.from_iterable([7, 8])),
    "debounce": lambda: rx.debounce(0.5),
    "distinct_until_changed": lambda: rx.distinct_until_changed,
    "filteri": lambda: rx.filteri(even_place),
    "flat_map": lambda: rx.flat_map(pair),
    "flat_map-to-timers": lambda: rx.flat_map(timer_of),
    "flat_map_async": lambda: rx.flat_map_async(late_pair),
    "mapi": lambda: rx.mapi(numbered),
    "merge": lambda: rx.merge(rx.timer(2.5)),
    "pipe": lambda: unknown(rx.skip(1), rx.map_async(plus_one), rx.take(2)),
    "reduce": lambda: rx.reduce(add, 0),
    "skip": lambda: rx.skip(2),
    "skip_last": lambda: rx.skip_last(2),
    "take": lambda: rx.take(2),
    "take_last": lambda: rx.take_last(2),
    "take_until": lambda: rx.take_until(rx.timer(2.5)),
    "with_latest_from": lambda: rx.with_latest_from(rx.interval(0.5, 10)),
}

STOCK = AT_ONCE | DETACHED


class TestStockOperators:
    """In a list, an operator does what it does alone."""

    @pytest.mark.rows("S1")
    @pytest.mark.parametrize("name", STOCK)
    @pytest.mark.parametrize("items", [ITEMS, []], ids=["many", "empty"])
    @pytest.mark.parametrize("error", [None, LookupError("gone")], ids=["completed", "failed"])
    @virtual
    async def test_it_gives_the_same_at_the_same_times(
        self, name: str, items: list[int], error: Exception | None
    ) -> None:
        """Items, times and end are those of the operator under a source that is pushed."""
        make = STOCK[name]
        began = now()
        expected = await alone(Engine(items, error=error, every_s=1.0), make())
        took = now() - began
        engine = Engine(items, error=error, every_s=1.0)
        came = await timed(fuse(engine(), [same(), make(), same()]))
        assert [(time - took, item) for time, item in came] == expected
        await asyncio.sleep(1)
        assert (busy(), engine.closed) == ([], 1)

    @virtual
    async def test_all_three_kinds_in_one_list(self) -> None:
        """Ours, those of ``reactivex`` and those of ``aioreactive`` are mixed freely."""
        engine = Engine(range(1, 8))
        stream = fuse(
            engine(),
            [
                rx.map_async(plus_one),  # 2 3 4 5 6 7 8
                ops.filter(lambda item: item % 2 == 0),  # 2 4 6 8
                rx.skip(1),  # 4 6 8
                rx.distinct_until_changed,
                twice(),  # 4 4 6 6 8 8
                ops.buffer_with_count(3),
                rx.map(sum),  # 14 22
                same(),
            ],
        )
        assert await collect(stream) == Seen([14, 22], "completed")
        assert (engine.closed, busy()) == (1, [])


# One item for one: within asend, in a task of the library's, and through several of those.
ONE_FOR_ONE = pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: rx.map(identity), id="at-once"),
        pytest.param(lambda: rx.skip(0), id="detached"),
        pytest.param(lambda: unknown(rx.skip(0), rx.skip(0), rx.skip(0)), id="thrice"),
    ],
)


def bursting(*, tasks: list[asyncio.Task[None]]) -> AioOperator:
    """An operator of one's own: for each item its task emits the numbers below it."""

    def operator(source: rx.AsyncObservable[int]) -> rx.AsyncObservable[int]:
        async def subscribe(observer: rx.AsyncObserver[int]) -> rx.AsyncDisposable:
            async def burst(item: int) -> None:
                for number in range(item):
                    await observer.asend(number)
                    emitted.append(number)

            async def send(item: int) -> None:
                tasks.append(asyncio.create_task(burst(item)))

            return await source.subscribe_async(send, observer.athrow)

        return rx.AsyncAnonymousObservable(subscribe)

    emitted: list[int] = []
    setattr(operator, "emitted", emitted)  # noqa: B010 - what has gone out, for a test to read
    return operator


class TestPull:
    """What an ``aioreactive`` operator means for the pull (row S4)."""

    @pytest.mark.rows("S4")
    @ONE_FOR_ONE
    @virtual
    async def test_one_for_one(self, make: Make) -> None:
        """Nothing is pulled before the consumer pulls, and then one item for one."""
        engine = Engine(range(9))
        stream = fuse(engine(), [same(), make(), same()])
        await asyncio.sleep(1)
        assert engine.pulls == 0
        for number in range(4):
            assert await anext(stream) == number
            await asyncio.sleep(1)
            assert engine.pulls == number + 1
        await stream.aclose()

    @pytest.mark.rows("S4")
    @pytest.mark.parametrize(
        ("make", "pulls"),
        [
            pytest.param(lambda: rx.filter(third), [3, 6, 9], id="filter"),
            pytest.param(lambda: rx.filter_async(is_third), [3, 6, 9], id="filter_async"),
            pytest.param(lambda: rx.skip(4), [5, 6, 7], id="skip"),
            pytest.param(lambda: rx.flat_map(pair), [1, 2, 3], id="flat_map"),
            pytest.param(lambda: rx.concat(rx.never()), [1, 2, 3], id="concat"),
        ],
    )
    @virtual
    async def test_the_source_is_pulled_until_an_item_comes_out(
        self, make: Make, pulls: list[int]
    ) -> None:
        """No further than that; where items wait, once for each pull of the consumer."""
        engine = Engine(range(99))
        stream = fuse(engine(), [make()])
        counted: list[int] = []
        for _ in pulls:
            await anext(stream)
            await asyncio.sleep(1)
            counted.append(engine.pulls)
        assert counted == pulls
        await stream.aclose()

    @pytest.mark.rows("S4")
    @pytest.mark.parametrize(
        "make",
        [
            pytest.param(lambda: rx.map_async(slowly), id="within-asend"),
            pytest.param(lambda: unknown(rx.map_async(slowly)), id="unknown"),
        ],
    )
    @virtual
    async def test_nothing_is_pulled_while_a_step_is_awaited(self, make: Make) -> None:
        """The consumer waits for an asynchronous step, and so does the engine."""
        engine = Engine(range(9))
        stream = fuse(engine(), [same(), make(), same()])
        for number in range(3):
            pulling = asyncio.create_task(first_of(stream))
            await asyncio.sleep(4.9)
            assert (engine.pulls, pulling.done()) == (number + 1, False)
            await asyncio.sleep(0.2)
            assert await pulling == number
        await stream.aclose()

    @pytest.mark.rows("S4")
    @virtual
    async def test_nothing_is_pulled_while_nobody_waits(self) -> None:
        """Timers of an operator run on; its source is left alone but for one item."""
        engine = Engine(range(99), every_s=1.0)
        stream = fuse(engine(), [rx.merge(rx.interval(0.5, 10))])
        assert (await anext(stream), now()) == (0, 0.5)
        await asyncio.sleep(100.0)
        assert engine.pulls <= 1
        await stream.aclose()

    @pytest.mark.rows("S4")
    @virtual
    async def test_an_operator_that_emits_is_held_back(self) -> None:
        """Its ``asend`` returns while no more than one item waits to be taken."""
        tasks: list[asyncio.Task[None]] = []
        burst: Any = bursting(tasks=tasks)
        stream = fuse(Engine([100], ends=False)(), [burst])
        for number in range(5):
            assert await anext(stream) == number
            await asyncio.sleep(1)
            assert len(burst.emitted) <= number + 2
        await stream.aclose()
        await asyncio.wait(tasks)

    @pytest.mark.rows("S2", "S4")
    @virtual
    async def test_an_operator_that_ends_closes_the_source(self) -> None:
        """The engine is not pulled beyond what the operator took, and is closed by the end."""
        engine = Engine(range(9))
        seen = await collect(fuse(engine(), [same(), rx.take(2), same()]))
        assert seen == Seen([0, 1], "completed")
        assert (engine.pulls, engine.closed) == (2, 1)

    @pytest.mark.rows("P6a")
    @virtual
    async def test_the_last_item_completes_the_stream(self) -> None:
        """When the operator ends with its item, ours behind it are through before it is taken."""
        journal: list[str] = []
        stream = fuse(Engine(range(9))(), [rx.take(1), spy(journal)])
        assert await anext(stream) == 0
        assert journal == ["0", "|"]
        await stream.aclose()

    @pytest.mark.rows("P6a", "S2")
    @ONE_FOR_ONE
    @virtual
    async def test_a_terminal_ahead_completes_the_stream_behind(self, make: Make) -> None:
        """The end travels with the terminal through an operator that gives one for one."""
        journal: list[str] = []
        engine = Engine([token(1), terminal(), token(2)])
        stream = fuse(engine(), [until_terminal(), make(), spy(journal)])
        for _ in range(2):
            await anext(stream)
        assert journal[-1] == "|"
        await settle()
        assert (engine.pulls, engine.closed) == (2, 1)
        await stream.aclose()


class TestTime:
    """Timers of operators wake a consumer that waits, in the loop's time."""

    @virtual
    async def test_a_timer_alone_wakes_the_consumer(self) -> None:
        """The engine is silent; what the operator emits by itself comes out in time."""
        engine = Engine(ends=False)
        stream = fuse(engine(), [rx.merge(rx.interval(1, 2)), same()])
        came = [(await anext(stream), now()) for _ in range(3)]
        assert came == [(0, 1.0), (1, 3.0), (2, 5.0)]
        await stream.aclose()
        assert (engine.closed, busy()) == (1, [])

    @virtual
    async def test_a_timer_ends_the_stream_and_the_engine(self) -> None:
        """An engine that gives nothing more is left and closed when the operator's timer fires."""
        engine = Engine([1], ends=False, closing_s=3.0)
        stream = fuse(engine(), [same(), rx.take_until(rx.timer(5)), same()])
        assert await anext(stream) == 1
        assert await collect(stream) == Seen([], "completed")
        await asyncio.sleep(10)
        assert (engine.closed, busy()) == (1, [])

    @pytest.mark.rows("S2")
    @virtual
    async def test_an_operator_that_ends_while_nobody_waits(self) -> None:
        """The engine is closed then, not when somebody asks for more."""
        engine = Engine([1, 2])
        stream = fuse(engine(), [same(), rx.take_until(rx.timer(5)), same()])
        assert await anext(stream) == 1
        await asyncio.sleep(6)
        assert (engine.pulls, engine.closed) == (1, 1)
        assert await collect(stream) == Seen([], "completed")

    @virtual
    async def test_a_delay(self) -> None:
        """An item that comes alone is held for so long."""
        stream = fuse(Engine([1], every_s=1.0)(), [rx.delay(5)])
        came = await timed(stream)
        # The library reckons with the wall clock, which runs on a little meanwhile.
        assert [(pytest.approx(6, abs=0.5), 1), (pytest.approx(11, abs=1), "|")] == came


class Interrupted(BaseException):
    """A signal that is no ``Exception``."""


class TestErrors:
    """Failures on either side of an operator, and inside it."""

    @pytest.mark.rows("S6")
    @ONE_FOR_ONE
    @pytest.mark.parametrize("every_s", [None, 1.0], ids=["at-once", "waiting"])
    @virtual
    async def test_a_failure_passes_through(self, every_s: float | None, make: Make) -> None:
        """The engine's exception comes out as it is, seen by ours on both sides."""
        journal: list[str] = []
        gone = LookupError("gone")
        engine = Engine([1], error=gone, every_s=every_s)
        seen = await collect(fuse(engine(), [spy(journal, "a"), make(), spy(journal, "b")]))
        assert (seen.items, seen.error is gone) == ([1], True)
        assert journal == ["a1", "b1", "a#", "b#"]
        assert (engine.closed, busy()) == (1, [])

    @pytest.mark.rows("S6")
    @pytest.mark.parametrize(
        "make",
        [
            pytest.param(lambda: rx.map(refusing), id="map"),
            pytest.param(lambda: rx.scan(refuse_to_add, 0), id="scan"),
            pytest.param(lambda: rx.mapi(refuse_to_number), id="in-a-task"),
            pytest.param(lambda: rx.flat_map(refused), id="inner"),
            pytest.param(lambda: rx.flat_map(unsubscribable), id="subscribe"),
            pytest.param(lambda: unknown(lambda _: unsubscribable(1)), id="subscribe-at-once"),
        ],
    )
    @virtual
    async def test_an_operator_that_fails_closes_the_engine(self, make: Make) -> None:
        """It comes out of the pull, also where the library itself would only log it."""
        engine = Engine([1, 2])
        seen = await collect(fuse(engine(), [same(), make(), same()]))
        assert (seen, now()) == (Seen([], "LookupError('no 1')"), 0.0)
        assert (engine.closed, busy()) == (1 if engine.pulls else 0, [])

    @pytest.mark.rows("S6")
    @pytest.mark.parametrize("detached", [False, True])
    @pytest.mark.parametrize("signal", [asyncio.CancelledError, Interrupted])
    @pytest.mark.parametrize("of", ["engine", "step", "task"])
    @virtual
    async def test_what_is_no_exception_is_never_swallowed(
        self, of: str, signal: type[BaseException], detached: bool
    ) -> None:
        """
        It comes out of the pull, and is a drop for the engine and for ours.

        A cancellation of the engine's or the operator's own making is a failure.
        """
        is_failure = signal is asyncio.CancelledError

        async def step(item: int) -> int:
            if item == 2 and of == "step":
                raise signal
            return item

        async def inner(observer: rx.AsyncObserver[int]) -> rx.AsyncDisposable:
            raise signal

        def operator(source: rx.AsyncObservable[int]) -> rx.AsyncObservable[int]:
            if of == "task":
                failing = rx.AsyncAnonymousObservable(inner)
                return rx.flat_map(lambda item: rx.single(1) if item == 1 else failing)(source)
            return rx.map_async(step)(source)

        journal: list[str] = []
        engine = Engine([1, 2], error=signal() if of == "engine" else None)
        make = operator if detached or of == "task" else rx.map_async(step)
        stream = fuse(engine(), [spy(journal, "a"), make, spy(journal, "b")])
        assert await anext(stream) == 1
        with pytest.raises(SourceCancelled if is_failure else signal):
            await last_of(stream)
        assert now() == 0.0
        ends = sorted(entry for entry in journal if entry[-1] in "!|#")
        assert ends == [
            "a#" if is_failure and of == "engine" else "a!",
            "b#" if is_failure else "b!",
        ]
        await settle()
        assert (engine.closed, busy()) == (1, [])

    @virtual
    async def test_a_failure_can_be_caught(self) -> None:
        """An engine's, or that of an operator in the same function, can be turned into items."""

        def mapped(source: rx.AsyncObservable[int]) -> rx.AsyncObservable[int]:
            return rx.pipe(source, rx.map(refusing), rx.catch(lambda _: rx.from_iterable([7, 8])))

        engine = Engine([1], error=LookupError())
        assert await collect(fuse(engine(), [mapped])) == Seen([7, 8], "completed")
        caught = rx.catch(lambda error: rx.from_iterable([7, 8]))
        stream = fuse(Engine([1], error=LookupError())(), [same(), caught, same()])
        assert await collect(stream) == Seen([1, 7, 8], "completed")

    @virtual
    async def test_a_stream_can_be_subscribed_to_only_once(self) -> None:
        """An operator that turns to its source again is refused, and the error says why."""
        engine = Engine([1], error=LookupError())
        seen = await collect(fuse(engine(), [same(), rx.retry(3), same()]))
        assert seen == Seen([1], "RuntimeError('a token stream can be subscribed to only once')")
        assert (engine.closed, busy()) == (1, [])


# Operators in whose state a drop may find the stream.
HELD: dict[str, Make] = {
    "map": lambda: rx.map(identity),
    "slow-step": lambda: rx.map_async(slowly),
    "slow-step-in-a-task": lambda: unknown(rx.skip(0), rx.map_async(slowly)),
    "skip": lambda: rx.skip(0),
    "delay": lambda: rx.delay(5),
    "debounce": lambda: rx.debounce(5),
    "merge-with-a-timer": lambda: rx.merge(rx.interval(7, 7)),
    "flat_map-to-timers": lambda: rx.flat_map(ticks_of),
    "concat-never": lambda: unknown(lambda source: rx.concat_seq([rx.never(), source])),
    "combine_latest": lambda: rx.combine_latest(rx.interval(3, 3)),
    "switch_latest": lambda: unknown(rx.map(ticks_of), rx.switch_latest()),
    "burst": lambda: bursting(tasks=[]),
}


class TestDrop:
    """A drop leaves nothing, in whatever state it finds the operator."""

    @pytest.mark.rows("S7")
    @pytest.mark.parametrize("way", [by_close, by_aclose, by_losing_it])
    @pytest.mark.parametrize("pulled_s", [None, 0.0, 12.0], ids=["unpulled", "begun", "later"])
    @pytest.mark.parametrize("name", HELD)
    @virtual
    async def test_while_nobody_waits(
        self,
        name: str,
        pulled_s: float | None,
        way: Callable[[Owner], Awaitable[None]],
    ) -> None:
        """Engine and operators are closed once; no task, no timer is left, and nothing is said."""
        journal: list[str] = []
        engine = Engine([1, 2], ends=False, closing_s=2.0)
        owner = [fuse(engine(), [spy(journal, "a"), HELD[name](), spy(journal, "b")])]
        if pulled_s is not None:
            pulling = asyncio.create_task(first_of(owner[0]))
            await asyncio.sleep(pulled_s)
            pulling.cancel()
            await asyncio.wait([pulling])
            del pulling
        await way(owner)
        await asyncio.sleep(3.0)
        assert busy() == []
        assert engine.closed == (1 if engine.pulls else 0)
        assert sorted(entry for entry in journal if entry[-1] in "!|#") == ["a!", "b!"]

    @pytest.mark.rows("S7")
    @pytest.mark.parametrize("way", [by_close, by_aclose])
    @pytest.mark.parametrize("closing_s", [None, 2.0], ids=["quick", "slow-to-close"])
    @pytest.mark.parametrize("after_s", [0.0, 1.0, 12.5])
    @pytest.mark.parametrize("name", HELD)
    @virtual
    async def test_while_a_task_waits(
        self,
        name: str,
        after_s: float,
        closing_s: float | None,
        way: Callable[[Owner], Awaitable[None]],
    ) -> None:
        """The pull ends there, and all the rest as when nobody waits."""
        journal: list[str] = []
        engine = Engine([1, 2], ends=False, closing_s=closing_s)
        owner = [fuse(engine(), [spy(journal, "a"), HELD[name](), spy(journal, "b")])]
        pulling = asyncio.create_task(collect(owner[0]))
        await asyncio.sleep(after_s)
        await way(owner)
        assert (await pulling).end == "completed"
        if way is by_aclose and name != "debounce":
            assert busy() == []
        # A task of debounce has nothing left to do, but sleeps on for its five seconds.
        await asyncio.sleep(5.0)
        assert busy() == []
        assert engine.closed == (1 if engine.pulls else 0)
        assert sorted(entry for entry in journal if entry[-1] in "!|#") == ["a!", "b!"]

    @pytest.mark.rows("S7")
    @given(
        name=st.sampled_from(sorted(HELD)),
        way=st.sampled_from([by_close, by_aclose, by_losing_it]),
        pulls=st.integers(0, 3),
        turns=st.integers(0, 25),
        cancels=st.booleans(),
    )
    def test_in_any_turn_of_the_loop(
        self,
        name: str,
        way: Callable[[Owner], Awaitable[None]],
        pulls: int,
        turns: int,
        cancels: bool,
    ) -> None:
        """Wherever messages are between the operator's tasks, all of them end, and the engine."""

        @virtual
        async def drop() -> None:
            engine = Engine([1, 2, 3], ends=False)
            owner = [fuse(engine(), [same(), HELD[name](), rx.skip(0), same()])]
            with suppress(TimeoutError):
                for _ in range(pulls):
                    await asyncio.wait_for(anext(owner[0]), 20)
            pulling = asyncio.create_task(first_of(owner[0]))
            for _ in range(turns):
                await asyncio.sleep(0)
            if cancels or way is by_losing_it:
                pulling.cancel()
                await asyncio.wait([pulling])
            await way(owner)
            await asyncio.wait([pulling])
            if not pulling.cancelled():
                pulling.exception()
            del pulling
            await asyncio.sleep(5)
            assert (busy(), engine.closed) == ([], 1 if engine.pulls else 0)

        drop()

    @pytest.mark.rows("S7")
    @pytest.mark.parametrize("detached", [False, True])
    @virtual
    async def test_a_step_under_way_is_cancelled(self, detached: bool) -> None:
        """Its clean-up runs to the end, and ``aclose`` waits for it."""
        ended: list[float] = []

        async def step(item: int) -> int:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(2)
                ended.append(now())
            return item

        def operator(source: rx.AsyncObservable[int]) -> rx.AsyncObservable[int]:
            return rx.map_async(step)(source)

        stream = fuse(Engine([1])(), [operator if detached else rx.map_async(step), same()])
        pulling = asyncio.create_task(collect(stream))
        await asyncio.sleep(1)
        await stream.aclose()
        assert ended == [3.0]
        assert (await pulling).items == []

    @pytest.mark.rows("S7")
    @pytest.mark.parametrize("way", [by_close, by_aclose, by_losing_it])
    @virtual
    async def test_inner_streams_are_disposed_of(
        self, way: Callable[[Owner], Awaitable[None]]
    ) -> None:
        """Those of a user, begun in a task of the library's, hear of the drop."""
        disposed: list[int] = []

        def inner(item: int) -> rx.AsyncObservable[int]:
            async def subscribe(observer: rx.AsyncObserver[int]) -> rx.AsyncDisposable:
                async def dispose() -> None:
                    await asyncio.sleep(1)
                    disposed.append(item)

                await observer.asend(item)
                return rx.AsyncDisposable.create(dispose)

            return rx.AsyncAnonymousObservable(subscribe)

        owner = [fuse(Engine([1, 2], ends=False)(), [rx.flat_map(inner)])]
        assert [await anext(owner[0]), await anext(owner[0])] == [1, 2]
        await way(owner)
        await asyncio.sleep(3)
        assert (sorted(disposed), busy()) == ([1, 2], [])


class TestKinds:
    """What is taken for an operator of which kind."""

    def test_operators_of_the_library_are_known(self) -> None:
        """Whatever they are made of, and also where they are methods in a user's function."""
        assert [name for name, make in STOCK.items() if not is_aio_operator(make())] == []

    def test_those_that_answer_within_asend_are_known(self) -> None:
        """By name, and no others."""
        assert [name for name, make in STOCK.items() if answers_within_asend(make())] == [*AT_ONCE]

    def test_others_are_not(self) -> None:
        """Ours, those of ``reactivex``, functions of either, and what is no operator at all."""

        async def step(item: int) -> int:
            return item

        of_reactivex: Any = reactivex.compose(ops.skip(1), ops.map(identity))
        for other in (same(), ops.skip(1), of_reactivex, ops.map, rx.map, len, step):
            assert not is_aio_operator(other)

    @virtual
    async def test_what_is_no_operator_is_refused(self) -> None:
        """The error names the place, and what is wrong."""
        source = FusedRun[Any](Engine([1])(), [])
        wrong: Any = rx.map
        with pytest.raises(
            NotAnOperator, match=r"pipeline\[3\].*it gave function, expected an Async"
        ):
            AioSegment(source, [wrong], ("pipeline", 3))
        with pytest.raises(NotAnOperator, match=r"pipeline\[3\].*can't be applied.*'foo'"):
            AioSegment(source, [lambda source: source.foo], ("pipeline", 3))
        await source.aclose()
