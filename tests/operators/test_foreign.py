"""Operators of other libraries, anywhere in a list."""

# The types of both libraries leave open what an operator without a source works on.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import reactivex
from hypothesis import given
from hypothesis import strategies as st
from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.scheduler import NewThreadScheduler

from operators import Pipeline, fuse, until_terminal
from operators._core.failures import SourceCancelled
from operators.authoring import AnyOperator, FusedRun
from rx_backend.testing import VirtualTimeLoop
from tests.engines import virtual
from tests.operators._help import (
    LONG_S,
    Engine,
    Owner,
    Seen,
    busy,
    by_aclose,
    by_close,
    by_losing_it,
    collect,
    now,
    same,
    settle,
    spy,
    terminal,
    token,
)

if TYPE_CHECKING or find_spec("aioreactive"):
    import aioreactive as rx
    from expression import Some

Make: TypeAlias = Callable[[], Any]


def unknown(*operators: Callable[[Any], Any]) -> Any:
    """Operators in a function of one's own, of which nothing is known."""

    def applied(source: Any) -> Any:
        for each in operators:
            source = each(source)
        return source

    return applied


def aio(*values: Any, id: str) -> Any:
    """Return a case that needs ``aioreactive``."""
    return pytest.param(*values, id=f"aio-{id}", marks=pytest.mark.needs("aioreactive"))


def identity(item: Any) -> Any:
    return item


def custom(
    source: Observable[Any], on_next: Callable[[abc.ObserverBase[Any], Any], None]
) -> Observable[Any]:
    """Return an Observable that does something of its own with each item."""

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
    """Return what spies noted of the end, in order of their names."""
    return sorted(entry for entry in journal if entry[-1] in "!|#")


async def timed(stream: AsyncIterator[Any]) -> list[tuple[float, Any]]:
    """Return the items of a stream, each with the time at which it came, and how it ended."""
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


async def first_of(stream: FusedRun[Any]) -> Any:
    return await anext(stream)


async def last_of(stream: FusedRun[Any]) -> None:
    while True:
        await anext(stream)


async def pulls_of(make: Make, count: int) -> list[int]:
    """Return how often the source was pulled for each of the first items; never before the first."""
    engine = Engine(range(99))
    stream = fuse(engine(), [same(), make(), same()])
    await asyncio.sleep(1)
    pulls = [engine.pulls]
    for _ in range(count):
        await anext(stream)
        await asyncio.sleep(1)
        pulls.append(engine.pulls)
    await stream.aclose()
    assert pulls[0] == 0
    return pulls[1:]


def leaves_two(item: int) -> bool:
    return item % 3 == 2


async def leaves_two_later(item: int) -> bool:
    return leaves_two(item)


# One item for one, of either library: in the consumer's pull, and detached from it.
ONE_FOR_ONE = pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: ops.map(identity), id="known"),
        pytest.param(lambda: unknown(ops.map(identity)), id="unknown"),
        aio(lambda: rx.map(identity), id="known"),
        aio(lambda: rx.skip(0), id="detached"),
        aio(lambda: unknown(rx.skip(0), rx.skip(0), rx.skip(0)), id="thrice"),
    ],
)


