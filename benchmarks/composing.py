"""A chain of simple steps in several libraries: the cost of composing, per item."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aioreactive
import reactivex
from aiostream import pipe, stream
from expression.core import pipe as piped
from reactivex import operators as ops

from operators import fuse, map_async
from operators.authoring import Stage, emit, operator

__all__ = ("chains",)

Consume = Callable[[], Awaitable[int]]


async def numbers(count: int) -> AsyncIterator[int]:
    """Yield numbers without waiting: the source of every chain."""
    for number in range(count):
        yield number


def _add_one(number: int) -> int:
    return number + 1


def _is_kept(number: int) -> bool:
    return number % 10 != 0


async def _add_one_async(number: int) -> int:
    return number + 1


async def _is_kept_async(number: int) -> bool:
    return number % 10 != 0


async def _kept_async(number: int) -> Any:
    return number if await _is_kept_async(number) else emit()


@operator
def mapped(function: Callable[[Any], Any]) -> Stage[Any, Any]:
    """Apply *function* to each item."""
    item = yield
    while True:
        item = yield function(item)


@operator
def kept(predicate: Callable[[Any], bool]) -> Stage[Any, Any]:
    """Keep the items that satisfy *predicate*."""
    item = yield
    while True:
        item = yield item if predicate(item) else emit()


@operator
def summed() -> Stage[int, int]:
    """Yield the running sum."""
    total = yield
    while True:
        total += yield total


def chains(count: int) -> dict[str, Consume]:
    """
    Return each library's chain of map, filter, scan over *count* items, also with async steps.

    The loop is the code without a library.
    """

    async def loop() -> int:
        total = 0
        async for number in numbers(count):
            item = _add_one(number)
            if _is_kept(item):
                total += item
        return count

    async def loop_async() -> int:
        total = 0
        async for number in numbers(count):
            item = await _add_one_async(number)
            if await _is_kept_async(item):
                total += item
        return count

    async def drained(items: AsyncIterator[Any]) -> int:
        async for _ in items:
            pass
        return count

    def ours() -> Awaitable[int]:
        return drained(fuse(numbers(count), [mapped(_add_one), kept(_is_kept), summed()]))

    def ours_async() -> Awaitable[int]:
        steps = [map_async(_add_one_async), map_async(_kept_async), summed()]
        return drained(fuse(numbers(count), steps))

    def add(a: int, b: int) -> int:
        return a + b

    async def stock() -> int:
        subject: reactivex.Subject[int] = reactivex.Subject()
        steps = (ops.map(_add_one), ops.filter(_is_kept), ops.scan(add))
        subject.pipe(*steps).subscribe(lambda _: None)
        async for number in numbers(count):
            subject.on_next(number)
        subject.on_completed()
        return count

    # Its types want functions of any number of arguments.
    map_: Any = pipe.map

    async def aiostreams(*steps: Any) -> int:
        items: Any = stream.iterate(numbers(count))
        for step in (*steps, pipe.accumulate(add)):
            items |= step
        async with items.stream() as streamer:
            return await drained(streamer)

    async def aioreactives(*steps: Any) -> int:
        done = asyncio.get_running_loop().create_future()

        async def asend(_: Any) -> None: ...

        async def athrow(error: Exception) -> None:
            done.set_exception(error)

        async def aclose() -> None:
            if not done.done():
                done.set_result(None)

        source = aioreactive.from_async_iterable(numbers(count))
        observer = aioreactive.AsyncAnonymousObserver(asend, athrow, aclose)
        subscription = await piped(source, *steps).subscribe_async(observer)
        await done
        await subscription.dispose_async()
        return count

    return {
        "plain loop": loop,
        "ours": ours,
        "reactivex (pushed, no pull)": stock,
        "aiostream": lambda: aiostreams(map_(_add_one), pipe.filter(_is_kept)),
        "aioreactive": lambda: aioreactives(
            aioreactive.map(_add_one), aioreactive.filter(_is_kept), aioreactive.scan(add, 0)
        ),
        "plain loop, async steps": loop_async,
        "ours, async steps": ours_async,
        "aiostream, async steps": lambda: aiostreams(
            map_(_add_one_async, task_limit=1), pipe.filter(_is_kept_async)
        ),
        "aioreactive, async steps": lambda: aioreactives(
            aioreactive.map_async(_add_one_async),
            aioreactive.filter_async(_is_kept_async),
            aioreactive.scan(add, 0),
        ),
    }
