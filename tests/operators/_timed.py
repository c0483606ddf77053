"""A stream that is consumed at a pace of its own and dropped at a time, and what is seen of it when."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from operators.authoring import FusedRun
from tests.operators._help import LONG_S, busy, now

__all__ = ("Event", "consume")

Event = tuple[float, str]


async def consume(
    stream: FusedRun[Any],
    pauses: Sequence[float],
    drop_s: float,
    name: Callable[[Any], str],
    into: list[Event],
) -> None:
    """
    Note items, failure and end with their times; the stream leaves nothing on the loop behind the drop.

    Args:
        stream: What to consume.
        pauses: How long the consumer is away after each item, in turns.
        drop_s: When it is cancelled.
        name: Names an item, or a failure.
        into: Where to note.
    """

    async def take() -> None:
        away_s = itertools.cycle(pauses)
        try:
            async for item in stream:
                into.append((now(), name(item)))
                await asyncio.sleep(next(away_s))
        except Exception as error:
            into.append((now(), name(error)))
        else:
            into.append((now(), "end"))

    others = busy()
    consumer = asyncio.create_task(take())
    await asyncio.sleep(drop_s)
    consumer.cancel()
    await asyncio.wait([consumer])
    await stream.aclose()
    assert set(busy()) <= set(others)
    await asyncio.sleep(LONG_S)
