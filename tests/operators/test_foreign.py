"""`operators._core.rx`: any ``reactivex`` operator, anywhere in a list."""

# The types of ``reactivex`` leave open what an operator without a source works on.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeAlias

import pytest
import reactivex
from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.scheduler import NewThreadScheduler

from operators import fuse, until_terminal
from operators._core.failures import SourceCancelled
from operators.authoring import AnyOperator, FusedRun, Stage, operator
from rx_backend.testing import VirtualTimeLoop
from tests.operators._help import (
    LONG_S,
    Engine,
    Life,
    Owner,
    Seen,
    by_aclose,
    by_close,
    by_losing_it,
    collect,
    fused,
    fused_waiting,
    pushed,
    same,
    settle,
    spy,
    terminal,
    token,
    twice,
    virtual,
)

RxOperator: TypeAlias = Callable[[Observable[Any]], Observable[Any]]

ITEMS = [3, 1, 4, 1, 5]


def now() -> float:
    return round(asyncio.get_running_loop().time(), 3)


def busy() -> list[str]:
    """What is left on the loop besides the running task: tasks, and timers that are set."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    timers = [timer for _, _, timer in loop._timers if not timer.cancelled()]  # pyright: ignore[reportPrivateUsage]
    return [*map(repr, tasks), *map(repr, timers)]


def known(operator: RxOperator) -> RxOperator:
    """The operator as it is."""
    return operator


def unknown(operator: RxOperator) -> RxOperator:
    """The same operator, of a kind that nothing is known of."""

    def applied(source: Observable[Any]) -> Observable[Any]:
        return operator(source)

    return applied


KINDS = pytest.mark.parametrize("kind", [known, unknown])


def ticking(period_s: float) -> RxOperator:
    """Merge the source with a timer."""
    return ops.merge(reactivex.interval(period_s))


def custom(
    source: Observable[Any], on_next: Callable[[abc.ObserverBase[Any], Any], None]
) -> Observable[Any]:
    """An Observable that does something of its own with each item."""

    def subscribe(
        observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        return source.subscribe(
            lambda item: on_next(observer, item),
            observer.on_error,
            observer.on_completed,
            scheduler=scheduler,
        )

    return Observable(subscribe)


def ends(journal: list[str]) -> list[str]:
    """What spies noted of the end, in order of their names."""
    return sorted(entry for entry in journal if entry[-1] in "!|#")


async def timed(stream: FusedRun[Any]) -> list[tuple[float, Any]]:
    """The items of a stream, each with the time at which it came."""
    return [(now(), item) async for item in stream]


def plain(item: Any) -> Any:
    """A ``TimeInterval`` as a pair, anything else as it is."""
    interval = getattr(item, "interval", None)
    return item if interval is None else (item.value, interval.total_seconds())


def shown(seen: Seen) -> tuple[list[str], str]:
    """What came out, in a form in which notifications can be compared."""
    return [str(item) for item in seen.items], seen.end


async def first_of(stream: FusedRun[Any]) -> Any:
    return await anext(stream)


def leaves_two(item: int) -> bool:
    """Whether a division by three leaves two."""
    return item % 3 == 2


def timer_of(item: int) -> Observable[int]:
    """An item that comes later, the sooner the greater it is."""
    return reactivex.timer(10.0 - 4 * item).pipe(ops.map(lambda _: item))


# Operators that emit within the signals of their source. Known by name, they answer at once.
AT_ONCE: dict[str, Callable[[], RxOperator]] = {
    "average": ops.average,
    "count": ops.count,
    "default_if_empty": lambda: ops.default_if_empty(9),
    "distinct": ops.distinct,
    "distinct_until_changed": lambda: ops.distinct_until_changed(lambda item: item > 2),
    "do_action": lambda: ops.do_action(lambda item: None),
    "element_at": lambda: ops.element_at_or_default(2, 9),
    "filter": lambda: ops.filter(lambda item: item > 1),
    "first": ops.first,
    "ignore_elements": ops.ignore_elements,
    "last": ops.last,
    "map": lambda: ops.map(lambda item: item * 10),
    "materialize": ops.materialize,
    "max": ops.max,
    "pairwise": ops.pairwise,
    "reduce": lambda: ops.reduce(lambda total, item: total + item),
    "scan": lambda: ops.scan(lambda total, item: total + item),
    "skip": lambda: ops.skip(2),
    "skip_last": lambda: ops.skip_last(2),
    "skip_while": lambda: ops.skip_while(lambda item: item != 4),
    "sum": ops.sum,
    "take": lambda: ops.take(2),
    "take_last": lambda: ops.take_last(2),
    "take_none": lambda: ops.take(0),
    "take_while": lambda: ops.take_while(lambda item: item != 4),
    "to_iterable": ops.to_iterable,
}

# Operators that may emit at any time: they are detached from the pull.
DETACHED: dict[str, Callable[[], RxOperator]] = {
    "buffer_with_count": lambda: ops.buffer_with_count(2),
    "catch": lambda: ops.catch(reactivex.of(7, 8)),
    "concat": lambda: ops.concat(reactivex.of(7, 8)),
    "concat-first": lambda: lambda source: reactivex.concat(reactivex.of(7, 8), source),
    "expand": lambda: ops.expand(
        lambda item: reactivex.of(item + 1) if item < 3 else reactivex.empty()
    ),
    "flat_map": lambda: ops.flat_map(lambda item: reactivex.of(item, -item)),
    "merge": lambda: ops.merge(reactivex.never().pipe(ops.take_until(reactivex.of(1)))),
    "on_error_resume_next": lambda: ops.on_error_resume_next(reactivex.of(7, 8)),
    "pipe": lambda: unknown(lambda source: source.pipe(ops.map(abs), ops.skip(1))),
    "repeat-once": lambda: ops.repeat(1),
    "start_with": lambda: ops.start_with(7, 8),
    "switch_map": lambda: unknown(
        lambda source: source.pipe(ops.map(reactivex.of), ops.switch_latest())
    ),
    "to_list": ops.to_list,
    "with_latest_from": lambda: ops.with_latest_from(reactivex.of(7)),
    "zip": lambda: ops.zip(reactivex.of(7, 8)),
}

STOCK = AT_ONCE | DETACHED


class TestStockOperators:
    """Fused, a stock operator does what it does in a ``pipe``."""

    @pytest.mark.rows("S1")
    @pytest.mark.parametrize("name", STOCK)
    @pytest.mark.parametrize("items", [ITEMS, []], ids=["many", "empty"])
    @pytest.mark.parametrize("error", [None, LookupError("gone")], ids=["completed", "failed"])
    @pytest.mark.parametrize("life", [fused, fused_waiting])
    def test_it_gives_the_same(
        self, life: Life, name: str, items: list[int], error: Exception | None
    ) -> None:
        """Alone, and between operators of ours on either side."""
        make = STOCK[name]
        lists: list[list[AnyOperator]] = [[make()], [twice(), make(), same()]]
        for operators in lists:
            piped = pushed(items, *operators, error=error)
            assert shown(life(items, *operators, error=error)) == shown(piped)

    @pytest.mark.rows("S1")
    @pytest.mark.parametrize("name", STOCK)
    def test_it_may_stand_beside_another(self, name: str) -> None:
        """Two of them in a row, without one of ours between, give what they give in a ``pipe``."""
        for other in (ops.map(lambda item: item), unknown(ops.map(lambda item: item))):
            first, second = STOCK[name](), STOCK[name]()
            assert shown(fused(ITEMS, first, other)) == shown(pushed(ITEMS, first, other))
            assert shown(fused(ITEMS, other, second)) == shown(pushed(ITEMS, other, second))

    @pytest.mark.rows("S7")
    @pytest.mark.parametrize("name", STOCK)
    @pytest.mark.parametrize("take", [1, 2])
    @virtual
    async def test_it_leaves_nothing_behind_in_a_drop(self, name: str, take: int) -> None:
        """After a drop the engine is closed once, and no task and no timer is left."""
        engine = Engine(ITEMS, ends=False)
        stream = fuse(engine(), [same(), STOCK[name](), same()])
        await collect(stream, take=take)
        await asyncio.sleep(1)
        assert busy() == []
        assert engine.closed == (1 if engine.pulls else 0)


class TestPull:
    """What a foreign operator means for the pull (row S4)."""

    @pytest.mark.rows("S4")
    @KINDS
    @virtual
    async def test_one_for_one(self, kind: Callable[[RxOperator], RxOperator]) -> None:
        """Nothing is pulled before the consumer pulls, and then one item for one."""
        engine = Engine(range(9))
        stream = fuse(engine(), [same(), kind(ops.map(lambda item: -item)), same()])
        await asyncio.sleep(1)
        assert engine.pulls == 0
        for number in range(4):
            assert await anext(stream) == -number
            await asyncio.sleep(1)
            assert engine.pulls == number + 1
        await stream.aclose()

    @pytest.mark.rows("S4")
    @pytest.mark.parametrize(
        ("operator", "pulls"),
        [
            pytest.param(ops.filter(leaves_two), [3, 6, 9], id="filter"),
            pytest.param(unknown(ops.filter(leaves_two)), [3, 6, 9], id="unknown"),
            pytest.param(ops.buffer_with_count(3), [3, 6, 9], id="buffer_with_count"),
            pytest.param(
                ops.flat_map(lambda item: reactivex.of(item, item)), [1, 1, 2], id="flat_map"
            ),
            pytest.param(ops.skip(4), [5, 6, 7], id="skip"),
        ],
    )
    @virtual
    async def test_the_source_is_pulled_until_an_item_comes_out(
        self, operator: RxOperator, pulls: list[int]
    ) -> None:
        """No further than that, and not at all while items wait."""
        engine = Engine(range(99))
        stream = fuse(engine(), [operator])
        counted: list[int] = []
        for _ in pulls:
            await anext(stream)
            await asyncio.sleep(1)
            counted.append(engine.pulls)
        assert counted == pulls
        await stream.aclose()

    @pytest.mark.rows("S4")
    @virtual
    async def test_nothing_is_pulled_while_nobody_waits(self) -> None:
        """A detached operator's own timers run on; its source is left alone but for one item."""
        engine = Engine(range(99), every_s=1.0)
        stream = fuse(engine(), [ticking(10.0)])
        assert await anext(stream) == 0
        await asyncio.sleep(100.0)
        assert engine.pulls <= 2
        await stream.aclose()

    @pytest.mark.rows("S2", "S4")
    @KINDS
    @virtual
    async def test_an_operator_that_ends_closes_the_source(
        self, kind: Callable[[RxOperator], RxOperator]
    ) -> None:
        """The engine is not pulled beyond what the operator took, and is closed by the end."""
        engine = Engine(range(9))
        seen = await collect(fuse(engine(), [same(), kind(ops.take(2)), same()]))
        assert seen == Seen([0, 1], "completed")
        assert (engine.pulls, engine.closed) == (2, 1)

    @pytest.mark.rows("P6a")
    @KINDS
    @virtual
    async def test_the_last_item_completes_the_stream(
        self, kind: Callable[[RxOperator], RxOperator]
    ) -> None:
        """When the operator ends with its item, ours behind it are through before it is taken."""
        journal: list[str] = []
        stream = fuse(Engine(range(9))(), [kind(ops.take(1)), spy(journal)])
        assert await anext(stream) == 0
        assert journal == ["0", "|"]
        assert stream.ended
        await stream.aclose()

    @pytest.mark.rows("P6a", "S2")
    @KINDS
    @virtual
    async def test_a_terminal_ahead_completes_the_stream_behind(
        self, kind: Callable[[RxOperator], RxOperator]
    ) -> None:
        """The end travels with the terminal through a foreign operator that gives one for one."""
        journal: list[str] = []
        engine = Engine([token(1), terminal(), token(2)])
        mapped = kind(ops.map(lambda chunk: chunk))
        stream = fuse(engine(), [until_terminal(), mapped, spy(journal)])
        for _ in range(2):
            await anext(stream)
        assert journal[-1] == "|"
        await settle()
        assert (engine.pulls, engine.closed) == (2, 1)
        await stream.aclose()