class TestPull:
    """What a foreign operator means for the pull (row S4)."""

    @pytest.mark.rows("S4")
    @pytest.mark.parametrize(
        ("make", "pulls"),
        [
            pytest.param(lambda: ops.map(identity), [1, 2, 3], id="map"),
            pytest.param(lambda: unknown(ops.map(identity)), [1, 2, 3], id="unknown-map"),
            pytest.param(lambda: ops.filter(leaves_two), [3, 6, 9], id="filter"),
            pytest.param(lambda: unknown(ops.filter(leaves_two)), [3, 6, 9], id="unknown"),
            pytest.param(lambda: ops.buffer_with_count(3), [3, 6, 9], id="buffer_with_count"),
            pytest.param(
                lambda: ops.flat_map(lambda item: reactivex.of(item, item)), [1, 1, 2], id="flat"
            ),
            pytest.param(lambda: ops.skip(4), [5, 6, 7], id="skip"),
            aio(lambda: rx.map(identity), [1, 2, 3], id="map"),
            aio(lambda: rx.skip(0), [1, 2, 3], id="detached"),
            aio(lambda: unknown(*[rx.skip(0)] * 3), [1, 2, 3], id="thrice"),
            aio(lambda: rx.filter(leaves_two), [3, 6, 9], id="filter"),
            aio(lambda: rx.filter_async(leaves_two_later), [3, 6, 9], id="filter_async"),
            aio(lambda: rx.skip(4), [5, 6, 7], id="skip"),
            aio(lambda: rx.flat_map(pair), [1, 2, 3], id="flat_map"),
            aio(lambda: rx.concat(rx.never()), [1, 2, 3], id="concat"),
        ],
    )
    async def test_the_source_is_pulled_until_an_item_comes_out(
        self, make: Make, pulls: list[int]
    ) -> None:
        """No further than that; where items wait, at most once for each pull of the consumer."""
        assert await pulls_of(make, len(pulls)) == pulls

    @pytest.mark.rows("S4")
    @pytest.mark.needs("aioreactive")
    @pytest.mark.parametrize("is_known", [True, False])
    async def test_nothing_is_pulled_while_a_step_is_awaited(self, is_known: bool) -> None:
        """The consumer waits for an asynchronous step, and so does the engine."""
        step = rx.map_async(slowly)
        engine = Engine(range(9))
        stream = fuse(engine(), [same(), step if is_known else unknown(step), same()])
        for number in range(3):
            pulling = asyncio.create_task(first_of(stream))
            await asyncio.sleep(4.9)
            assert (engine.pulls, pulling.done()) == (number + 1, False)
            await asyncio.sleep(0.2)
            assert await pulling == number
        await stream.aclose()

    @pytest.mark.rows("S4")
    @pytest.mark.needs("aioreactive")
    async def test_a_fast_operator_is_held_back(self) -> None:
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

    @pytest.mark.rows("P6a", "S2", "S4")
    @pytest.mark.parametrize(
        "make",
        [
            pytest.param(lambda: ops.take(2), id="known"),
            pytest.param(lambda: unknown(ops.take(2)), id="unknown"),
            aio(lambda: rx.take(2), id="take"),
        ],
    )
    async def test_an_operator_that_completes_closes_the_source(self, make: Make) -> None:
        """With its last item: later operators have ended, and the engine is not pulled further."""
        engine = Engine(range(9))
        journal: list[str] = []
        stream = fuse(engine(), [same(), make(), spy(journal)])
        assert [await anext(stream), await anext(stream)] == [0, 1]
        assert journal == ["0", "1", "|"]
        assert stream.ended
        await settle()
        assert (engine.pulls, engine.closed) == (2, 1)
        assert await collect(stream) == Seen([], "completed")

    @pytest.mark.rows("P6a", "S2")
    @ONE_FOR_ONE
    async def test_a_terminal_passes_through_a_one_to_one_operator(self, make: Make) -> None:
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


def timer_of(item: int) -> Observable[int]:
    """Return an item that comes later, the sooner the greater it is."""
    return reactivex.timer(10.0 - 4 * item).pipe(ops.map(lambda _: item))


def timer_after(item: int) -> rx.AsyncObservable[int]:
    return rx.timer(item + 0.5)


def subscribed_late(source: Observable[Any]) -> Observable[Any]:
    """Turn to the source after four seconds."""
    return reactivex.timer(4.0).pipe(ops.flat_map(lambda _: source))


