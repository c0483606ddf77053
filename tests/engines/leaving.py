"""Ways in which a consumer may leave its stream; those that begin with a pull take a second."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias

from tests.engines.serving import Stream, collect

Box: TypeAlias = list[Stream]
"""Holds the only lasting reference to a stream."""

Leave: TypeAlias = Callable[[Box], Awaitable[None]]


async def aclose(box: Box) -> None:
    await box[0].aclose()


async def aclose_while_another_task_pulls(box: Box) -> None:
    pull = asyncio.create_task(collect(box[0]))
    await asyncio.sleep(1)
    await box[0].aclose()
    await pull


async def aclose_twice_while_another_task_pulls(box: Box) -> None:
    pull = asyncio.create_task(collect(box[0]))
    await asyncio.sleep(1)
    box[0].close()
    await asyncio.sleep(0)
    await box[0].aclose()
    await pull


async def close_without_waiting(box: Box) -> None:
    box[0].close()


async def leave_async_with(box: Box) -> None:
    async with box[0]:
        pass


async def break_out_of_async_for(box: Box) -> None:
    async for _ in box.pop():
        break


async def lose_the_last_reference(box: Box) -> None:
    del box[0]


async def lose_the_last_reference_in_a_thread(box: Box) -> None:
    await asyncio.to_thread(box.clear)


async def lose_a_cycle(box: Box) -> None:
    cycle: list[Any] = [box.pop()]
    cycle.append(cycle)
    del cycle
    gc.collect()


async def cancel_in_a_pull(box: Box) -> None:
    pull = asyncio.create_task(collect(box[0]))
    await asyncio.sleep(1)
    pull.cancel()
    await asyncio.wait([pull])


async def run_out_of_time_in_wait_for(box: Box) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(collect(box[0]), 1)


async def run_out_of_time_in_timeout(box: Box) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            await collect(box[0])


async def fail_beside_in_a_task_group(box: Box) -> None:
    async def fail() -> None:
        await asyncio.sleep(1)
        raise LookupError

    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(collect(box.pop()))
            tasks.create_task(fail())


async def dispose_of_a_subscription(box: Box) -> None:
    subscription = box.pop().subscribe()
    await asyncio.sleep(1)
    subscription.dispose()


WAYS_OF_LEAVING: list[Leave] = [
    *(aclose, aclose_while_another_task_pulls, aclose_twice_while_another_task_pulls),
    *(close_without_waiting, leave_async_with, break_out_of_async_for),
    *(lose_the_last_reference, lose_the_last_reference_in_a_thread, lose_a_cycle),
    *(cancel_in_a_pull, run_out_of_time_in_wait_for, run_out_of_time_in_timeout),
    *(fail_beside_in_a_task_group, dispose_of_a_subscription),
]
