"""What every incoming request passes: the gate, health checks, the length of the prompt."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from rx_backend.errors import EngineShutdown
from rx_backend.worker import RequestGate
from rx_backend.worker.incoming import PROBE_KEY, with_checks


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


def test_a_stream_that_another_thread_drops_is_one_less() -> None:
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


def test_a_closed_gate_refuses_new_requests_only() -> None:
    """Those in flight continue; each can be stopped, and one that has ended is left alone."""

    async def run() -> None:
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

    asyncio.run(run())


class Sender:
    """A response sender of the runtime, for handlers that push."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, item: Any) -> None:
        self.sent.append(item)

    def close(self) -> None:
        self.sent.append("closed")


ITEMS = [{"token_ids": [1]}, {"event": "error"}]


async def pulled(request: Any, context: Any) -> AsyncIterator[Any]:
    for item in ITEMS:
        yield item


async def pushed(request: Any, context: Any, response_sender: Any = None) -> AsyncIterator[Any]:
    for item in ITEMS:
        if response_sender is None:
            yield item
        else:
            response_sender.send(item)


async def collect(handler: Any, request: Any, **sender: Any) -> list[Any]:
    checked = with_checks(handler, lambda: 3)
    assert inspect.signature(checked) == inspect.signature(handler)
    return [item async for item in checked(request, None, **sender)]


@pytest.mark.rows("H2")
def test_a_health_check_shows_its_error_first() -> None:
    """The runtime looks at the first item; other requests keep their order, pulled or pushed."""
    probe = {PROBE_KEY: True, "token_ids": [1] * 9}
    assert asyncio.run(collect(pulled, probe)) == [ITEMS[1]]
    assert asyncio.run(collect(pulled, {})) == ITEMS
    sender = Sender()
    assert asyncio.run(collect(pushed, probe, response_sender=sender)) == []
    assert asyncio.run(collect(pushed, {}, response_sender=sender)) == []
    assert sender.sent == [ITEMS[1], "closed", *ITEMS]


@pytest.mark.needs("dynamo")
def test_a_prompt_longer_than_the_context_is_refused() -> None:
    """A prompt that just fits is served, and so is whatever has no prompt."""
    for request in ({"token_ids": [1] * 3}, {"token_ids": None}, "no request"):
        assert asyncio.run(collect(pulled, request)) == ITEMS
    with pytest.raises(Exception, match="the prompt has 4 tokens") as raised:
        asyncio.run(collect(pulled, {"token_ids": [1] * 4}))
    assert type(raised.value).__name__ == "InvalidArgument"