class TestTime:
    """Timers of foreign operators obey the loop's time, and wake a consumer that waits."""

    @pytest.mark.parametrize(
        ("make", "expected"),
        [
            pytest.param(lambda: ops.delay(5.0), [(6, 0), (7, 1), (8, 2)], id="delay"),
            pytest.param(lambda: ops.debounce(0.5), [(1.5, 0), (2.5, 1), (3, 2)], id="debounce"),
            pytest.param(
                lambda: ops.buffer_with_time(2.5), [(2.5, [0, 1]), (3, [2])], id="buffer_with_time"
            ),
            pytest.param(lambda: subscribed_late, [(5, 0), (6, 1), (7, 2)], id="late-subscription"),
            pytest.param(lambda: ops.take_with_time(2.5), [(1, 0), (2, 1)], id="take_with_time"),
            pytest.param(
                lambda: ops.flat_map(timer_of), [(5, 2), (8, 1), (11, 0)], id="flat_map-to-timers"
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
            aio(lambda: rx.merge(rx.timer(2.5)), [(1, 0), (2, 1), (2.5, 0), (3, 2)], id="merge"),
            aio(lambda: rx.debounce(0.5), [(1.5, 0), (2.5, 1)], id="debounce"),
            aio(lambda: rx.take_until(rx.timer(2.5)), [(1, 0), (2, 1)], id="take_until"),
            aio(
                lambda: rx.with_latest_from(rx.interval(0.5, 10)),
                [(1, (0, 0)), (2, (1, 0)), (3, (2, 0))],
                id="with_latest_from",
            ),
            aio(
                lambda: rx.flat_map(timer_after),
                [(1.5, 0), (3.5, 0), (5.5, 0)],
                id="flat_map-to-timers",
            ),
        ],
    )
    async def test_items_keep_their_times(
        self, make: Make, expected: list[tuple[float, Any]]
    ) -> None:
        """An engine that gives an item each second, seen by a consumer that always waits."""
        engine = Engine(range(3), every_s=1.0)
        came = await timed(fuse(engine(), [same(), make(), same()]))
        assert came[:-1] == expected
        await asyncio.sleep(1)
        assert (busy(), engine.closed) == ([], 1)

    @pytest.mark.parametrize(
        ("make", "items", "is_failure"),
        [
            pytest.param(lambda: ops.timeout(5.0), [1], True, id="timeout"),
            pytest.param(
                lambda: ops.timeout(5.0, reactivex.of(7, 8)), [1, 7, 8], False, id="another-stream"
            ),
            aio(lambda: rx.take_until(rx.timer(5)), [1], False, id="take_until"),
        ],
    )
    async def test_a_timeout_closes_a_silent_engine(
        self, make: Make, items: list[int], is_failure: bool
    ) -> None:
        """In time, and it is closed; no task waits for its clean-up."""
        engine = Engine([1], ends=False, closing_s=3.0)
        stream = fuse(engine(), [same(), make(), same()])
        assert [await anext(stream) for _ in items] == items
        assert now() == (5.0 if len(items) > 1 else 0.0)
        assert ((await collect(stream)).end == "completed") is not is_failure
        await asyncio.sleep(10)
        assert (engine.closed, busy()) == (1, [])

    @pytest.mark.rows("S2")
    @pytest.mark.needs("aioreactive")
    async def test_an_operator_that_completes_between_pulls(self) -> None:
        """The engine is closed then, not when somebody asks for more."""
        engine = Engine([1, 2])
        stream = fuse(engine(), [same(), rx.take_until(rx.timer(5)), same()])
        assert await anext(stream) == 1
        await asyncio.sleep(6)
        assert (engine.pulls, engine.closed) == (1, 1)
        assert await collect(stream) == Seen([], "completed")

    async def test_items_emitted_between_pulls_are_kept(self) -> None:
        """What an operator emits between two pulls waits, in order."""
        stream = fuse(Engine(ends=False)(), [ops.merge(reactivex.interval(1.0))])
        await anext(stream)
        await asyncio.sleep(3.5)
        came = [(await anext(stream), now()) for _ in range(4)]
        assert came == [(1, 4.5), (2, 4.5), (3, 4.5), (4, 5.0)]
        await stream.aclose()


class Interrupted(BaseException):
    """A signal that is no ``Exception``."""


class TestErrors:
    """Failures on either side of a foreign operator, and inside it."""

    @pytest.mark.rows("S6")
    @pytest.mark.parametrize(
        "make",
        [
            pytest.param(lambda: ops.map(refusing), id="known"),
            pytest.param(lambda: unknown(ops.map(refusing)), id="unknown"),
            pytest.param(lambda: raising_into_its_source, id="unguarded"),
            aio(lambda: rx.map(refusing), id="map"),
            aio(lambda: rx.scan(refuse_the_second, 0), id="scan"),
            aio(lambda: rx.mapi(refuse_the_first), id="in-a-task"),
            aio(lambda: rx.flat_map(lambda _: rx.pipe(rx.single(1), rx.map(refusing))), id="inner"),
            aio(lambda: rx.flat_map(unsubscribable), id="subscribe"),
            aio(lambda: unknown(lambda _: unsubscribable(1)), id="subscribe-at-once"),
        ],
    )
    async def test_an_operator_that_fails_closes_the_engine(self, make: Make) -> None:
        """For earlier operators it is a drop, for later ones a failure, even if it is logged."""
        journal: list[str] = []
        engine = Engine([1, 2])
        stream = fuse(engine(), [spy(journal, "a"), make(), spy(journal, "b")])
        assert (await collect(stream), now()) == (Seen([], "LookupError('no 1')"), 0.0)
        await settle()
        assert ends(journal) == ["a!", "b#"]
        assert (engine.closed, busy()) == (1 if engine.pulls else 0, [])

    @pytest.mark.rows("S6")
    @pytest.mark.parametrize("behind", [[], [same()], [ops.map(identity)]], ids=len)
    async def test_an_item_before_a_failure_is_not_lost(self, behind: list[AnyOperator]) -> None:
        """The item comes out, and then the failure."""

        def both(observer: abc.ObserverBase[Any], item: Any) -> None:
            observer.on_next(item)
            observer.on_error(LookupError("gone"))

        def item_and_failure(source: Observable[Any]) -> Observable[Any]:
            return custom(source, both)

        seen = await collect(fuse(Engine([1, 2])(), [item_and_failure, *behind]))
        assert seen == Seen([1], "LookupError('gone')")

    @pytest.mark.rows("S6")
    @ONE_FOR_ONE
    @pytest.mark.parametrize("every_s", [None, 1.0], ids=["at-once", "waiting"])
    @pytest.mark.parametrize(
        ("signal", "raised"),
        [
            (LookupError, LookupError),
            (asyncio.CancelledError, SourceCancelled),
            (Interrupted, Interrupted),
        ],
    )
    async def test_a_failure_passes_through(
        self,
        signal: type[BaseException],
        raised: type[BaseException],
        every_s: float | None,
        make: Make,
    ) -> None:
        """As a failure for ours on both sides; what is no ``Exception`` is a drop for them."""
        is_failure = signal is not Interrupted
        journal: list[str] = []
        engine = Engine([1], error=signal(), every_s=every_s)
        stream = fuse(engine(), [spy(journal, "a"), make(), spy(journal, "b")])
        assert await anext(stream) == 1
        with pytest.raises(raised):
            async with asyncio.timeout(LONG_S):
                await anext(stream)
        assert now() == (every_s or 0.0)
        assert ends(journal) == (["a#", "b#"] if is_failure else ["a!", "b!"])
        await settle()
        assert (engine.closed, busy()) == (1, [])

    @pytest.mark.rows("S6")
    @pytest.mark.needs("aioreactive")
    @pytest.mark.parametrize("signal", [asyncio.CancelledError, Interrupted])
    @pytest.mark.parametrize("of", ["known step", "unknown step", "task"])
    async def test_an_interrupt_is_never_swallowed(
        self, of: str, signal: type[BaseException]
    ) -> None:
        """It comes out of the pull; a cancellation raised by the operator is a failure."""
        is_failure = signal is asyncio.CancelledError

        async def step(item: int) -> int:
            if item == 2:
                raise signal
            return item

        async def inner(observer: rx.AsyncObserver[int]) -> rx.AsyncDisposable:
            raise signal

        failing = rx.AsyncAnonymousObservable(inner)
        made: dict[str, Any] = {
            "known step": rx.map_async(step),
            "unknown step": unknown(rx.map_async(step)),
            "task": rx.flat_map(lambda item: rx.single(1) if item == 1 else failing),
        }
        journal: list[str] = []
        engine = Engine([1, 2])
        stream = fuse(engine(), [spy(journal, "a"), made[of], spy(journal, "b")])
        assert await anext(stream) == 1
        with pytest.raises(SourceCancelled if is_failure else signal):
            await asyncio.wait_for(last_of(stream), LONG_S)
        assert now() == 0.0
        assert ends(journal) == ["a!", "b#" if is_failure else "b!"]
        await settle()
        assert (engine.closed, busy()) == (1, [])

    @pytest.mark.parametrize(
        ("make", "items"),
        [
            pytest.param(lambda: ops.catch(reactivex.of(7, 8)), [1, 7, 8], id="reactivex"),
            aio(lambda: rx.catch(lambda _: rx.from_iterable([7, 8])), [1, 7, 8], id="catch"),
            aio(
                lambda: unknown(rx.map(refusing), rx.catch(lambda error: rx.from_iterable([7, 8]))),
                [7, 8],
                id="of-its-own",
            ),
        ],
    )
    async def test_a_failure_can_be_caught(self, make: Make, items: list[int]) -> None:
        """An engine's, or that of an operator in the same function, can be turned into items."""
        stream = fuse(Engine([1], error=LookupError())(), [same(), make(), same()])
        assert await collect(stream) == Seen(items, "completed")

    @pytest.mark.parametrize(
        ("make", "error"),
        [
            pytest.param(lambda: ops.retry(3), LookupError(), id="retry"),
            pytest.param(ops.retry, LookupError(), id="retry-for-ever"),
            pytest.param(lambda: ops.repeat(2), None, id="repeat"),
            aio(lambda: rx.retry(3), LookupError(), id="retry"),
        ],
    )
    async def test_a_stream_can_be_subscribed_to_only_once(
        self, make: Make, error: Exception | None
    ) -> None:
        """An operator that subscribes to its source again is refused, and the error says why."""
        engine = Engine([1], error=error)
        async with asyncio.timeout(1.0):
            seen = await collect(fuse(engine(), [same(), make(), same()]))
        assert seen == Seen([1], "RuntimeError('a token stream can be subscribed to only once')")
        assert (engine.closed, busy()) == (1, [])


def refusing(item: int) -> int:
    raise LookupError(f"no {item}")


def refuse_the_first(item: int, _: int) -> int:
    return refusing(item)


def refuse_the_second(_: int, item: int) -> int:
    return refusing(item)


def raising_into_its_source(source: Observable[Any]) -> Observable[Any]:
    """Return an operator without a guard of its own."""

    def refuse(observer: abc.ObserverBase[Any], item: Any) -> None:
        refusing(item)

    return custom(source, refuse)


def unsubscribable(item: int) -> rx.AsyncObservable[int]:
    async def subscribe(observer: rx.AsyncObserver[int]) -> rx.AsyncDisposable:
        raise LookupError(f"no {item}")

    return rx.AsyncAnonymousObservable(subscribe)


class TestThreads:
    """Operators that emit on a thread of their own."""

    @pytest.mark.parametrize("make", [ops.observe_on, ops.subscribe_on])
    async def test_items_come_from_another_thread(self, make: Callable[[Any], Any]) -> None:
        """They come out on the loop, in order, and the stream ends; the engine runs on the loop."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        with loop.real_time():
            elsewhere = make(NewThreadScheduler())
            seen = await collect(fuse(Engine(range(5))(), [same(), elsewhere, same()]))
        assert seen == Seen([0, 1, 2, 3, 4], "completed")

    @pytest.mark.rows("S7")
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
        with loop.real_time():
            seen = await collect(fuse(engine(), [take_one_elsewhere, same()]))
        assert seen == Seen([1], "completed")
        assert threads == {threading.get_ident()}


async def slowly(item: int) -> int:
    await asyncio.sleep(5)
    return item


def bursting(*, tasks: list[asyncio.Task[None]]) -> Any:
    """Return an operator of one's own: for each item its task emits the numbers below it."""

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


# Operators in whose state a drop may find the stream.
HELD_RX: dict[str, Make] = {
    "map": lambda: ops.map(identity),
    "unknown": lambda: unknown(ops.map(identity)),
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
HELD_AIO: dict[str, Make] = {
    "map": lambda: rx.map(identity),
    "slow-step": lambda: rx.map_async(slowly),
    "slow-step-in-a-task": lambda: unknown(rx.skip(0), rx.map_async(slowly)),
    "skip": lambda: rx.skip(0),
    "delay": lambda: rx.delay(5),
    "debounce": lambda: rx.debounce(5),
    "merge-with-a-timer": lambda: rx.merge(rx.interval(7, 7)),
    "flat_map-to-timers": lambda: rx.flat_map(lambda _: rx.interval(3, 3)),
    "concat-never": lambda: unknown(lambda source: rx.concat_seq([rx.never(), source])),
    "combine_latest": lambda: rx.combine_latest(rx.interval(3, 3)),
    "switch_latest": lambda: unknown(rx.map(lambda _: rx.interval(3, 3)), rx.switch_latest()),
    "burst": lambda: bursting(tasks=[]),
}
EVERY_HELD = pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(make, id=name) for name, make in HELD_RX.items()),
        *(aio(make, id=name) for name, make in HELD_AIO.items()),
    ],
)


