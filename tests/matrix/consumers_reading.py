"""Consumers that read on, or try to pull more than there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from operators import fuse
from operators import tap as tap_operator
from rx_backend import BackendError
from tests.matrix.kinds import consumer
from tests.matrix.request import Request


@consumer()
async def reads_all(request: Request) -> None:
    """Read to the end."""
    await request.read(await request.open())


@consumer()
async def reads_slowly(request: Request) -> None:
    """Be busy between its pulls."""
    await request.read(await request.open(), is_slow=True)


@consumer()
async def reads_in_async_with(request: Request) -> None:
    """Read to the end within ``async with``."""
    async with await request.open() as stream:
        await request.read(stream)
        request.drop()


@consumer()
async def pulls_in_tasks(request: Request) -> None:
    """Pull each item in a task of its own, as the runtime does."""
    stream = await request.open()
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
async def pulls_past_the_end(request: Request) -> None:
    """Pull again after the end."""
    stream = await request.open()
    await request.read(stream)
    for _ in range(2):
        if await anext(stream, None) is not None:
            request.record.blame("S2: an item after the end")
    await stream.aclose()


@consumer()
async def pulls_twice_at_once(request: Request) -> None:
    """Pull while a pull waits, which is refused, and read on."""
    stream = await request.open()
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
async def peeks_and_reads(request: Request) -> None:
    """Wait for the first token, then read."""
    stream = await request.open()
    try:
        await stream.peek_first()
    except BackendError:
        return
    await request.read(stream)


@consumer()
async def peeks_and_leaves(request: Request) -> None:
    """Wait for the first token, then leave."""
    stream = await request.open()
    with suppress(BackendError):
        await stream.peek_first()
    request.drop()


@consumer()
async def fuses(request: Request) -> None:
    """Read through operators of its own."""
    stream = await request.open()
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
async def wraps(request: Request) -> None:
    """Read through an async generator of its own, and leave it."""
    stream = await request.open()

    async def items() -> AsyncGenerator[Any]:
        async for item in stream:
            yield item

    wrapped = items()
    await request.some(wrapped)
    request.drop()
    await wrapped.aclose()


@consumer()
async def asks_badly(request: Request) -> None:
    """Ask with a model that is no text, and be told that, or not."""
    with suppress(BackendError):
        await request.read(await request.open(model=["matrix"]))
