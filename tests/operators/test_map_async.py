"""Asynchronous steps: awaited one item at a time."""

from __future__ import annotations

import asyncio
import contextvars
from functools import partial
from typing import Any

import pytest

from operators import fuse, map_async
from operators.authoring import complete_with, emit
from tests.operators._drops import IN_A_PULL, InPull, by_cancelling
from tests.operators._help import Engine, Seen, collect, settle, spy


@pytest.mark.rows("S4")
async def test_the_engine_waits_for_the_step() -> None:
    """While a step is awaited the engine is not pulled; items come one after the other."""
    journal: list[str] = []

    async def slow(item: int) -> int:
        journal.append(f"begin {item}")
        await asyncio.sleep(5.0)
        journal.append(f"end {item}")
        return item

    engine = Engine([1, 2], journal=journal)
    assert await collect(fuse(engine(), [map_async(slow)])) == Seen([1, 2], "completed")
    assert journal == ["pull", "begin 1", "end 1", "pull", "begin 2", "end 2", "closed"]


async def test_a_step_may_emit_none_several_or_the_last_items() -> None:
    """``emit`` and ``complete_with`` work as they do for other operators."""

    async def answer(item: int) -> Any:
        return {1: emit(), 2: emit(20, 21), 3: complete_with(30, 31)}[item]

    engine = Engine([1, 2, 3, 4])
    stream = fuse(engine(), [map_async(answer), map_async(partial(asyncio.sleep, 1.0))])
    assert (await collect(stream)).end == "completed"
    engine = Engine([1, 2, 3, 4])
    assert (await collect(fuse(engine(), [map_async(answer)]))).items == [20, 21, 30, 31]
    assert engine.pulls == 3
    assert engine.closed == 1


async def test_any_callable_that_returns_an_awaitable_works() -> None:
    """Callables that are no coroutine functions work."""

    class Always:
        def __call__(self, item: int) -> Any:
            return asyncio.sleep(1.0, item)

    assert (await collect(fuse(Engine([1, 2])(), [map_async(Always())]))).items == [1, 2]


@pytest.mark.rows("S7")
@pytest.mark.parametrize("way", IN_A_PULL)
async def test_a_drop_cancels_the_step(way: InPull) -> None:
    """What is being awaited is cancelled, once, and all is released."""
    journal: list[str] = []

    async def forever(item: int) -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            journal.append("cancelled")
            raise
        return item

    engine = Engine([1], journal=journal)
    stream = fuse(engine(), [map_async(forever), spy(journal)])
    consumer = asyncio.create_task(collect(stream))
    await asyncio.sleep(1.0)
    await way(consumer, stream)
    assert consumer.cancelled() is (way is by_cancelling)
    await settle()
    assert sorted(journal) == ["!", "cancelled", "closed", "pull"]


async def test_a_step_runs_in_the_context_of_the_stream() -> None:
    """What one step sets, the next one finds, and the consumer never sees it."""
    number: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=0)
    context = contextvars.copy_context()

    async def count(item: int) -> int:
        await asyncio.sleep(1.0)
        number.set(number.get() + 1)
        return number.get()

    stream = fuse(Engine([7, 8, 9])(), [map_async(count)], own_context=context)
    assert (await collect(stream)).items == [1, 2, 3]
    assert number.get() == 0
