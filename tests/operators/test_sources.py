"""`operators._core.sources`: observables that are pulled."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
import reactivex
from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.disposable import Disposable
from reactivex.subject import Subject

from operators.assembly import source_of
from operators.authoring import AsyncObservableSource, ObservableSource
from tests.operators._help import Seen, collect, now

if TYPE_CHECKING or find_spec("aioreactive"):
    import aioreactive as rx

NEEDS = pytest.mark.needs("aioreactive")
Source = ObservableSource[Any] | AsyncObservableSource[Any]


class Counted:
    """
    Numbers, one a second, and how often they were subscribed to and disposed of.

    Args:
        error: What comes after *count* of them; None for an end.
    """

    def __init__(self, count: int = 3, error: Exception | None = None) -> None:
        self._count = count
        self._error = error
        self.sent: list[float] = []
        self.subscribed = 0
        self.disposed = 0

    def observable(self) -> ObservableSource[int]:
        end = reactivex.empty() if self._error is None else reactivex.throw(self._error)
        ticks = reactivex.interval(1.0).pipe(ops.take(self._count))

        def subscribe(
            observer: abc.ObserverBase[int], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            self.subscribed += 1
            inner = reactivex.concat(ticks, end).subscribe(observer, scheduler=scheduler)

            def dispose() -> None:
                self.disposed += 1
                inner.dispose()

            return Disposable(dispose)

        return ObservableSource(Observable(subscribe))

    def async_observable(self) -> AsyncObservableSource[int]:
        async def push(observer: rx.AsyncObserver[int]) -> None:
            for number in range(self._count):
                await asyncio.sleep(1.0)
                await observer.asend(number)
                self.sent.append(now())
            await (observer.aclose() if self._error is None else observer.athrow(self._error))

        async def subscribe(observer: rx.AsyncObserver[int]) -> rx.AsyncDisposable:
            self.subscribed += 1
            task = asyncio.create_task(push(observer))

            async def dispose() -> None:
                self.disposed += 1
                task.cancel()

            return rx.AsyncDisposable.create(dispose)

        return AsyncObservableSource(rx.AsyncAnonymousObservable(subscribe))


KINDS = pytest.mark.parametrize(
    "kind", [Counted.observable, pytest.param(Counted.async_observable, marks=NEEDS)]
)
Kind = Callable[[Counted], Source]


class TestBoth:
    """What holds for either kind."""

    @KINDS
    @pytest.mark.parametrize("error", [None, LookupError("gone")], ids=["completed", "failed"])
    async def test_items_and_end(self, kind: Kind, error: Exception | None) -> None:
        """Items come in order and at their times, then the end or the failure, then nothing."""
        counted = Counted(error=error)
        source = kind(counted)
        await asyncio.sleep(5)
        assert counted.subscribed == 0
        seen = await collect(source)
        assert (seen.items, now()) == ([0, 1, 2], 8.0)
        assert seen.end == ("completed" if error is None else repr(error))
        assert (counted.subscribed, counted.disposed) == (1, 1)
        assert await collect(source) == Seen([], "completed")

    @pytest.mark.rows("S7")
    @KINDS
    @pytest.mark.parametrize("way", ["aclose", "close", "lose", "lose-elsewhere", "break"])
    async def test_a_drop(self, kind: Kind, way: str) -> None:
        """However it is left, it disposes of its subscription once, and leaves nothing behind."""
        counted = Counted(99)
        box = [kind(counted)]
        await anext(box[0])
        if way == "aclose":
            await box[0].aclose()
            assert counted.disposed == 1
            assert await collect(box[0]) == Seen([], "completed")
        elif way == "close":
            box[0].close()
        elif way == "break":
            async for _ in box.pop():
                break
        elif way == "lose":
            box.clear()
        else:
            await asyncio.to_thread(box.clear)
        gc.collect()
        await asyncio.sleep(5)
        assert (counted.subscribed, counted.disposed) == (1, 1)
        assert len(counted.sent) <= 1

    @pytest.mark.rows("S7")
    @KINDS
    @pytest.mark.parametrize("cancelled", [True, False])
    async def test_a_drop_while_a_task_waits(self, kind: Kind, cancelled: bool) -> None:
        """
        If cancelled, the task is done with the source.

        Closed by another task, it sees the end.
        """
        counted = Counted(99)
        source = kind(counted)
        pulling = asyncio.create_task(collect(source))
        await asyncio.sleep(2.5)
        if cancelled:
            pulling.cancel()
            await asyncio.wait([pulling])
            assert pulling.cancelled()
        else:
            await source.aclose()
            assert await pulling == Seen([0, 1], "completed")
        await asyncio.sleep(5)
        assert counted.disposed == 1

    @KINDS
    async def test_a_drop_before_the_first_pull(self, kind: Kind) -> None:
        """It never subscribes, then or later."""
        counted = Counted()
        source = kind(counted)
        await source.aclose()
        assert await collect(source) == Seen([], "completed")
        assert counted.subscribed == 0

    @KINDS
    async def test_a_concurrent_pull_is_rejected(self, kind: Kind) -> None:
        """The later task gets an error; the earlier is not disturbed."""
        source = kind(Counted())
        pulling = asyncio.create_task(collect(source))
        await asyncio.sleep(0.5)
        with pytest.raises(RuntimeError, match="already being pulled"):
            await anext(source)
        assert (await pulling).items == [0, 1, 2]

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (reactivex.never(), ObservableSource),
            (Subject[int](), ObservableSource),
            pytest.param("async", AsyncObservableSource, marks=NEEDS),
            ([1], type(None)),
            (None, type(None)),
        ],
    )
    def test_observables_of_both_libraries_are_recognized(
        self, value: object, expected: type[object]
    ) -> None:
        """Either library's are known as what they are, and nothing else is."""
        found = source_of(rx.never() if value == "async" else value)
        assert type(found) is expected


