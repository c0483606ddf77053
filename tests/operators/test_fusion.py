"""`operators._core.fusion`: one pulled stream out of neighbouring operators."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import traceback
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import nullcontext, suppress
from typing import Any, Generic, TypeVar

import pytest

from operators import fuse, map_async
from operators._core.failures import SourceCancelled
from operators.assembly import Callbacks, callbacks
from operators.authoring import (
    AnyOperator,
    FusedRun,
    Stage,
    complete_with,
    emit,
    operator,
)
from tests.operators._help import (
    Engine,
    Seen,
    collect,
    later,
    observed,
    same,
    spy,
)

T = TypeVar("T")

Ints = Stage[int, int]


@operator
def kept(modulus: int) -> Ints:
    """Keep every item that *modulus* divides."""
    item = yield
    while True:
        item = yield item if item % modulus == 0 else emit()


class TestPull:
    """What one pull of the consumer does."""

    async def test_many_items_may_be_filtered_out_in_one_pull(self) -> None:
        """However many items are left out in one pull, it comes to an end."""
        stream = fuse(Engine(range(20_001))(), [kept(20_000)])
        assert await collect(stream) == Seen([0, 20_000], "completed")


class TestConcurrency:
    """Who may pull when."""

    async def test_a_concurrent_pull_is_rejected(self) -> None:
        """While a task waits in a pull, another pull is an error; the first one continues."""
        stream = fuse(Engine([1, 2], every_s=1.0)(), [same()])
        first = asyncio.ensure_future(collect(stream))
        await asyncio.sleep(0.5)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="already being pulled by another task"):
                await anext(stream)
        assert await first == Seen([1, 2], "completed")

    async def test_different_tasks_may_pull_in_turn(self) -> None:
        """Another task may pull when nobody waits in a pull."""
        stream = fuse(Engine([1, 2, 3], every_s=1.0)(), [same()])
        items = [await asyncio.create_task(_next_of(stream)) for _ in range(3)]
        assert items == [1, 2, 3]
        assert await collect(stream) == Seen([], "completed")


def itself(coroutine: Any) -> Any:
    return coroutine


class ByHand(Generic[T]):
    """An awaitable with an ``__await__`` of its own."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, None, T]:
        return (yield from self._coroutine.__await__())


class Counting:
    """An asynchronous iterator of a class: three numbers, by awaitables of one kind."""

    def __init__(self, awaitable: Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]]) -> None:
        self._awaitable = awaitable
        self._number = 0
        self.closed = 0

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    def __anext__(self) -> Awaitable[int]:
        return self._awaitable(self._next())

    def aclose(self) -> Awaitable[None]:
        return self._awaitable(self._close())

    async def _next(self) -> int:
        await asyncio.sleep(1)
        self._number += 1
        if self._number > 3:
            raise StopAsyncIteration
        return self._number

    async def _close(self) -> None:
        await asyncio.sleep(1)
        self.closed += 1


class TestSources:
    """What may be fused."""

    @pytest.mark.rows("E2", "S2")
    @pytest.mark.parametrize("awaitable", [itself, asyncio.ensure_future, ByHand])
    @pytest.mark.parametrize("take", [None, 2, 3])
    async def test_any_asynchronous_iterator(self, awaitable: Any, take: int | None) -> None:
        """Its items come out, at an end or a drop, and its ``aclose`` is awaited."""
        source = Counting(awaitable)
        seen = await collect(fuse(source, [same()]), take=take)
        assert seen == Seen([1, 2, 3][:take], "completed" if take is None else "dropped")
        assert source.closed == 1

    @pytest.mark.rows("S6")
    @pytest.mark.parametrize("wrong", [TypeError("wrong"), StopIteration("wrong")], ids=repr)
    async def test_a_source_may_raise_synchronously(self, wrong: Exception) -> None:
        """What ``__anext__`` raises before there is anything to await is a failure as well."""

        class Broken:
            def __aiter__(self) -> AsyncIterator[int]:
                return self

            def __anext__(self) -> Awaitable[int]:
                raise wrong

        journal: list[str] = []
        seen = await collect(fuse(Broken(), [spy(journal)]))
        assert seen.error is not None
        assert journal == ["#"]


class TestContext:
    """Where source and operators run."""

    @pytest.mark.rows("P7", "P9", "S7")
    @pytest.mark.parametrize(
        ("is_dropped", "failure"), [(False, None), (True, None), (False, GeneratorExit)]
    )
    async def test_source_and_operators_run_in_the_given_context(
        self, is_dropped: bool, failure: type[BaseException] | None
    ) -> None:
        """They see what was set there, however it ends; the consumer sees nothing of what they set."""
        variable = contextvars.ContextVar("variable", default="outside")
        context = contextvars.copy_context()
        context.run(variable.set, "inside")
        seen: list[str] = []

        async def engine() -> AsyncIterator[int]:
            try:
                seen.append(f"start {variable.get()}")
                await asyncio.sleep(1)
                yield 1
                variable.set("changed")
                yield 2
                if failure is not None:
                    raise failure
            finally:
                await asyncio.sleep(1)
                seen.append(f"closing {variable.get()}")

        @operator
        def look() -> Ints:
            try:
                seen.append(f"set-up {variable.get()}")
                item = yield
                while True:
                    seen.append(f"item {variable.get()}")
                    item = yield item
            finally:
                seen.append(f"end {variable.get()}")

        stream = observed(
            engine(),
            [look()],
            own_context=context,
            on_end=lambda dropped: seen.append(f"on_end {variable.get()}, {dropped}"),
        )
        with nullcontext() if failure is None else pytest.raises(SourceCancelled):
            async for _ in stream:
                assert variable.get() == "outside"
                if is_dropped:
                    await stream.aclose()
        begin = ["set-up inside", "start inside", "item inside"]
        if is_dropped:
            assert seen == [*begin, "end inside", "on_end inside, True", "closing inside"]
        else:
            end = ["item changed", "closing changed", "end changed", "on_end changed, False"]
            assert seen == [*begin, *end]


