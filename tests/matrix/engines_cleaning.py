"""Engines with a clean-up of every sort."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from tests.matrix.call import Call
from tests.matrix.kinds import engine

Answer = AsyncGenerator[Any, None]


class OddError(BaseException):
    """No ``Exception``, and none of Python's own."""


async def _cleaning(call: Call, clean_up: Callable[[Call], Awaitable[None]]) -> Answer:
    with call.opened():
        try:
            for _ in range(call.length):
                await call.pause()
                yield call.token()
            if call.rng.random() < 0.3:
                await call.wait_for_ever()
            yield call.stop()
        finally:
            await clean_up(call)


def _kind(**options: Any) -> Callable[[Callable[[Call], Awaitable[None]]], None]:
    """Register an engine by its clean-up."""

    def register(clean_up: Callable[[Call], Awaitable[None]]) -> None:
        options.setdefault("ends", ("terminal",))
        engine(name=clean_up.__name__, **options)(lambda call: _cleaning(call, clean_up))

    return register


@_kind()
async def cleans_at_once(call: Call) -> None:
    """Clean up without waiting."""
    call.record.progress += 1


@_kind()
async def cleans_and_waits(call: Call) -> None:
    """Wait a moment."""
    await call.clean()


@_kind()
async def cleans_for_long(call: Call) -> None:
    """Wait for long."""
    await call.clean(long=True)


@_kind()
async def cleans_in_time(call: Call) -> None:
    """Give up its clean-up after a moment, by ``asyncio.timeout``."""
    with suppress(TimeoutError):
        async with asyncio.timeout(0.001):
            await asyncio.get_running_loop().create_future()


@_kind()
async def cleans_and_raises(call: Call) -> None:
    """Wait, then fail."""
    await call.clean()
    raise LookupError("clean-up")


@_kind(raises=(OddError,))
async def cleans_and_raises_base(call: Call) -> None:
    """Fail with what is no ``Exception``."""
    await call.clean()
    raise OddError("clean-up")


@_kind()
async def cleans_and_raises_cancelled(call: Call) -> None:
    """Fail with a cancellation that is nobody's."""
    await call.clean()
    raise asyncio.CancelledError("clean-up")


@_kind()
async def cleans_shielded(call: Call) -> None:
    """Clean up in a shielded task."""
    await asyncio.shield(asyncio.ensure_future(call.clean()))


@_kind()
async def cleans_its_task(call: Call) -> None:
    """Cancel a task of its own and wait for it, as everybody writes that."""
    task = asyncio.ensure_future(asyncio.sleep(60))
    try:
        await asyncio.sleep(0)
    finally:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@_kind()
async def cleans_and_notifies(call: Call) -> None:
    """Tell of the first token while it cleans up, which opens nothing (row A5)."""
    await call.clean()
    call.context.notify_first_token()
    await call.clean()


@_kind()
async def cleans_and_stops(call: Call) -> None:
    """Stop its own request while it cleans up (row A6)."""
    await call.clean()
    call.signal(cleans=True)
    await call.clean()