def held(make: Make) -> tuple[list[str], Engine, Owner]:
    """Return a stream with an operator between two spies, with what they note and its engine."""
    journal: list[str] = []
    engine = Engine([1, 2], ends=False, closing_s=2.0)
    return journal, engine, [fuse(engine(), [spy(journal, "a"), make(), spy(journal, "b")])]


@pytest.mark.rows("S7")
class TestDrop:
    """A drop leaves nothing, in whatever state it finds the operator."""

    @pytest.mark.parametrize("way", [by_close, by_aclose, by_losing_it])
    @pytest.mark.parametrize("pulled_s", [None, 12.0], ids=["unpulled", "later"])
    @EVERY_HELD
    async def test_a_drop_between_pulls_releases_everything(
        self, make: Make, pulled_s: float | None, way: Callable[[Owner], Awaitable[None]]
    ) -> None:
        """Engine and operators are closed once; no task, no timer is left, and nothing is said."""
        journal, engine, owner = held(make)
        if pulled_s is not None:
            pulling = asyncio.create_task(first_of(owner[0]))
            await asyncio.sleep(pulled_s)
            pulling.cancel()
            await asyncio.wait([pulling])
            del pulling
        await way(owner)
        await asyncio.sleep(3.0)
        assert (busy(), engine.closed) == ([], 1 if engine.pulls else 0)
        assert ends(journal) == ["a!", "b!"]

    @pytest.mark.parametrize("way", [by_close, by_aclose])
    @pytest.mark.parametrize("after_s", [0.0, 12.5])
    @EVERY_HELD
    async def test_a_drop_during_a_pull_releases_everything(
        self, make: Make, after_s: float, way: Callable[[Owner], Awaitable[None]]
    ) -> None:
        """All else ends there; ``aclose`` waits for the engine's clean-up of two seconds."""
        journal, engine, owner = held(make)
        pulling = asyncio.create_task(collect(owner[0]))
        await asyncio.sleep(after_s)
        before = engine.closed
        await way(owner)
        assert ends(journal) == ["a!", "b!"]
        if way is by_aclose:
            assert (before, engine.closed) == (0, 1 if engine.pulls else 0)
        assert (await pulling).end == "completed"
        # A task of aioreactive's debounce has nothing left to do, but sleeps on.
        await asyncio.sleep(5.0)
        assert (busy(), engine.closed) == ([], 1 if engine.pulls else 0)
        assert ends(journal) == ["a!", "b!"]

    @pytest.mark.needs("aioreactive")
    @given(
        name=st.sampled_from(sorted(HELD_AIO)),
        way=st.sampled_from([by_close, by_aclose, by_losing_it]),
        pulls=st.integers(0, 3),
        turns=st.integers(0, 25),
        cancels=st.booleans(),
    )
    def test_a_drop_in_any_iteration_releases_everything(
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
            owner = [fuse(engine(), [same(), HELD_AIO[name](), rx.skip(0), same()])]
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

    @pytest.mark.needs("aioreactive")
    @pytest.mark.parametrize("is_known", [True, False])
    async def test_a_running_step_is_cancelled(self, is_known: bool) -> None:
        """Its clean-up runs to the end, and ``aclose`` waits for it."""
        ended: list[float] = []

        async def step(item: int) -> int:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(2)
                ended.append(now())
            return item

        made = rx.map_async(step) if is_known else unknown(rx.map_async(step))
        stream = fuse(Engine([1])(), [made, same()])
        pulling = asyncio.create_task(collect(stream))
        await asyncio.sleep(1)
        await stream.aclose()
        assert ended == [3.0]
        assert (await pulling).items == []

    @pytest.mark.needs("aioreactive")
    @pytest.mark.parametrize("way", [by_close, by_aclose, by_losing_it])
    async def test_inner_streams_are_disposed_of(
        self, way: Callable[[Owner], Awaitable[None]]
    ) -> None:
        """Those of a user, started in a task of the library, are disposed of at the drop."""
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


# What is taken for an operator of aioreactive, and how it is fed.


def pair(item: int) -> rx.AsyncObservable[int]:
    return rx.from_iterable([item, -item])


FED = "aioreactive, fed in the consumer's pull"
DETACHED = "aioreactive, detached"


@pytest.mark.parametrize(
    ("make", "drawn"),
    [
        aio(lambda: rx.choose(Some), FED, id="choose"),
        aio(lambda: rx.filter(leaves_two), FED, id="filter"),
        aio(lambda: rx.filter_async(leaves_two_later), FED, id="filter_async"),
        aio(lambda: rx.map(abs), FED, id="map"),
        aio(lambda: rx.map_async(slowly), FED, id="map_async"),
        aio(lambda: rx.scan(max, 0), FED, id="scan"),
        aio(lambda: rx.skip(1), DETACHED, id="of-a-task"),
        aio(lambda: rx.distinct_until_changed, DETACHED, id="uncalled"),
        aio(lambda: unknown(rx.skip(1), rx.map(abs)), DETACHED, id="in-a-function"),
        aio(lambda: lambda source: source.map(abs).skip(1), DETACHED, id="by-method"),
        aio(lambda: ops.skip(1), "reactivex, fed in", id="reactivex"),
        aio(lambda: reactivex.compose(ops.skip(1), ops.map(identity)), "reactivex", id="composed"),
    ],
)
def test_the_drawing_shows_how_a_foreign_operator_is_pulled(make: Make, drawn: str) -> None:
    """The consumer's pull where it answers within ``asend``, else a task; the drawing says so."""
    shown = Pipeline([make()]).draw()
    assert drawn in shown
    assert ("aioreactive" in shown) is ("aioreactive" in drawn)
