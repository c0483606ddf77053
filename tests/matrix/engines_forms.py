"""Engines whose answer is no async generator: iterators and observables (row E2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from importlib.util import find_spec
from threading import Event
from typing import Any

import reactivex
from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.disposable import Disposable

from rx_backend import LLMEngineOutput
from tests.matrix.call import POOL, Call
from tests.matrix.kinds import engine


class _Iterator:
    """An asynchronous iterator without ``aclose``."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.left = call.length

    def __aiter__(self) -> _Iterator:
        return self

    async def __anext__(self) -> LLMEngineOutput:
        await self.call.pause()
        if self.left < 0:
            raise StopAsyncIteration
        self.left -= 1
        return self.call.stop() if self.left < 0 else self.call.token()


class _Closable(_Iterator):
    """One that is to be closed, once, even if it was never pulled."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        call.record.opened += 1

    async def aclose(self) -> None:
        self.call.record.closed += 1


class _Waiting(_Closable):
    async def aclose(self) -> None:
        await self.call.clean()
        await super().aclose()


class _Failing(_Closable):
    async def aclose(self) -> None:
        await super().aclose()
        raise LookupError("aclose")


class _Futures:
    """Gives futures where others give coroutines, and has an iterator apart."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def __aiter__(self) -> AsyncIterator[LLMEngineOutput]:
        return _FutureIterator(self.call)


class _FutureIterator(AsyncIterator[LLMEngineOutput]):
    def __init__(self, call: Call) -> None:
        self.call = call
        self.left = call.length

    def __anext__(self) -> asyncio.Future[LLMEngineOutput]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[LLMEngineOutput] = loop.create_future()
        self.left -= 1
        self.call.record.progress += 1
        loop.call_later(0.0003, self._answer, future)
        return future

    def _answer(self, future: asyncio.Future[LLMEngineOutput]) -> None:
        if not future.done():
            future.set_result(self.call.stop() if self.left < 0 else self.call.token())


engine(name="iterator")(_Iterator)
engine(name="iterator_closed")(_Closable)
engine(name="iterator_close_waits")(_Waiting)
engine(name="iterator_close_raises")(_Failing)
engine(name="iterator_of_futures")(_Futures)


@engine()
async def iterator_awaited(call: Call) -> Any:
    """Be a coroutine that gives an iterator."""
    await call.pause()
    return _Closable(call)


def _chunks(call: Call) -> list[LLMEngineOutput]:
    return [*(call.token() for _ in range(call.length)), call.stop()]


@engine()
def rx_at_once(call: Call) -> Any:
    """Return an Observable that pushes all at once."""
    return reactivex.defer(lambda _: reactivex.from_iterable(_chunks(call)))


@engine()
def rx_timer(call: Call) -> Any:
    """Return an Observable on a timer of the default scheduler."""
    ticks = reactivex.interval(0.0005).pipe(ops.take(call.length))
    tokens = ticks.pipe(ops.map(lambda _: call.token()))
    return tokens.pipe(ops.concat(reactivex.defer(lambda _: reactivex.of(call.stop()))))


@engine(ends=())
def rx_never(call: Call) -> Any:
    """Return an Observable that counts its disposal, and be silent after a chunk."""

    def subscribe(
        observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        call.record.opened += 1
        observer.on_next(call.token())
        call.stick()
        return Disposable(lambda: _close(call))

    return Observable(subscribe)


def _close(call: Call) -> None:
    call.record.closed += 1


@engine(ends=("Disconnected",))
def rx_fails(call: Call) -> Any:
    """Return an Observable that fails after some chunks."""

    def failing(_: abc.SchedulerBase) -> Observable[Any]:
        chunks = reactivex.from_iterable(_chunks(call)[:-1])
        return chunks.pipe(ops.concat(reactivex.throw(ConnectionResetError("rx"))))

    return reactivex.defer(failing)


@engine()
def rx_thread(call: Call) -> Any:
    """Return an Observable that is pushed from a thread."""

    def subscribe(
        observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        is_disposed = Event()

        def push() -> None:
            for _ in range(call.length):
                if is_disposed.wait(0.0002):
                    return
                observer.on_next(call.token())
            observer.on_next(call.stop())
            observer.on_completed()

        POOL.submit(push)
        return Disposable(is_disposed.set)

    return Observable(subscribe)


if find_spec("aioreactive") is not None:
    _pushing: set[asyncio.Future[None]] = set()

    @engine()
    def aio_observable(call: Call) -> Any:
        """Return an AsyncObservable that is fed by a task."""
        from aioreactive import AsyncAnonymousObservable, AsyncDisposable, AsyncObserver

        # The task is held, and so must not hold what may hold the stream.
        own = call.apart()

        async def chunks() -> AsyncGenerator[LLMEngineOutput]:
            with own.opened():
                for _ in range(own.length):
                    await own.pause()
                    yield own.token()
                yield own.stop()

        async def push(observer: AsyncObserver[Any]) -> None:
            answer = chunks()
            try:
                async for chunk in answer:
                    await observer.asend(chunk)
                await observer.aclose()
            finally:
                await answer.aclose()

        async def subscribe(observer: AsyncObserver[Any]) -> AsyncDisposable:
            task = asyncio.ensure_future(push(observer))
            _pushing.add(task)
            task.add_done_callback(_pushing.discard)

            async def dispose() -> None:
                task.cancel()
                await asyncio.wait([task])

            return AsyncDisposable.create(dispose)

        return AsyncAnonymousObservable(subscribe)

    @engine()
    def aio_mapped(call: Call) -> Any:
        """Return an AsyncObservable with operators of its library."""
        import aioreactive

        return aioreactive.pipe(
            aio_observable(call), aioreactive.filter(bool), aioreactive.map(lambda chunk: chunk)
        )
