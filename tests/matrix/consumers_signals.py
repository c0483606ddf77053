"""Consumers that stop and kill their requests (rows A2-A6)."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from tests.matrix.call import POOL
from tests.matrix.kinds import asking, consumer
from tests.matrix.request import Request


@consumer()
async def stops_and_reads(request: Request, stream: Any) -> None:
    """Stop at any moment, and read on."""
    await request.some(stream)
    request.signal()
    await request.read(stream)


@consumer()
async def kills_and_reads(request: Request, stream: Any) -> None:
    """Kill at any moment, more than once, and read on."""
    await request.some(stream)
    request.signal(kill=True)
    request.signal()
    await request.read(stream)


@consumer()
async def stops_while_pulling(request: Request, stream: Any) -> None:
    """Stop while it waits in a pull, from a callback of the loop."""
    timer = request.loop.call_later(request.rng.uniform(0, 0.002), request.signal)
    try:
        await request.read(stream)
    finally:
        timer.cancel()


@consumer()
async def stops_in_signal_handler(request: Request, stream: Any) -> None:
    """Stop in a handler of ``signal.signal``, and read on."""
    await request.some(stream)

    def handle(_number: int, _frame: object) -> None:
        request.signal()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    await request.read(stream)


@consumer()
async def stops_and_cancelled(request: Request, stream: Any) -> None:
    """Stop, and be cancelled in its first pull."""
    request.signal()
    task = asyncio.create_task(request.read(stream))
    del stream
    await request.pause()
    await request.cancel_in_pull(task)


@asking()
async def stops_first(request: Request) -> None:
    """Have stopped before it asks."""
    request.signal()
    await request.read(await request.open())


@consumer()
async def stops_from_thread(request: Request, stream: Any) -> None:
    """Stop from another thread, and read on."""
    request.record.is_signalled = request.record.is_signalled_live = True
    POOL.submit(request.context.stop_generating)
    await request.read(stream, is_slow=True)


@consumer()
async def kills_from_thread_and_leaves(request: Request, stream: Any) -> None:
    """Kill from another thread while it leaves."""
    await request.some(stream)
    request.record.is_signalled = request.record.is_signalled_live = True
    POOL.submit(request.context.kill)
    await request.pause()
    request.drop()
    await stream.aclose()


@consumer()
async def stops_and_leaves(request: Request, stream: Any) -> None:
    """Stop and close, or lose the stream, in one iteration."""
    await request.some(stream)
    request.signal()
    request.drop()
    if request.rng.random() < 0.5:
        stream.close()


@consumer()
async def leaves_and_stops_later(request: Request, stream: Any) -> None:
    """Close, and stop while the engine unwinds, which does nothing (rows A5, A6)."""
    await request.some(stream)
    pull = request.pull(stream)
    await request.pause()
    request.drop()
    stream.close()
    for _ in range(4):
        await asyncio.sleep(0)
    request.signal()
    await request.settle(pull)


@consumer()
async def cancelled_and_stops_later(request: Request, stream: Any) -> None:
    """Be cancelled in a pull, and stop while the engine unwinds."""
    task = asyncio.create_task(request.read(stream))
    del stream
    await asyncio.sleep(0)
    await request.pause()
    request.cancel(task)
    for _ in range(4):
        await asyncio.sleep(0)
    request.signal()
    await request.settle(task)


@consumer()
async def notifies_and_leaves(request: Request, stream: Any) -> None:
    """Stop, and have the first token told in the iteration of the drop (row A5)."""
    request.signal()
    if request.rng.random() < 0.5:
        request.notify()
        request.drop()
        stream.close()
    else:
        request.drop()
        stream.close()
        request.notify()
    if request.record.mode == "decode" and not request.record.is_over:
        request.record.must_abort = True


@consumer()
async def notifies_in_thread_and_leaves(request: Request, stream: Any) -> None:
    """Do the same from another thread while the loop is held."""
    request.signal()
    request.drop()
    stream.close()
    POOL.submit(request.notify).result()
    if request.record.mode == "decode" and not request.record.is_over:
        request.record.must_abort = True


@consumer()
async def stops_as_subscriber(request: Request, stream: Any) -> None:
    """Stop from within its own observer."""
    done: asyncio.Future[None] = request.loop.create_future()

    def on_next(item: object) -> None:
        request.note(item)
        request.signal()

    def finish(error: Exception | None = None) -> None:
        if not done.done():
            done.set_result(None)

    subscription = stream.subscribe(on_next, finish, finish)
    try:
        await done
    finally:
        request.drop()
        subscription.dispose()
