"""Engines whose frame reaches the task that pulls it, or has tasks of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from typing import Any

import anyio

from tests.matrix.call import Call
from tests.matrix.kinds import engine

Answer = AsyncGenerator[Any, None]


@engine(holds_task=True)
async def timeout_across(call: Call) -> Answer:
    """Hold ``asyncio.timeout`` across its yields."""
    with call.opened():
        async with asyncio.timeout(30):
            for _ in range(call.length):
                await call.pause()
                yield call.token()
            if call.rng.random() < 0.3:
                await call.wait_for_ever()
            yield call.stop()


@engine(ends=("terminal", "ResponseTimeout", "Unknown"), cancels_consumer=True, knows_task=True)
async def timeout_expires(call: Call) -> Answer:
    """Hold ``asyncio.timeout`` across its yields until it expires, wherever the consumer is."""
    with call.opened():
        try:
            async with asyncio.timeout(0.003):
                # It can't expire where each pull is made in a task of its own.
                for _ in range(100):
                    await call.pause(must_wait=True)
                    yield call.token()
            yield call.stop()
        finally:
            call.fail()


@engine(knows_task=True)
async def group_busy(call: Call) -> Answer:
    """Hold a task group across its yields, with a producer in it."""
    queue: asyncio.Queue[bool] = asyncio.Queue()
    length = call.length

    async def produce() -> None:
        for _ in range(length):
            await asyncio.sleep(0.0003)
            queue.put_nowait(True)
        queue.put_nowait(False)

    with call.opened():
        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            while await queue.get():
                call.record.progress += 1
                yield call.token()
        yield call.stop()


@engine(
    ends=("Disconnected", "Unknown"),
    hides_cancellation=sys.version_info < (3, 13),
    knows_task=True,
)
async def group_fails(call: Call) -> Answer:
    """Wait for a task group of which one task fails."""
    with call.opened():
        yield call.token()
        await call.pause()
        call.fail()
        async with asyncio.TaskGroup() as group:
            group.create_task(call.wait_for_ever())
            group.create_task(_fail())


async def _fail() -> None:
    await asyncio.sleep(0)
    raise ConnectionResetError("in a group")


# Of a scope that another task leaves, anyio keeps the task.
@engine(holds_task=True, has_scope_in_pull=True, is_kept=True)
async def scope_across(call: Call) -> Answer:
    """Hold a cancel scope of anyio across its yields."""
    with call.opened(), anyio.CancelScope():
        for _ in range(call.length):
            await call.pause()
            yield call.token()
        if call.rng.random() < 0.3:
            await call.wait_for_ever()
        yield call.stop()


@engine(has_scope_in_pull=True)
async def scope_within(call: Call) -> Answer:
    """Wait in a cancel scope of anyio that gives up, between its yields."""
    with call.opened():
        for _ in range(call.length):
            with anyio.move_on_after(0.0005):
                await anyio.sleep_forever()
            yield call.token()
        yield call.stop()


@engine(knows_task=True)
async def holds_task(call: Call) -> Answer:
    """Have the task that pulls it in a local."""
    with call.opened():
        task = asyncio.current_task()
        for _ in range(call.length):
            await call.pause()
            yield call.token()
        if call.rng.random() < 0.3:
            await call.wait_for_ever()
        assert task is not None
        yield call.stop()


@engine(cancels_consumer=True, ends=("terminal", "Unknown", "Cancelled"))
async def cancels_its_task(call: Call) -> Answer:
    """Cancel the task that pulls it, which is its consumer's or an operator's."""
    with call.opened():
        yield call.token()
        await call.pause()
        task = asyncio.current_task()
        assert task is not None
        call.fail()
        task.cancel()
        await call.pause()
        yield call.stop()
