"""Answers for the tests of resumable streams, and what a client makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from rx_backend import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.protocols import Annotated, LLMEngineOutput, PreprocessedRequest
from rx_backend.resumable import ResumableReader
from tests.engines.scripted import ScriptedEngine, Step, stop

__all__ = (
    "REQUEST",
    "Item",
    "adapter_of",
    "collect",
    "leave_after",
    "text_of",
    "told",
    "turns",
    "until_stopped",
    "words",
)

Item = Annotated[LLMEngineOutput]
REQUEST = PreprocessedRequest(token_ids=[1, 2])


def words(count: int, every_s: float | None = None, first: int = 0) -> list[Step]:
    """Return the steps of so many chunks of a token and its text, with a pause before each."""
    steps: list[Step] = []
    for n in range(first, first + count):
        if every_s is not None:
            steps.append(every_s)
        steps.append(LLMEngineOutput([n], text=f"{n} "))
    return steps


async def until_stopped(context: RequestContext) -> None:
    """Wait for the stop; a step."""
    await context.stopped()


def adapter_of(*script: Step, **options: Any) -> tuple[EngineAdapter, ScriptedEngine]:
    """Return an adapter for an engine that plays *script*, by default 200 words and a terminal."""
    engine = ScriptedEngine(*(script or (*words(200), stop())))
    return EngineAdapter(engine, **options), engine


async def collect(reader: AsyncIterator[Item], most: int | None = None) -> list[Item]:
    """Return the items up to the end, or the first *most*."""
    items: list[Item] = []
    while most is None or len(items) < most:
        item = await anext(reader, None)
        if item is None:
            break
        items.append(item)
    return items


def told(items: list[Item]) -> list[int]:
    """Return all token ids, in order."""
    return [token for item in items if item.data for token in item.data.token_ids]


def text_of(items: list[Item]) -> str:
    """Return all text, in order."""
    return "".join(item.data.text or "" for item in items if item.data)


async def leave_after(reader: ResumableReader, count: int) -> list[Item]:
    """Read *count* items at least and leave."""
    async with reader:
        return await collect(reader, count)


async def turns(count: int = 20) -> None:
    """Let all others have their turn."""
    for _ in range(count):
        await asyncio.sleep(0)
