"""Consumers whose pipelines have more operators, each read to its end or left on the way."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import reactivex
from reactivex import operators as ops

import operators
from rx_backend import Annotated, LLMEngineOutput, Pipeline, standard_pipeline
from tests.matrix.kinds import asking
from tests.matrix.request import Request


def _in_front(*more: Any) -> Pipeline:
    """Put operators where the engine's chunks come in, and errors are typed behind them."""
    return standard_pipeline.insert_before("validate_chunks", *more)


async def _read_or_leave(request: Request, stream: Any, *, is_slow: bool = False) -> None:
    """Read to the end, or leave, or be cancelled."""
    choice = request.rng.randrange(6)
    if choice < 2:
        await request.read(stream, is_slow=is_slow)
        return
    if choice == 2:
        await request.some(stream)
        request.drop()
        await stream.aclose()
        return
    if choice == 3:
        await request.some(stream)
        request.drop()
        return
    if choice == 4:
        await request.some(stream)
        cycle: list[Any] = [stream]
        cycle.append(cycle)
        # Nobody knows before the collector has come by.
        request.record.is_dropped = request.record.is_lost = True
        return
    task = asyncio.create_task(request.read(stream, is_slow=is_slow))
    is_known = request.kind.holds_task or request.kind.knows_task
    kept = stream if is_slow and is_known else None
    del stream
    # The cancellation may come between two pulls.
    request.record.is_lost = True
    await request.pause()
    if request.rng.random() < 0.3:
        request.signal()
    await request.cancel_in_pull(task)
    if kept is not None:
        await kept.aclose()


_PING: Annotated[Any] = Annotated(comment=["ping"])


async def _later(item: Any) -> Any:
    await asyncio.sleep(0.0003)
    return item


def _with(name: str, *more: Any, is_slow: bool = False) -> None:
    """Register a consumer with operators at the end of its pipeline."""

    async def consume(request: Request) -> None:
        await _read_or_leave(request, await request.open(*more), is_slow=is_slow)

    asking(name=f"with_{name}")(consume)


_with("heartbeat", operators.heartbeat(0.0007, _PING))
_with("coalesce", operators.coalesce(), is_slow=True)
_with("delay", ops.delay(0.0005))
_with("buffers", ops.buffer_with_time(0.0005), is_slow=True)
_with("rx", ops.map(lambda item: item), ops.filter(bool))
_with("map_async", operators.map_async(_later))


@asking(is_exact=False)
async def with_deadlines(request: Request) -> None:
    """Have deadlines that pass."""
    deadlines = operators.deadlines(first_token_s=0.001, idle_s=0.001, total_s=0.003)
    await _read_or_leave(request, await request.open(pipeline=_in_front(deadlines)))


@asking(is_exact=False)
async def with_two_deadlines(request: Request) -> None:
    """Have two deadlines of which the second passes in the clean-up for the first."""
    first = operators.deadlines(total_s=0.001)
    second = operators.deadlines(total_s=0.0015)
    await _read_or_leave(request, await request.open(pipeline=_in_front(first, second)))


@asking()
async def with_interval(request: Request) -> None:
    """Have an endless ``reactivex`` timer merged into its pipeline, up to the terminal."""
    pings = reactivex.interval(0.0005).pipe(ops.map(lambda _: _PING))
    ends = itertools.count(1)

    def goes_on(item: Any) -> bool:
        is_end = item.data is not None and item.data.finish_reason is not None
        return item.error is None and not (is_end and next(ends) >= request.kind.answers)

    stream = await request.open(ops.merge(pings), ops.take_while(goes_on, inclusive=True))
    await _read_or_leave(request, stream, is_slow=True)


@asking()
async def with_tap_async(request: Request) -> None:
    """Have an observer that is told of every item, quickly or slowly."""
    seconds = request.rng.choice([None, 0, 0.0005])
    counts = operators.TapCounts()
    seen: list[object] = []

    async def observe(item: object) -> None:
        seen.append(item)
        if seconds is not None:
            await asyncio.sleep(seconds)

    stream = await request.open(operators.tap_async(observe, counts=counts))
    got: list[object] = []
    async for item in stream:
        got.append(item)
        request.note(item)
    request.ended()
    for _ in range(60):
        if len(seen) >= len(got):
            break
        await asyncio.sleep(0.001)
    if len(seen) != len(got):
        request.record.blame(f"tap_async: {len(seen)} of {len(got)} items were observed")


@asking(is_exact=False)
async def with_drain(request: Request) -> None:
    """Let a request that is dropped early continue to its first token."""
    async with operators.Drains(timeout_s=0.003, grace_s=0.002) as drains:
        context = request.context

        drain = operators.drain_until_first_token(
            context.stop_generating,
            drains=drains,
            notified=context.first_token(),
            label=context.id,
        )

        # The operator itself signals the context.
        request.record.is_signalled = request.record.is_signalled_live = True
        await _read_or_leave(
            request,
            await request.open(pipeline=standard_pipeline.insert_after("deferred_abort", drain)),
        )


@asking(is_exact=False)
async def with_enforcement(request: Request) -> None:
    """Have the engine cut off after a stop, by two operators at once."""
    context = request.context
    enforce = operators.enforce_cancellation(
        0.001,
        LLMEngineOutput.cancelled,
        stop=context.stopped(),
        kill=context.killed(),
    )
    stream = await request.open(pipeline=_in_front(enforce, operators.deadlines(total_s=0.003)))
    await request.some(stream)
    request.signal(kill=request.rng.random() < 0.5)
    await _read_or_leave(request, stream)
