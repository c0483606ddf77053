"""Consumers that leave early, in every way there is (row S7)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tests.matrix.kinds import asking, consumer
from tests.matrix.request import Request


@asking()
async def leaves_async_with(request: Request) -> None:
    """Leave ``async with`` after some items."""
    async with await request.open() as stream:
        await request.some(stream)
        request.drop()


async def _nothing(request: Request, stream: Any) -> None: ...


async def _break(request: Request, stream: Any) -> None:
    async for item in stream:
        request.note(item)
        break
    await request.pause()


def _leaving(name: str, read: Callable[[Request, Any], Awaitable[None]], how: str = "") -> None:
    """Register a consumer that reads, and then closes the stream, waiting or not, or loses it."""

    async def leave(request: Request, stream: Any) -> None:
        await read(request, stream)
        request.drop()
        if how:
            closed = getattr(stream, how)()
            if closed is not None:
                await closed

    consumer(name=name)(leave)


_leaving("breaks", _break)
_leaving("breaks_and_acloses", _break, "aclose")
_leaving("breaks_and_closes", _break, "close")
_leaving("loses", Request.some)
_leaving("never_pulls", _nothing)
_leaving("never_pulls_and_acloses", _nothing, "aclose")


@consumer()
async def closes_twice(request: Request, stream: Any) -> None:
    """Close again and again."""
    await request.some(stream)
    request.drop()
    stream.close()
    stream.close()
    await asyncio.gather(stream.aclose(), stream.aclose())
    stream.close()
    if await anext(stream, None) is not None:
        request.record.blame("S7: an item after the drop")


async def _beside_pull(request: Request, stream: Any, *, is_aclose: bool) -> None:
    await request.some(stream)
    pull = request.pull(stream)
    await request.pause()
    is_waiting = not pull.done()
    request.drop()
    if is_aclose:
        await stream.aclose()
    else:
        stream.close()
    await asyncio.wait([pull])
    await request.settle(pull)
    if pull.cancelled():
        if is_waiting and not request.kind.cancels_consumer:
            request.record.blame("S7: a closed stream cancelled its consumer")
    elif is_waiting and pull.exception() is None and pull.result() is not None:
        request.record.blame("S7: a pull under way got an item after the drop")


@asking()
async def acloses_beside_pull(request: Request) -> None:
    """Close while another task waits in a pull."""
    await _beside_pull(request, await request.open(), is_aclose=True)


@asking()
async def closes_beside_pull(request: Request) -> None:
    """Close without waiting while another task waits in a pull."""
    await _beside_pull(request, await request.open(), is_aclose=False)


@consumer()
async def cancelled_in_pull(request: Request, stream: Any) -> None:
    """Have its task cancelled while it reads."""
    task = asyncio.create_task(request.read(stream))
    del stream
    await request.pause()
    await request.cancel_in_pull(task)


@consumer()
async def cancelled_between_pulls(request: Request, stream: Any) -> None:
    """Have its task cancelled while it does something else."""

    async def consume() -> None:
        await request.some(stream)
        await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.002)
    await request.cancel_in_pull(task)
    if request.kind.holds_task:
        await stream.aclose()


@consumer()
async def cancelled_twice(request: Request, stream: Any) -> None:
    """Have its task cancelled, and again a little later."""
    task = asyncio.create_task(request.read(stream))
    del stream
    await request.pause()
    request.cancel(task)
    await request.pause()
    await request.cancel_in_pull(task)


@asking()
async def cancelled_in_setup(request: Request) -> None:
    """Have its task cancelled in the set-up, or soon after that."""
    task = asyncio.create_task(_open_and_read(request))
    for _ in range(request.rng.randrange(4)):
        await asyncio.sleep(0)
    request.cancel(task)
    await request.settle(task)


async def _open_and_read(request: Request) -> None:
    await request.read(await request.open())


@consumer()
async def times_out(request: Request, stream: Any) -> None:
    """Read within ``asyncio.timeout``."""
    request.record.task_cancels += 1
    try:
        async with asyncio.timeout(0.002) as scope:
            await request.read(stream)
    except TimeoutError:
        request.drop()
    else:
        if scope.expired() and not request.kind.hides_cancellation:
            request.record.blame("S6: the consumer's time-out is lost")


@consumer()
async def waits_for_each(request: Request, stream: Any) -> None:
    """Read by ``asyncio.wait_for``, until one takes too long."""
    request.record.task_cancels += 1
    while True:
        try:
            item = await asyncio.wait_for(anext(stream, None), 0.001)
        except TimeoutError:
            request.drop()
            break
        if item is None:
            return
        request.note(item)
    if await anext(stream, None) is not None:
        request.record.blame("S7: an item after the drop")


@consumer()
async def pulls_in_tasks_and_loses(request: Request, stream: Any) -> None:
    """Pull in a task for each item, as the runtime does, then stop and lose the stream."""
    for _ in range(request.rng.randrange(1, 4)):
        pull = request.pull(stream)
        await asyncio.wait([pull], timeout=0.005)
        if not pull.done():
            await request.cancel_in_pull(pull)
            return
        await request.settle(pull)
    request.signal()
    await asyncio.sleep(0)
    request.drop()


async def _close_pull(request: Request, stream: Any) -> None:
    await request.some(stream)
    if request.kind.has_scope_in_pull:
        # A scope of anyio can only be left in its own task.
        return
    pull = stream.__anext__()
    steps = pull.__await__() if not hasattr(pull, "send") else pull
    try:
        steps.send(None)
    except StopIteration as got:
        request.note(got.value)
    except StopAsyncIteration:
        pass
    else:
        request.drop()
        steps.close()


@consumer()
async def closes_pull_and_acloses(request: Request, stream: Any) -> None:
    """Close the coroutine of a pull that waits, then the stream."""
    await _close_pull(request, stream)
    await request.pause()
    request.drop()
    await stream.aclose()


@asking()
async def closes_pull_and_loses(request: Request) -> None:
    """Close the coroutine of a pull that waits, and lose the stream."""
    await _close_pull(request, await request.open())
    request.drop()


@consumer()
async def loses_in_cycle(request: Request, stream: Any) -> None:
    """Lose the stream in a cycle of references."""
    await request.some(stream)
    cycle: list[Any] = [stream]
    cycle.append(cycle)
    request.drop()


@consumer()
async def loses_while_pulling(request: Request, stream: Any) -> None:
    """Lose the stream with a pull that is cancelled in the same iteration."""
    pull = request.pull(stream)
    await request.pause()
    if pull.done():
        request.drop()
        await request.settle(pull)
    else:
        request.cancel(pull)
    del stream, pull


@consumer()
async def loses_with_listener(request: Request, stream: Any) -> None:
    """Have its context's listener close the stream, and lose both."""
    if not request.kind.holds_context:
        request.context.stopped().listen(stream.close)
    await request.some(stream)
    request.drop()


@asking()
async def loses_in_thread(request: Request) -> None:
    """Lose the last reference to the stream in another thread."""
    holder = [await request.open()]
    await request.some(holder[0])
    await request.drop_in_thread(holder.clear)
