"""Something to send while the engine is silent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TypeVar, cast

from operators._core.arguments import Seconds
from operators._core.fusion import FusedRun
from operators._core.mailbox import Mailbox
from operators._core.operator import operator
from operators._core.pump import Pump
from operators._lazy_timer import LazyTimer

__all__ = ("heartbeat",)

A = TypeVar("A")
B = TypeVar("B")


@operator
async def heartbeat(
    source: FusedRun[A], interval_s: Seconds, item: B | Callable[[], B]
) -> AsyncGenerator[A | B]:
    """
    Emit *item* each time the consumer has waited *interval_s* without receiving anything.

    The engine is not disturbed: its step continues, and its items follow in order. There is no
    heartbeat after the last item. With an interval of 2 seconds, which are frames::

        source  -a-----b-c-|
        result  -a-p-p-b-c-|

    The engine is pulled only when the consumer pulls, once for each item (row S4). While the
    consumer is busy nothing accumulates: only its own waiting produces heartbeats.

    If your own server writes the stream, put it at the end of the pipeline, where items are
    annotated::

        adapter.with_operators(heartbeat(15.0, Annotated(comment=["ping"])))

    Behind Dynamo's frontend (1.6) it does not keep a client's connection alive: a comment on its
    own is dropped, a comment with an event name makes OpenAI's clients fail, and of chunks without
    content at most the first is sent. Have the frontend send keep-alive comments itself, with
    ``DYN_HTTP_SSE_KEEP_ALIVE_INTERVAL_MS=15000`` in its environment.

    The engine's steps run in the stream's own task, because a step in progress can't move to
    another task. So each chunk costs two task switches: use it for streams to clients, not between
    workers.

    Args:
        interval_s: How long the consumer waits before each heartbeat, in seconds.
        item: What to emit, or a function that makes it.

    Raises:
        ValueError: *interval_s* is not a positive number; when the operator is made.

    Phase: anywhere; last of the items, because it adds its own.
    Errors: source errors pass unchanged; what *item* raises fails the stream.
    On dispose: a pull in progress is cancelled, and the engine is closed.

    >>> import asyncio
    >>> from operators import fuse
    >>> from rx_backend.testing import run_virtual
    >>> async def engine():
    ...     await asyncio.sleep(5)
    ...     yield "token"
    >>> async def main():
    ...     return [item async for item in fuse(engine(), [heartbeat(2.0, "ping")])]
    >>> run_virtual(main())
    ['ping', 'ping', 'token']
    """
    make = cast("Callable[[], B]", item if callable(item) else lambda: item)
    inbox: Mailbox[A] = Mailbox()
    pump = Pump(source, inbox.put, inbox.end)
    timer = LazyTimer(inbox.wake)
    try:
        while True:
            if not inbox and not inbox.is_closed:
                pump.demand()
                timer.set(timer.clock() + interval_s)
                await inbox.changed()
            if inbox:
                yield inbox.take()
            elif inbox.ended:
                return
            elif inbox.is_closed:
                inbox.raise_end()
            else:
                yield make()
    finally:
        timer.cancel()
        pump.close()