class TestObservable:
    """What is special about an Observable: it pushes when and where it likes."""

    async def test_a_subscription_that_fails(self) -> None:
        """What subscribing raises comes out of the first pull."""

        def subscribe(
            observer: abc.ObserverBase[int], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            raise LookupError("gone")

        source = ObservableSource(Observable(subscribe))
        assert await collect(source) == Seen([], "LookupError('gone')")


async def double(number: int) -> int:
    await asyncio.sleep(0.1)
    return number * 2


@NEEDS
class TestAsyncObservable:
    """What is special about an AsyncObservable: it can be made to wait, and has tasks."""

    @pytest.mark.rows("S4")
    async def test_back_pressure(self) -> None:
        """``asend`` returns when the item was taken and the next one is asked for."""
        counted = Counted()
        source = counted.async_observable()
        assert (await anext(source), now()) == (0, 1.0)
        await asyncio.sleep(10)
        assert counted.sent == []
        assert (await anext(source), now()) == (1, 12.0)
        assert counted.sent == [11.0]
        await source.aclose()

    @pytest.mark.parametrize("take", [None, 1])
    @pytest.mark.parametrize(
        "make",
        [
            pytest.param(lambda: rx.from_iterable([1, 2]), id="at-once"),
            pytest.param(
                lambda: rx.pipe(rx.from_iterable([1, 2]), rx.map_async(double), rx.take(5)),
                id="a-step-that-waits",
            ),
            pytest.param(
                lambda: rx.pipe(rx.from_iterable([1, 2]), rx.distinct_until_changed), id="a-task"
            ),
            pytest.param(
                lambda: rx.pipe(rx.from_iterable([1, 2]), rx.flat_map(lambda _: rx.timer(1))),
                id="inner-streams",
            ),
            pytest.param(
                lambda: rx.pipe(rx.interval(1, 1), rx.debounce(0.5), rx.take(2)), id="timers"
            ),
            pytest.param(
                lambda: rx.pipe(
                    rx.interval(1, 2), rx.combine_latest(rx.interval(1, 3)), rx.take(2)
                ),
                id="several-sources",
            ),
        ],
    )
    async def test_the_librarys_tasks_end(
        self, make: Callable[[], rx.AsyncObservable[Any]], take: int | None
    ) -> None:
        """Those that it starts and forgets are gone after the end, or a drop."""
        source = AsyncObservableSource(make())
        seen = await collect(source, take=take)
        assert seen.items
        await source.aclose()
        # A debounce sleeps on.
        await asyncio.sleep(0.5)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def test_a_task_that_the_library_retains_holds_no_stream(self) -> None:
        """It never forgets a task that was cancelled; the frames in there are gone."""

        class Item:
            pass

        items: list[Item] = [Item(), Item(), Item()]
        held = [weakref.ref(item) for item in items]
        for take in (None, 1):
            stream = rx.pipe(rx.from_iterable(items), rx.distinct_until_changed, rx.take(2))
            await collect(AsyncObservableSource(stream), take=take)
        await asyncio.sleep(1)
        items.clear()
        del stream
        gc.collect()
        assert [item() for item in held] == [None, None, None]

    async def test_a_failing_task_of_the_library_fails_the_stream(self) -> None:
        """What it would only log comes out of the pull, and the stream ends."""

        async def refuse(number: int) -> int:
            raise LookupError(number)

        source = AsyncObservableSource(rx.pipe(rx.interval(1, 1), rx.map_async(refuse)))
        assert await collect(source) == Seen([], "LookupError(0)")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def test_it_may_send_while_it_is_subscribed_to(self) -> None:
        """It waits for its consumer there, as it would later."""

        async def subscribe(observer: rx.AsyncObserver[int]) -> rx.AsyncDisposable:
            for number in range(3):
                await observer.asend(number)
            await observer.aclose()
            return rx.AsyncDisposable.empty()

        whole = AsyncObservableSource(rx.AsyncAnonymousObservable(subscribe))
        assert await collect(whole) == Seen([0, 1, 2], "completed")
        dropped = AsyncObservableSource(rx.AsyncAnonymousObservable(subscribe))
        assert await collect(dropped, take=1) == Seen([0], "dropped")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    @pytest.mark.rows("S7")
    async def test_a_drop_does_not_disturb_the_sender(self) -> None:
        """A subject that sends to several: it waits for none that has left."""
        subject: rx.AsyncSubject[int] = rx.AsyncSubject()
        leaving, staying = AsyncObservableSource(subject), AsyncObservableSource(subject)
        first = asyncio.create_task(collect(leaving, take=1))
        rest = asyncio.create_task(collect(staying))
        for _ in range(2):
            await asyncio.sleep(0)
        for number in range(3):
            await subject.asend(number)
        await subject.aclose()
        assert await first == Seen([0], "dropped")
        assert await rest == Seen([0, 1, 2], "completed")

    async def test_a_source_that_continues_after_a_drop_does_not_block_the_loop(self) -> None:
        """Even if disposing of it stops nothing, other tasks run while it sends."""
        sending: list[asyncio.Task[None]] = []

        async def send_for_ever(observer: rx.AsyncObserver[int]) -> None:
            while True:
                await observer.asend(1)

        async def subscribe(observer: rx.AsyncObserver[int]) -> rx.AsyncDisposable:
            sending.append(asyncio.create_task(send_for_ever(observer)))
            return rx.AsyncDisposable.empty()

        source = AsyncObservableSource(rx.AsyncAnonymousObservable(subscribe))
        await anext(source)
        await source.aclose()
        await asyncio.sleep(0.1)
        sending[0].cancel()

    async def test_a_disposal_that_fails_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        """It does no harm, and the library's tasks end all the same."""

        async def subscribe(observer: rx.AsyncObserver[int]) -> rx.AsyncDisposable:
            async def dispose() -> None:
                raise LookupError("gone")

            await rx.from_iterable([1, 2]).subscribe_async(observer)
            return rx.AsyncDisposable.create(dispose)

        source = AsyncObservableSource(rx.AsyncAnonymousObservable(subscribe))
        await anext(source)
        await source.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert caplog.messages == ["disposing of an AsyncObservable subscription failed"]

    @pytest.mark.parametrize("ours", [True, False])
    async def test_tasks_of_a_users_function_are_not_cancelled(self, ours: bool) -> None:
        """A task that a mapper starts lives on after the drop; and a task factory stays in place."""
        done: list[float] = []

        async def later() -> None:
            await asyncio.sleep(5)
            done.append(now())

        async def begin(number: int) -> asyncio.Task[None]:
            return asyncio.create_task(later())

        def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
            return asyncio.Task(coroutine, loop=loop, **options)

        loop = asyncio.get_running_loop()
        factory = make if ours else None
        loop.set_task_factory(factory)
        source = AsyncObservableSource(rx.pipe(rx.single(1), rx.map_async(begin)))
        task: Awaitable[None] = await anext(source)
        await source.aclose()
        assert loop.get_task_factory() is factory
        await task
        assert done == [5.0]