def subscribed_late(source: Observable[Any]) -> Observable[Any]:
    """Turn to the source after four seconds."""
    return reactivex.timer(4.0).pipe(ops.flat_map(lambda _: source))


class TestTime:
    """Timers of foreign operators obey the loop's time, and wake a consumer that waits."""

    @pytest.mark.parametrize(
        ("operator", "expected"),
        [
            pytest.param(lambda: ops.delay(5.0), [(6, 0), (7, 1), (8, 2)], id="delay"),
            pytest.param(lambda: ops.debounce(0.5), [(1.5, 0), (2.5, 1), (3, 2)], id="debounce"),
            pytest.param(lambda: ops.sample(2.5), [(2.5, 1), (5, 2)], id="sample"),
            pytest.param(
                lambda: ops.buffer_with_time(2.5), [(2.5, [0, 1]), (3, [2])], id="buffer_with_time"
            ),
            pytest.param(lambda: subscribed_late, [(5, 0), (6, 1), (7, 2)], id="late-subscription"),
            pytest.param(lambda: ops.take_with_time(2.5), [(1, 0), (2, 1)], id="take_with_time"),
            pytest.param(lambda: ops.skip_with_time(1.5), [(2, 1), (3, 2)], id="skip_with_time"),
            pytest.param(
                lambda: ops.flat_map(timer_of),
                [(5, 2), (8, 1), (11, 0)],
                id="flat_map-to-timers",
            ),
            pytest.param(
                lambda: ops.merge(reactivex.timer(2.5).pipe(ops.map(lambda _: "tick"))),
                [(1, 0), (2, 1), (2.5, "tick"), (3, 2)],
                id="merge-with-a-timer",
            ),
            pytest.param(
                lambda: ops.concat(reactivex.timer(2.0).pipe(ops.map(lambda _: "late"))),
                [(1, 0), (2, 1), (3, 2), (5, "late")],
                id="concat-a-timer",
            ),
            pytest.param(
                ops.time_interval,
                [(1, (0, 1.0)), (2, (1, 1.0)), (3, (2, 1.0))],
                id="time_interval",
            ),
        ],
    )
    @virtual
    async def test_items_come_at_their_times(
        self, operator: Callable[[], RxOperator], expected: list[tuple[float, Any]]
    ) -> None:
        """An engine that gives an item each second, seen by a consumer that always waits."""
        engine = Engine(range(3), every_s=1.0)
        came = await timed(fuse(engine(), [same(), operator(), same()]))
        assert [(time, plain(item)) for time, item in came] == expected
        await asyncio.sleep(1)
        assert busy() == []
        assert engine.closed == 1

    @virtual
    async def test_a_timeout(self) -> None:
        """An engine that gives nothing more is given up, closed, and the stream fails then."""
        engine = Engine([1], ends=False)
        stream = fuse(engine(), [ops.timeout(5.0), same()])
        seen = await collect(stream)
        assert (seen.items, seen.end != "completed", now()) == ([1], True, 5.0)
        await asyncio.sleep(1)
        assert (engine.closed, busy()) == (1, [])

    @virtual
    async def test_a_timeout_that_turns_to_another_stream(self) -> None:
        """What it turns to comes out; the engine's clean-up is waited for by nobody."""
        engine = Engine([1], ends=False, closing_s=3.0)
        stream = fuse(engine(), [ops.timeout(5.0, reactivex.of(7, 8)), same()])
        assert await timed(stream) == [(0, 1), (5, 7), (5, 8)]
        await asyncio.sleep(10)
        assert (engine.closed, busy()) == (1, [])

    @virtual
    async def test_a_timer_alone_wakes_the_consumer(self) -> None:
        """The engine is silent; what the operator emits by itself comes out in time."""
        engine = Engine(ends=False)
        stream = fuse(engine(), [ticking(1.0), same()])
        came = [(await anext(stream), now()) for _ in range(3)]
        assert came == [(0, 1.0), (1, 2.0), (2, 3.0)]
        await stream.aclose()
        assert (engine.closed, busy()) == (1, [])

    @virtual
    async def test_items_that_came_while_nobody_waited_are_there(self) -> None:
        """What an operator emits between two pulls waits, in order."""
        stream = fuse(Engine(ends=False)(), [ticking(1.0)])
        await anext(stream)
        await asyncio.sleep(3.5)
        assert [(await anext(stream), now()) for _ in range(4)] == [
            (1, 4.5),
            (2, 4.5),
            (3, 4.5),
            (4, 5.0),
        ]
        await stream.aclose()


