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
    Hand out *item* whenever the consumer has waited for *interval_s* and nothing came.

    The engine is not disturbed: its step continues, and its items come out next, in order. Nothing
    comes in after the last item. With an interval of 2 seconds, which are frames::

        source  -a-----b-c-|
        result  -a-p-p-b-c-|

    The engine is pulled only when the consumer pulls, once for each of its items (row S4). While
    the consumer is away nothing piles up: it gets a heartbeat only for waiting itself.

    It belongs at the end of the pipeline, where items are annotated, when a server of your own
    writes the stream::

        adapter.with_operators(heartbeat(15.0, Annotated(comment=["ping"])))

    Behind Dynamo's frontend (1.6) it keeps no client's connection alive: a comment that comes alone
    is dropped, one with the name of an event makes OpenAI's clients fail, and of chunks without
    content the first is sent at most. Let the frontend send keep-alive lines by itself, with
    ``DYN_HTTP_SSE_KEEP_ALIVE_INTERVAL_MS=15000`` in its environment.

    The engine's steps run in one task of the stream's own, because a step that is under way can't
    change its task. So each chunk costs two switches of tasks: this is for streams that a client is
    connected to, not for those between workers.

    Args:
        interval_s: How long the consumer waits before each heartbeat, in seconds.
        item: What to hand out, or a function that makes it.

    Raises:
        ValueError: *interval_s* is no positive number; when the operator is made.

    Phase: anywhere; last of the items, as it adds one of its own.
    Errors: source errors pass unchanged; what *item* raises fails the stream.
    On dispose: a step that is under way is cancelled, and the engine closed.

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
