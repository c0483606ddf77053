"""The ways to drop a stream, or a reader of one, between two pulls and within one."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from operators.authoring import FusedRun
from tests.operators._help import Owner, Seen, by_aclose, by_close, by_losing_it

__all__ = (
    "EVERY_WAY",
    "IN_A_PULL",
    "InPull",
    "Way",
    "by_an_exception_in_a_loop",
    "by_cancelling",
    "by_closing",
    "by_leaving_a_loop",
    "by_losing_a_cycle",
)

Way = Callable[[Owner], Awaitable[None]]
InPull = Callable[[asyncio.Task[Seen], FusedRun[Any]], Awaitable[None]]


async def by_losing_it_in_a_thread(owner: Owner) -> None:
    await asyncio.to_thread(owner.clear)


async def by_losing_a_cycle(owner: Owner) -> None:
    cycle: list[object] = [owner.pop()]
    cycle.append(cycle)
    del cycle
    gc.collect()
    # The collector leaves the release to the loop.
    await asyncio.sleep(0)


async def by_leaving_a_loop(owner: Owner) -> None:
    async for _ in owner.pop():
        break


async def by_an_exception_in_a_loop(owner: Owner) -> None:
    with suppress(LookupError):
        async for _ in owner.pop():
            raise LookupError


EVERY_WAY: list[Way] = [
    by_close,
    by_aclose,
    by_losing_it,
    by_losing_it_in_a_thread,
    by_losing_a_cycle,
    by_leaving_a_loop,
    by_an_exception_in_a_loop,
]


# While a task waits in a pull.


async def by_cancelling(pull: asyncio.Task[Seen], stream: FusedRun[Any]) -> None:
    pull.cancel("the client left")
    await asyncio.wait([pull])


async def by_closing(pull: asyncio.Task[Seen], stream: FusedRun[Any]) -> None:
    stream.close()
    await pull


async def by_closing_and_waiting(pull: asyncio.Task[Seen], stream: FusedRun[Any]) -> None:
    await stream.aclose()
    await pull


IN_A_PULL: list[InPull] = [by_cancelling, by_closing, by_closing_and_waiting]