class Interrupted(BaseException):
    """A signal that is no ``Exception``."""


class TestErrors:
    """Failures on either side of a foreign operator."""

    @pytest.mark.rows("S6")
    @KINDS
    @pytest.mark.parametrize("every_s", [None, 1.0], ids=["at-once", "waiting"])
    @virtual
    async def test_a_failure_passes_through(
        self, every_s: float | None, kind: Callable[[RxOperator], RxOperator]
    ) -> None:
        """The engine's exception comes out as it is, seen by the operators of ours on both sides."""
        journal: list[str] = []
        gone = LookupError("gone")
        engine = Engine([1], error=gone, every_s=every_s)
        mapped = kind(ops.map(lambda item: item))
        seen = await collect(fuse(engine(), [spy(journal, "a"), mapped, spy(journal, "b")]))
        assert (seen.items, seen.error is gone) == ([1], True)
        assert journal == ["a1", "b1", "a#", "b#"]
        assert engine.closed == 1

    @pytest.mark.rows("S6")
    @KINDS
    @virtual
    async def test_an_operator_that_fails_closes_the_engine(
        self, kind: Callable[[RxOperator], RxOperator]
    ) -> None:
        """For ours ahead it is a drop, for ours behind a failure."""
        journal: list[str] = []
        engine = Engine([1, 0, 2])
        divide = kind(ops.map(lambda item: 6 // item))
        seen = await collect(fuse(engine(), [spy(journal, "a"), divide, spy(journal, "b")]))
        assert seen.items == [6]
        assert isinstance(seen.error, ZeroDivisionError)
        assert journal == ["a1", "b6", "a0", "a!", "b#"]
        assert (engine.pulls, engine.closed) == (2, 1)

    @pytest.mark.rows("S6")
    @pytest.mark.parametrize("behind", [[], [same()], [ops.map(lambda item: item)]], ids=len)
    @virtual
    async def test_an_item_and_a_failure_in_one_signal(self, behind: list[AnyOperator]) -> None:
        """The item comes out, and then the failure."""

        def both(observer: abc.ObserverBase[Any], item: Any) -> None:
            observer.on_next(item)
            observer.on_error(LookupError("gone"))

        def item_and_failure(source: Observable[Any]) -> Observable[Any]:
            return custom(source, both)

        seen = await collect(fuse(Engine([1, 2])(), [item_and_failure, *behind]))
        assert seen == Seen([1], "LookupError('gone')")

    @pytest.mark.rows("S6")
    @KINDS
    @virtual
    async def test_a_failure_behind_an_item_that_waits(
        self, kind: Callable[[RxOperator], RxOperator]
    ) -> None:
        """Ours ahead hand out one of two items and fail on the other: both get through."""

        @operator
        def refuse_the_second() -> Stage[int, int]:
            item = yield
            yield item
            raise LookupError("second")

        ahead = [twice(), refuse_the_second()]
        stream = fuse(Engine([1, 2])(), [*ahead, kind(ops.map(lambda item: item)), same()])
        assert await collect(stream) == Seen([1], "LookupError('second')")

    @pytest.mark.rows("S6")
    @virtual
    async def test_an_operator_that_raises_into_its_source(self) -> None:
        """An operator without a guard of its own fails the stream all the same."""

        def broken(source: Observable[Any]) -> Observable[Any]:
            def refuse(observer: abc.ObserverBase[Any], item: Any) -> None:
                raise LookupError(f"no {item}")

            return custom(source, refuse)

        engine = Engine([1, 2])
        seen = await collect(fuse(engine(), [broken, same()]))
        assert (seen, now()) == (Seen([], "LookupError('no 1')"), 0.0)
        await asyncio.sleep(1)
        assert (engine.closed, busy()) == (1, [])

    @pytest.mark.rows("S6")
    @KINDS
    @pytest.mark.parametrize("signal", [asyncio.CancelledError, Interrupted])
    @virtual
    async def test_an_engine_that_is_cancelled(
        self, signal: type[BaseException], kind: Callable[[RxOperator], RxOperator]
    ) -> None:
        """It comes out of the pull, and is a drop for ours; its own cancellation is a failure."""
        is_failure = signal is asyncio.CancelledError
        journal: list[str] = []
        engine = Engine([1], error=signal())
        mapped = kind(ops.map(lambda item: item))
        stream = fuse(engine(), [spy(journal, "a"), mapped, spy(journal, "b")])
        assert await anext(stream) == 1
        with pytest.raises(SourceCancelled if is_failure else signal):
            async with asyncio.timeout(LONG_S):
                await anext(stream)
        assert now() == 0.0
        assert sorted(journal[2:]) == (["a#", "b#"] if is_failure else ["a!", "b!"])
        await settle()
        assert (engine.closed, busy()) == (1, [])

    @virtual
    async def test_a_failure_can_be_caught(self) -> None:
        """What ``catch`` turns to comes out in its place."""
        stream = fuse(
            Engine([1], error=LookupError())(), [same(), ops.catch(reactivex.of(7, 8)), same()]
        )
        assert await collect(stream) == Seen([1, 7, 8], "completed")

    @pytest.mark.parametrize(
        ("operator", "error"),
        [(ops.retry(3), LookupError()), (ops.repeat(2), None)],
        ids=["retry", "repeat"],
    )
    @virtual
    async def test_a_stream_can_be_subscribed_to_only_once(
        self, operator: RxOperator, error: Exception | None
    ) -> None:
        """An operator that turns to its source again is refused, and the error says why."""
        engine = Engine([1], error=error)
        seen = await collect(fuse(engine(), [same(), operator, same()]))
        assert seen == Seen([1], "RuntimeError('a token stream can be subscribed to only once')")
        assert engine.closed == 1

    @virtual
    async def test_trying_again_for_ever_ends(self) -> None:
        """An operator that would turn to its source again and again is stopped all the same."""
        stream = fuse(Engine([1], error=LookupError())(), [ops.retry(), same()])
        async with asyncio.timeout(1.0):
            seen = await collect(stream)
        assert seen == Seen([1], "RuntimeError('a token stream can be subscribed to only once')")


class TestThreads:
    """Operators that emit on a thread of their own."""

    @virtual
    async def test_items_come_from_another_thread(self) -> None:
        """They come out on the loop, in order, and the stream ends."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        with loop.hold_time():
            elsewhere = ops.observe_on(NewThreadScheduler())
            seen = await collect(fuse(Engine(range(5))(), [same(), elsewhere, same()]))
        assert seen == Seen([0, 1, 2, 3, 4], "completed")

    @virtual
    async def test_the_source_is_subscribed_to_in_another_thread(self) -> None:
        """The engine still runs on the loop."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        with loop.hold_time():
            elsewhere = ops.subscribe_on(NewThreadScheduler())
            seen = await collect(fuse(Engine(range(5))(), [same(), elsewhere, same()]))
        assert seen == Seen([0, 1, 2, 3, 4], "completed")

    @pytest.mark.rows("S7")
    @virtual
    async def test_the_engine_is_closed_on_the_loops_thread(self) -> None:
        """An operator that leaves its source in another thread does not run the engine there."""
        threads: set[int] = set()

        async def engine() -> AsyncGenerator[int]:
            try:
                yield 1
                yield 2
            finally:
                threads.add(threading.get_ident())

        def take_one_elsewhere(source: Observable[Any]) -> Observable[Any]:
            def emit(observer: abc.ObserverBase[Any], item: Any) -> None:
                def work() -> None:
                    observer.on_next(item)
                    observer.on_completed()

                thread = threading.Thread(target=work)
                thread.start()
                thread.join()

            return custom(source, emit)

        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        with loop.hold_time():
            seen = await collect(fuse(engine(), [take_one_elsewhere, same()]))
        assert seen == Seen([1], "completed")
        assert threads == {threading.get_ident()}


# Foreign operators in whose state a drop may find the stream.
HELD: dict[str, Callable[[], RxOperator]] = {
    "map": lambda: ops.map(lambda item: item),
    "unknown": lambda: unknown(ops.map(lambda item: item)),
    "delay": lambda: ops.delay(5.0),
    "debounce": lambda: ops.debounce(5.0),
    "timeout": lambda: ops.timeout(50.0),
    "merge-with-a-timer": lambda: ops.merge(reactivex.interval(7.0)),
    "flat_map-to-timers": lambda: ops.flat_map(lambda item: reactivex.interval(3.0)),
    "concat-never": lambda: lambda source: reactivex.concat(reactivex.never(), source),
    "start_with": lambda: ops.start_with(7),
    "sample": lambda: ops.sample(4.0),
    "buffer_with_time": lambda: ops.buffer_with_time(4.0),
}


class TestDrop:
    """A drop leaves nothing, in whatever state it finds the operator."""

    @pytest.mark.rows("S7")
    @pytest.mark.parametrize("way", [by_close, by_aclose, by_losing_it])
    @pytest.mark.parametrize("pulled_s", [None, 0.0, 12.0], ids=["unpulled", "begun", "later"])
    @pytest.mark.parametrize("closing_s", [None, 2.0], ids=["quick", "slow-to-close"])
    @pytest.mark.parametrize("name", HELD)
    @virtual
    async def test_while_nobody_waits(
        self,
        name: str,
        closing_s: float | None,
        pulled_s: float | None,
        way: Callable[[Owner], Awaitable[None]],
    ) -> None:
        """Engine and operators are closed once; no task, no timer is left, and nothing is said."""
        journal: list[str] = []
        engine = Engine([1, 2], ends=False, closing_s=closing_s)
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
        assert ends(journal) == ["a!", "b!"]

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
        await asyncio.sleep(3.0)
        assert busy() == []
        assert engine.closed == (1 if engine.pulls else 0)
        assert ends(journal) == ["a!", "b!"]

    @pytest.mark.rows("S7")
    @pytest.mark.parametrize("name", HELD)
    @virtual
    async def test_aclose_waits_for_the_engine(self, name: str) -> None:
        """Through a foreign operator too, a clean-up of two seconds is waited for."""
        engine = Engine([1, 2], ends=False, closing_s=2.0)
        stream = fuse(engine(), [same(), HELD[name](), same()])
        pulling = asyncio.create_task(collect(stream))
        await asyncio.sleep(12.5)
        before = engine.closed
        await stream.aclose()
        assert (before, engine.closed) == (0, 1 if engine.pulls else 0)
        await pulling
