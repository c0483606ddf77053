"""The abort gate closes with the drop: what the engine does while it unwinds opens nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from operators import Pipeline, map_async
from rx_backend.context import RequestContext
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import LLMEngineOutput
from tests.rx_backend._engines import (
    ScriptedEngine,
    Stream,
    adapter_of,
    request,
    settle,
    token,
    virtual,
)
from tests.spans import Spans

Unwind = Callable[[RequestContext], Awaitable[None]]
Leave = Callable[[list[Stream]], Awaitable[None]]

# What an engine may do in its clean-up.


async def notifies(context: RequestContext) -> None:
    context.notify_first_token()


async def notifies_later(context: RequestContext) -> None:
    await asyncio.sleep(0.1)
    context.notify_first_token()


async def notifies_from_a_thread(context: RequestContext) -> None:
    await asyncio.sleep(0.1)
    await asyncio.to_thread(context.notify_first_token)


async def stops(context: RequestContext) -> None:
    context.stop_generating()


async def stops_later(context: RequestContext) -> None:
    await asyncio.sleep(0.1)
    context.stop_generating()
    context.notify_first_token()


async def kills_later(context: RequestContext) -> None:
    await asyncio.sleep(0.1)
    context.kill()
    context.notify_first_token()


UNWINDS: list[Unwind] = [
    notifies,
    notifies_later,
    notifies_from_a_thread,
    stops,
    stops_later,
    kills_later,
]


class Unwinding(ScriptedEngine):
    """Waits for its first token, and does something in its clean-up; may answer with a chunk."""

    def __init__(self, unwind: Unwind, *, answers: bool) -> None:
        super().__init__()
        self._unwind = unwind
        self._answers = answers

    async def _stream(self, context: RequestContext) -> AsyncGenerator[Any]:
        try:
            yield LLMEngineOutput()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if not self._answers:
                    raise
                yield token(1)
        finally:
            await self._unwind(context)
            self.closed += 1


async def by_close_in_a_pull(held: list[Stream]) -> None:
    pull = asyncio.create_task(anext(held[0], None))
    await asyncio.sleep(1)
    held[0].close()
    await pull


async def by_cancelling_a_pull(held: list[Stream]) -> None:
    pull = asyncio.ensure_future(anext(held[0], None))
    await asyncio.sleep(1)
    pull.cancel()
    await asyncio.wait([pull])


async def by_a_time_limit(held: list[Stream]) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            await anext(held[0], None)


async def by_close(held: list[Stream]) -> None:
    held[0].close()


async def by_aclose(held: list[Stream]) -> None:
    await held[0].aclose()


async def by_losing_it(held: list[Stream]) -> None:
    held.clear()


LEAVES: list[Leave] = [
    by_close_in_a_pull,
    by_cancelling_a_pull,
    by_a_time_limit,
    by_close,
    by_aclose,
    by_losing_it,
]


async def itself(item: Any) -> Any:
    return item


PIPELINES = {
    "standard": standard_pipeline,
    "gate behind an async operator": standard_pipeline.insert_before(
        "deferred_abort", map_async(itself)
    ),
    "gate in front of an async operator": standard_pipeline.with_operators(map_async(itself)),
}


@pytest.mark.rows("A5", "A6", "A2")
@pytest.mark.parametrize("mode", ["agg", "prefill", "decode"])
@pytest.mark.parametrize("is_stopped", [False, True], ids=["not-stopped", "stopped"])
@pytest.mark.parametrize("unwind", UNWINDS)
@pytest.mark.parametrize("leave", LEAVES)
@pytest.mark.parametrize("answers", [False, True], ids=["raises", "answers"])
@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
@virtual
async def test_the_engine_s_clean_up_opens_nothing(  # noqa: PLR0917 - a matrix
    mode: str,
    is_stopped: bool,
    unwind: Unwind,
    leave: Leave,
    answers: bool,
    pipeline: Pipeline,
) -> None:
    """A stop before the drop aborts where it may; one from the clean-up, in no mode."""
    context = RequestContext()
    engine = Unwinding(unwind, answers=answers)
    held = [await adapter_of(engine, mode, pipeline=pipeline).generate(request(), context)]
    await anext(held[0])
    if is_stopped:
        context.stop_generating()
        await settle()
    await leave(held)
    held.clear()
    await asyncio.sleep(100)
    assert engine.closed == 1
    expected = 1 if is_stopped and mode != "decode" else 0
    assert len(engine.aborts) == expected


@pytest.mark.rows("A5", "C3")
@pytest.mark.parametrize("is_pulled", [False, True])
@pytest.mark.parametrize("leave", ["close", "cancel", "lose"])
@pytest.mark.parametrize("notice", ["thread", "loop"])
@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
@virtual
async def test_a_notice_in_the_turn_of_the_drop_wins(
    is_pulled: bool, leave: str, notice: str, pipeline: Pipeline
) -> None:
    """Also from another thread, and also where nobody pulls: the transfer is through, so abort."""
    spans, context = Spans(), RequestContext()
    engine = ScriptedEngine(60, token(1))
    adapter = adapter_of(engine, "decode", spans, pipeline=pipeline)
    held = [await adapter.generate(request(), context)]
    pull = asyncio.ensure_future(anext(held[0], None)) if is_pulled else None
    await asyncio.sleep(1)
    context.stop_generating()
    await asyncio.sleep(1)
    assert engine.aborts == []
    if leave == "close":
        held[0].close()
    elif pull is not None:
        pull.cancel()
    held.clear()
    if notice == "thread":
        thread = threading.Thread(target=context.notify_first_token)
        thread.start()
        thread.join()
    else:
        context.notify_first_token()
    await asyncio.sleep(10)
    if pull is not None:
        await asyncio.wait([pull])
    assert engine.aborts == [2]
    events = [event.name for event in spans.one().events]
    assert "abort_made" in events
    assert "abort_suppressed" not in events


@pytest.mark.rows("A5", "P5")
@pytest.mark.parametrize("leave", LEAVES)
@virtual
async def test_a_suppressed_abort_is_on_the_span(leave: Leave) -> None:
    """A drop before the first token leaves a span that says that the abort was not made."""
    spans, context = Spans(), RequestContext()
    engine = ScriptedEngine(LLMEngineOutput(), 60, token(1))
    held = [await adapter_of(engine, "decode", spans).generate(request(), context)]
    await anext(held[0])
    context.stop_generating()
    await settle()
    await leave(held)
    held.clear()
    await asyncio.sleep(10)
    assert engine.aborts == []
    names = [event.name for event in spans.one().events]
    assert names[-1] == "abort_suppressed"
    assert "abort_requested" in names
    assert spans.one().status.description == "stream dropped before terminal"
