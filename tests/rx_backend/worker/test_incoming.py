"""The gate that every incoming request passes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress

import pytest

from rx_backend.errors import EngineShutdown
from rx_backend.worker import RequestGate
from tests.engines import real_time


class Context:
    """A request's context, as far as the gate uses it."""

    def __init__(self) -> None:
        self.is_stopped = False

    def stop_generating(self) -> None:
        self.is_stopped = True


async def counting(gate: RequestGate, context: Context) -> AsyncGenerator[int]:
    with gate.admit(context):
        yield 1
        yield 2


def gate() -> RequestGate:
    return RequestGate(lambda: EngineShutdown("no more"))


def test_a_stream_dropped_in_another_thread_is_uncounted() -> None:
    """The runtime's threads do so; a waiter on an idle loop is woken."""

    async def run() -> None:
        one = gate()
        stream = counting(one, Context())
        assert await anext(stream) == 1
        assert len(one) == 1

        def drop() -> None:
            with suppress(StopIteration):
                stream.aclose().send(None)

        dropping = threading.Thread(target=drop)
        waiting = asyncio.create_task(one.idle())
        await asyncio.sleep(0)
        dropping.start()
        await asyncio.wait_for(waiting, 5)
        dropping.join()
        assert len(one) == 0

    # In debug mode a loop refuses calls from other threads that are not thread-safe.
    asyncio.run(run(), debug=True)


@real_time
async def test_a_request_that_comes_as_the_last_one_ends_is_waited_for() -> None:
    """That none was in flight for a moment is no reason to go on."""
    one = gate()
    with one.admit(Context()):
        waiting = asyncio.create_task(one.idle())
    with one.admit(Context()):
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


@real_time
async def test_a_closed_gate_refuses_only_new_requests() -> None:
    """Those in flight continue; each can be stopped, and one that has ended is left alone."""
    one, contexts = gate(), [Context() for _ in range(3)]
    streams = [counting(one, context) for context in contexts]
    for stream in streams[:2]:
        await anext(stream)
    one.close()
    with pytest.raises(EngineShutdown):
        await anext(streams[2])
    assert [item async for item in streams[0]] == [2]
    one.stop_all()
    assert [context.is_stopped for context in contexts] == [False, True, False]
    await streams[1].aclose()
    await one.idle()
