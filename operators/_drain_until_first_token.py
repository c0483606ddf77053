"""Let a stream that is dropped early go on to its first token, and abort it then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from reactivex import Observable

from operators._core.fusion import FusedRun
from operators._core.item_types import same_type
from operators._core.mailbox import Mailbox
from operators._core.operator import pulling
from operators._core.pump import Pump
from operators._core.scope import StreamScope
from operators._raw_chunk import has_content, is_terminal
from operators.drains import Drain, Drains

__all__ = ("drain_until_first_token",)


def _check(abort: object = None, *, drains: object, **_: object) -> None:
    if not isinstance(drains, Drains):
        raise TypeError(f"drain_until_first_token: drains: expected a Drains, got {drains!r}")


@same_type
@pulling(check=_check)
def drain_until_first_token(
    source: FusedRun[Any],
    abort: Callable[[], object] | None = None,
    *,
    drains: Drains,
    notified: Observable[Any] | None = None,
    label: str | None = None,
    scope: StreamScope | None = None,
) -> AsyncIterator[Any]:
    """
    Let a stream that is dropped before its first token go on to it, then abort and close it.

    For a ``decode`` worker: a prefill peer holds the request's KV blocks until their transfer is
    through, and the first token is the sign that it is. A consumer that goes away earlier must
    neither stop the transfer nor leave the engine running. Chunks pass through unchanged. ``!`` in
    the result is the drop; ``h`` has no tokens::

        source  -h---a-b-|
        result  -h-!
        abort   -----!

    The engine goes on in a task that *drains* owns, until its first token, its end, or the time
    limit. Then *abort* is called, the engine has a moment to end by itself, and is closed. It is
    not called when the engine ended by itself before, nor for a stream that is dropped after its
    first token, which is closed at once as without this operator. A stream that was never pulled is
    taken for one that was: the peer waits for it too.

    Operators in front see the chunks that come after the drop, those behind see the drop. In the
    standard pipeline it stands right behind ``deferred_abort``, which turns its stop into the one
    ``engine.abort``; the request's span says ``Dropped``. Outside of decode mode it does nothing::

        drains = Drains()  # one for the worker
        drain = drain_until_first_token(drains=drains)
        EngineAdapter(engine, pipeline=standard_pipeline.insert_after("deferred_abort", drain))

    Up to the first token the engine is pulled by a task of the stream's own, and only when the
    consumer pulls (row S4); after it by the consumer's task, which costs a few calls per chunk. So
    an engine should not hold a scope of its task (``asyncio.timeout``, a cancel scope of anyio) open
    across the ``yield`` of its first token. Context variables stay the same.

    Args:
        abort: Asks the engine to stop; called at most once. It should only start the work. In a
            pipeline, by default, it stops the request.
        drains: Owns and bounds what goes on.
        notified: Emits when the first token is known to exist before a chunk shows it; a level that
            replays will do. By default what the scope says.
        label: Names the stream in the log, where a drain that is refused or late is told of; by
            default the request's id.
        scope: The scope of the stream; filled in by a pipeline.

    Raises:
        TypeError: *abort* can't be called, or *drains* is something else; or, when the stream starts,
            there is neither an *abort* nor a scope.

    Errors: source errors pass unchanged; after the drop they end the drain quietly. What *abort*
        raises is logged.
    On dispose: see above.

    >>> import asyncio
    >>> from operators import fuse
    >>> from rx_backend import LLMEngineOutput
    >>> async def engine():
    ...     try:
    ...         await asyncio.sleep(0.001)  # the transfer
    ...         yield LLMEngineOutput.token(7)
    ...         await asyncio.sleep(60)
    ...     finally:
    ...         print("closed")
    >>> async def main():
    ...     async with Drains(grace_s=0) as drains:
    ...         drain = drain_until_first_token(lambda: print("abort"), drains=drains)
    ...         stream = fuse(engine(), [drain])
    ...         pull = asyncio.ensure_future(anext(stream))
    ...         await asyncio.sleep(0)
    ...         pull.cancel()
    ...         await asyncio.wait([pull])
    ...         print("dropped")
    >>> asyncio.run(main())
    dropped
    abort
    closed
    """
    if scope is not None:
        if scope.first_token is None:
            # Nobody waits for a transfer.
            return source
        abort = abort or scope.stop
        notified = notified or scope.first_token
        label = label or scope.id
    if abort is None:
        raise TypeError("drain_until_first_token: abort: expected a function, or a scope")
    return _UntilFirstToken(source, abort, drains, notified, label or "without a label")


class _UntilFirstToken(AsyncIterator[Any]):
    """
    One stream: pulled by a task of its own up to its first token, and directly from there on.

    It is no generator, because one that was never pulled would not learn of the drop.
    """

    __slots__ = (
        "_abort",
        "_drain",
        "_drains",
        "_inbox",
        "_is_closed",
        "_is_settled",
        "_label",
        "_notified",
        "_pump",
        "_source",
    )

    def __init__(
        self,
        source: FusedRun[Any],
        abort: Callable[[], object],
        drains: Drains,
        notified: Observable[Any] | None,
        label: str,
    ) -> None:
        source.is_adopted = True
        self._source = source
        self._abort = abort
        self._drains = drains
        self._notified = notified
        self._label = label
        self._inbox: Mailbox[Any] = Mailbox()
        self._pump = Pump(source, self._take, self._end, source.own_context)
        self._drain: Drain | None = None
        self._is_closed = False
        # Whether the first token has come, or the end.
        self._is_settled = False
        drains.hold(self)

    async def __anext__(self) -> Any:
        if self._is_settled and not self._inbox and not self._inbox.is_closed:
            return await anext(self._source)
        self._pump.demand()
        return await self._inbox.get()

    def _take(self, item: Any) -> Awaitable[None] | None:
        """Take an item in the task: for the consumer, or after the drop for nobody."""
        if self._drain is not None:
            self._drain.look_at(item)
            self._pump.demand()
            # An engine that never waits must not keep all others from their turn.
            return asyncio.sleep(0)
        if has_content(item) or is_terminal(item):
            self._settle()
            if not self._source.ended:
                self._pump.stop()
        self._inbox.put(item)
        return None

    def _settle(self) -> None:
        self._is_settled = True
        self._drains.release(self)

    def _end(self, failure: BaseException | None) -> None:
        self._settle()
        self._inbox.end(failure)
        if self._drain is not None:
            self._drain.end(failure)

    def close(self) -> None:
        """End the stream: a dropped one goes on where that is of use."""
        if self._drain is not None or self._is_closed:
            return
        self._is_closed = True
        self._drains.release(self)
        is_running = self._source.event_loop.is_running()
        if not self._is_settled and is_running and self._drains.has_room(self._label):
            self._drain = Drain(
                self._drains, self._source, self._abort, self._notified, self._label
            )
            self._pump.demand()
            if self._pump.task is not None:
                self._drains.own(self._pump.task, self._drain, self)
        elif self._is_settled:
            self._source.close()
        else:
            self._pump.close()

    async def aclose(self) -> None:
        """End the stream, and wait until it is released unless it goes on."""
        self.close()
        if self._drain is None:
            await self._pump.wait_closed()
