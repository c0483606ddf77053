"""How long a piece of code blocks its event loop at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from time import perf_counter
from typing import Any, Final, TypeVar

from rx_backend.testing.virtual_time import VirtualTimeLoop

__all__ = ("MAY_BLOCK_S", "longest_block")

T = TypeVar("T")

MAY_BLOCK_S: Final = 0.1
_BEAT_S: Final = 0.01


async def longest_block(running: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """
    Await *running*, and measure how long the event loop was blocked at a time, in real seconds.

    In virtual time the loop tells. On a real clock it is how much later than due a timer fires.

    Returns:
        What *running* returned, and the longest time.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        loop.longest_turn_s = 0.0
        return await running, loop.longest_turn_s
    longest_s = 0.0

    async def beat() -> None:
        nonlocal longest_s
        while True:
            begun = perf_counter()
            try:
                await asyncio.sleep(_BEAT_S)
            finally:
                longest_s = max(longest_s, perf_counter() - begun - _BEAT_S)

    beating = asyncio.create_task(beat(), name="conformance beat")
    await asyncio.sleep(0)
    try:
        result = await running
    finally:
        beating.cancel()
        await asyncio.wait([beating])
    return result, longest_s