class TestTheEnd:
    """What the pull that sees the end has waited for."""

    @pytest.mark.rows("P9", "S7")
    @pytest.mark.parametrize("waits", [False, True])
    async def test_the_source_is_closed(self, waits: bool) -> None:
        """In the stream's context, and in a task of its own; a turn for that is taken where it waits."""
        variable = contextvars.ContextVar("variable", default="outside")
        tasks = list[asyncio.Task[Any] | None]()

        async def engine() -> AsyncIterator[int]:
            token = variable.set("engine")
            try:
                for number in range(5):
                    yield number
            finally:
                async with asyncio.timeout(1):
                    if waits:
                        await asyncio.sleep(0.5)
                variable.reset(token)
                tasks.append(asyncio.current_task())

        stream = fuse(engine(), [ended_with([7])])
        items = [await anext(stream) for _ in range(4)]
        turns = list[None]()
        asyncio.get_running_loop().call_soon(turns.append, None)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert (items, len(tasks)) == ([0, 1, 2, 7], 1)
        assert tasks != [asyncio.current_task()]
        assert bool(turns) == (waits or sys.version_info < (3, 12))


class TestTheStreamItself:
    """The object that ``fuse`` gives."""

    async def test_a_failure_leaves_no_cycle(self) -> None:
        """An exception that went through a stream is freed without the garbage collector."""

        class Gone(Exception):
            pass

        @operator
        def refuse() -> Ints:
            yield
            raise Gone

        async def failing() -> AsyncIterator[int]:
            yield 1
            raise Gone

        async def run(stream: FusedRun[Any]) -> weakref.ref[BaseException]:
            try:
                async for _ in stream:
                    pass
            except Gone as error:
                return weakref.ref(error)
            raise AssertionError("the stream did not fail")

        gc.disable()
        try:
            assert (await run(fuse(Engine([1])(), [same(), refuse(), same()])))() is None
            assert (await run(fuse(failing(), [same()])))() is None
        finally:
            gc.enable()

    async def test_a_cancelled_pull_leaves_no_cycle(self) -> None:
        """The stream is freed without the garbage collector; from Python 3.12 on that takes care."""
        owner = [fuse(Engine(ends=False)(), [same()])]
        freed = weakref.ref(owner[0])

        async def pull() -> None:
            with suppress(asyncio.CancelledError):
                await anext(owner[0])

        gc.disable()
        try:
            pulling = asyncio.ensure_future(pull())
            await asyncio.sleep(1)
            pulling.cancel()
            await pulling
            owner.clear()
            await asyncio.sleep(1)
            assert freed() is None
        finally:
            gc.enable()

    async def test_a_traceback_leads_to_the_operator(self) -> None:
        """What an operator raised is shown with its own line."""

        @operator
        def refuse() -> Ints:
            yield
            raise LookupError("here")

        seen = await collect(fuse(Engine([1])(), [same(), refuse()]))
        assert _raised_in(seen.error) == "refuse"

    @pytest.mark.rows("O4", "S6")
    @pytest.mark.parametrize("waits", [False, True])
    @pytest.mark.parametrize("kind", ["generator", "iterator", "awaitable", "delegating"])
    @pytest.mark.parametrize("between", [[], [map_async(later)]], ids=["fused", "pulled"])
    async def test_a_traceback_leads_to_the_engine(
        self, kind: str, waits: bool, between: list[AnyOperator]
    ) -> None:
        """What a source raised is shown with its own line, however it is written."""

        async def raise_here() -> AsyncIterator[Any]:
            yield 1
            if waits:
                await asyncio.sleep(1)
            raise LookupError("here")

        class Source:
            async def raise_here(self) -> Any:
                if waits:
                    await asyncio.sleep(1)
                raise LookupError("here")

            def __aiter__(self) -> AsyncIterator[Any]:
                return self

            def __anext__(self) -> Awaitable[Any]:
                return self.raise_here()

        class Waiting(Source):
            async def __anext__(self) -> Any:
                return await self.raise_here()

        async def delegate() -> AsyncIterator[Any]:
            async for item in raise_here():
                yield item

        sources: dict[str, Callable[[], AsyncIterator[Any]]] = {
            "generator": raise_here,
            "iterator": Waiting,
            "awaitable": Source,
            "delegating": delegate,
        }
        seen = await collect(fuse(sources[kind](), [same(), *between, same()]))
        assert isinstance(seen.error, LookupError)
        assert _raised_in(seen.error) == "raise_here"


def _raised_in(error: BaseException | None) -> str:
    """Return the name of the function that raised *error*."""
    assert error is not None
    return traceback.extract_tb(error.__traceback__)[-1].name


async def _next_of(stream: AsyncIterator[int]) -> int:
    return await anext(stream)


@callbacks()
def ended_with(items: Sequence[int]) -> Callbacks[int, int]:
    return Callbacks(lambda _: complete_with(*items), only="item == 3")
