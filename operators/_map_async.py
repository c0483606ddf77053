"""Asynchronous steps: a coroutine function for each item."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from operators._core.fusion import FusedRun
from operators._core.operator import operator

__all__ = ("map_async",)

A = TypeVar("A")
B = TypeVar("B")


@operator
async def map_async(
    source: FusedRun[A], function: Callable[[A], Awaitable[B]]
) -> AsyncGenerator[B]:
    """
    Await *function* for each item, and hand out the results in order, one item at a time.

    While it is awaited the engine is not pulled (row S4). Here *function* takes one frame::

        source  -a---b---|
        result  --A---B--|

    Args:
        function: A coroutine function, or any function that returns an awaitable. It may also return
            ``emit(...)`` for no items or several, or ``complete_with(...)`` to end the stream.

    Raises:
        TypeError: *function* is not callable.

    Phase: anywhere.
    Errors: source errors pass unchanged; what *function* raises fails the stream, which closes the
        engine.
    On dispose: the pending call is cancelled.

    >>> import asyncio
    >>> from operators import fuse
    >>> async def engine():
    ...     yield "a"
    ...     yield "b"
    >>> async def shout(text):
    ...     await asyncio.sleep(0)
    ...     return text.upper()
    >>> async def main():
    ...     return [item async for item in fuse(engine(), [map_async(shout)])]
    >>> asyncio.run(main())
    ['A', 'B']
    """
    async for item in source:
        yield await function(item)
