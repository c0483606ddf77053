"""Consumers that subscribe (rows O6, S7)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from reactivex import operators as ops

from tests.matrix.kinds import consumer
from tests.matrix.request import Request


def _observer(request: Request) -> tuple[asyncio.Future[None], tuple[Callable[..., None], ...]]:
    """Give three functions to subscribe with, and what is done at the end."""
    done: asyncio.Future[None] = request.loop.create_future()

    def finish(error: Exception | None = None) -> None:
        if error is not None:
            request.judge(error)
        if not done.done():
            done.set_result(None)

    return done, (request.note, finish, finish)


async def _until(request: Request, done: asyncio.Future[None], subscription: Any) -> None:
    """
    Wait for the end of a subscription, and dispose of it.

    What the engine raises beside ``Exception`` ends the pushing task, and no observer hears of it.
    """
    try:
        await asyncio.wait([done])
    finally:
        request.drop()
        subscription.dispose()


@consumer()
async def subscribes(request: Request, stream: Any) -> None:
    """Subscribe to the end."""
    done, observer = _observer(request)
    await _until(request, done, stream.subscribe(*observer))


@consumer()
async def subscribes_and_disposes(request: Request, stream: Any) -> None:
    """Dispose of its subscription, twice, at any moment."""
    _, observer = _observer(request)
    subscription = stream.subscribe(*observer)
    del stream
    await request.pause()
    request.drop()
    subscription.dispose()
    subscription.dispose()


@consumer()
async def disposes_in_thread(request: Request, stream: Any) -> None:
    """Dispose of its subscription in another thread."""
    _, observer = _observer(request)
    subscription = stream.subscribe(*observer)
    del stream
    await request.pause()
    await request.drop_in_thread(subscription.dispose)


@consumer()
async def disposes_in_observer(request: Request, stream: Any) -> None:
    """Have enough after the first item: ``take`` disposes within ``on_next``."""
    done, observer = _observer(request)
    await _until(request, done, stream.pipe(ops.take(1)).subscribe(*observer))


@consumer(is_exact=False)
async def pipes_timeout(request: Request, stream: Any) -> None:
    """Put the stock ``timeout`` behind the stream, without a scheduler."""
    done, (on_next, _, finish) = _observer(request)
    piped = stream.pipe(ops.timeout(0.001))
    del stream

    def expire(_: Exception) -> None:
        finish()

    await _until(request, done, piped.subscribe(on_next, expire, finish))


@consumer()
async def pipes_buffers(request: Request, stream: Any) -> None:
    """Put the stock ``buffer_with_time`` behind the stream."""
    done, observer = _observer(request)
    piped = stream.pipe(ops.buffer_with_time(0.001))
    del stream
    await _until(request, done, piped.subscribe(*observer))


@consumer()
async def pipes_delay_and_disposes(request: Request, stream: Any) -> None:
    """Put the stock ``delay`` behind the stream, and dispose of it."""
    _, observer = _observer(request)
    subscription = stream.pipe(ops.delay(0.001)).subscribe(*observer)
    del stream
    await request.pause()
    request.drop()
    subscription.dispose()


if find_spec("aioreactive") is not None:

    async def _subscribe_async(request: Request, stream: Any, done: asyncio.Future[None]) -> Any:
        from aioreactive import AsyncAnonymousObserver

        async def send(item: object) -> None:
            request.note(item)
            await request.pause()

        async def fail(error: Exception) -> None:
            request.judge(error)
            await close()

        async def close() -> None:
            if not done.done():
                done.set_result(None)

        observer = AsyncAnonymousObserver(send, fail, close)
        return await stream.as_async_observable().subscribe_async(observer)

    @consumer()
    async def subscribes_async(request: Request, stream: Any) -> None:
        """Subscribe an asynchronous observer to the end."""
        done: asyncio.Future[None] = request.loop.create_future()
        subscription = await _subscribe_async(request, stream, done)
        try:
            await asyncio.wait([done])
        finally:
            request.drop()
            await subscription.dispose_async()

    @consumer()
    async def subscribes_async_and_disposes(request: Request, stream: Any) -> None:
        """Dispose of an asynchronous subscription at any moment."""
        done: asyncio.Future[None] = request.loop.create_future()
        subscription = await _subscribe_async(request, stream, done)
        await request.pause()
        request.drop()
        await subscription.dispose_async()
