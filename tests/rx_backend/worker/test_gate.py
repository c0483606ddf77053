"""What stands between the runtime and the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress

import pytest

from rx_backend.errors import EngineShutdown
from rx_backend.worker import RequestGate


class Context:
    """A request's context, as far as the gate knows it."""

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


def test_a_stream_that_another_thread_drops_is_one_less() -> None:
    """The runtime's threads do so; who waits for the last request on an idle loop hears of it."""

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

    # In debug mode a loop refuses what other threads must not do.
    asyncio.run(run(), debug=True)


def test_a_closed_gate_refuses_and_lets_those_inside_go_on() -> None:
    """A request that is inside gets all it was to get."""

    async def run() -> None:
        one = gate()
        stream = counting(one, Context())
        assert await anext(stream) == 1
        one.close()
        with pytest.raises(EngineShutdown):
            await anext(counting(one, Context()))
        assert [item async for item in stream] == [2]
        await one.idle()

    asyncio.run(run())


def test_all_are_asked_to_end() -> None:
    """Each request inside hears it, and nobody else."""

    async def run() -> None:
        one, contexts = gate(), [Context() for _ in range(3)]
        streams = [counting(one, context) for context in contexts]
        for stream in streams[:2]:
            await anext(stream)
        one.stop_all()
        assert [context.is_stopped for context in contexts] == [True, True, False]
        for stream in streams:
            await stream.aclose()

    asyncio.run(run())
