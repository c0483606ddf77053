"""Consumers that read on, or try to pull more than there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from operators import fuse
from operators import tap as tap_operator
from rx_backend import BackendError
from tests.matrix.kinds import asking, consumer
from tests.matrix.request import Request


@asking()
async def reads_all(request: Request) -> None:
    """Read to the end."""
    await request.read(await request.open())


@asking()
async def reads_slowly(request: Request) -> None:
    """Be busy between its pulls."""
    await request.read(await request.open(), is_slow=True)


@asking()
async def reads_in_async_with(request: Request) -> None:
    """Read to the end within ``async with``."""
    async with await request.open() as stream:
        await request.read(stream)
        request.drop()


@consumer()
async def pulls_in_tasks(request: Request, stream: Any) -> None:
    """Pull each item in a task of its own, as the runtime does."""
    while True:
        pull = request.pull(stream)
        try:
            await asyncio.wait([pull])
        except asyncio.CancelledError:
            request.cancel(pull)
            await asyncio.wait([pull])
            raise
        if pull.cancelled() or pull.exception() is not None:
            await request.settle(pull)
            return
        if pull.result() is None:
            request.ended()
            return


@consumer()
async def pulls_past_the_end(request: Request, stream: Any) -> None:
    """Pull again after the end."""
    await request.read(stream)
    for _ in range(2):
        if await anext(stream, None) is not None:
            request.record.blame("S2: an item after the end")
    await stream.aclose()


@consumer()
async def pulls_twice_at_once(request: Request, stream: Any) -> None:
    """Pull while a pull waits, which is refused, and read on."""
    pull = request.pull(stream)
    await asyncio.sleep(0)
    if not pull.done() and not request.record.is_dropped:
        try:
            await anext(stream)
        except RuntimeError:
            pass
        else:
            request.record.blame("two pulls at once, and no RuntimeError")
    try:
        await asyncio.wait([pull])
    except asyncio.CancelledError:
        request.cancel(pull)
        await asyncio.wait([pull])
        raise
    if pull.cancelled() or pull.exception() is not None:
        await request.settle(pull)
        return
    await request.read(stream)


@consumer()
async def peeks_and_reads(request: Request, stream: Any) -> None:
    """Wait for the first token, then read."""
    try:
        await stream.peek_first()
    except BackendError:
        return
    await request.read(stream)


@consumer()
async def peeks_and_leaves(request: Request, stream: Any) -> None:
    """Wait for the first token, then leave."""
    with suppress(BackendError):
        await stream.peek_first()
    request.drop()


@consumer()
async def fuses(request: Request, stream: Any) -> None:
    """Read through operators of its own."""
    seen: list[object] = []
    run = fuse(stream, [tap_operator(seen.append)])
    del stream
    if request.rng.random() < 0.5:
        await request.read(run)
    else:
        await request.some(run)
        request.drop()
        await run.aclose()


@consumer()
async def wraps(request: Request, stream: Any) -> None:
    """Read through an async generator of its own, and leave it."""

    async def items() -> AsyncGenerator[Any]:
        async for item in stream:
            yield item

    wrapped = items()
    await request.some(wrapped)
    request.drop()
    await wrapped.aclose()


@asking()
async def asks_badly(request: Request) -> None:
    """Ask with a model that is no text, and be told that, or not."""
    with suppress(BackendError):
        await request.read(await request.open(model=["matrix"]))
