"""Drain a stream that is dropped early until its first token, then abort it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from reactivex import Observable, abc

from operators._core.arguments import CHECKED
from operators._core.failures import redacted_exc_info
from operators._core.fusion import FusedRun
from operators._core.mailbox import Mailbox
from operators._core.operator import pulling, same_type
from operators._core.pump import Pump
from operators._core.scope import StreamScope
from operators._core.tasks import current_task
from operators._raw_chunk import has_content, is_terminal
from operators.drains import Drains

__all__ = ("drain_until_first_token",)


@same_type
@pulling()
def drain_until_first_token(
    source: FusedRun[Any],
    abort: Callable[[], object] | None = None,
    *,
    drains: Annotated[Drains, CHECKED],
    notified: Observable[Any] | None = None,
    label: str | None = None,
    scope: StreamScope | None = None,
) -> AsyncIterator[Any]:
    """
    Drain a stream dropped before its first token until that token, then abort and close it.

    For a ``decode`` worker: a prefill peer holds the request's KV blocks until their transfer is
    complete, which the first token shows. A consumer that leaves earlier must neither stop the
    transfer nor leave the engine running. ``!`` in the result is the drop; ``h`` has no tokens::

        source  -h---a-b-|
        result  -h-!
        abort   -----!

    After the drop the engine continues in a task that *drains* owns, until its first token, its
    end, or the time limit. Unless it has ended, *abort* is then called, and the engine is closed
    after a grace period to end by itself. A stream that is dropped after its first token is closed
    at once; one that was never pulled is drained, since the peer waits for it too. Earlier
    operators see the chunks that come after the drop, later ones see the drop.

    In the standard pipeline it comes after ``deferred_abort``, which turns its stop into the one
    ``engine.abort``; the request's span says ``Dropped``. Outside decode mode it does nothing::

        drains = Drains()  # one for the worker
        drain = drain_until_first_token(drains=drains)
        EngineAdapter(engine, pipeline=standard_pipeline.insert_after("deferred_abort", drain))

    Until the first token the stream's own task pulls the engine, when the consumer pulls (row S4);
    after it, the consumer's. So an engine should not hold a task-bound scope (``asyncio.timeout``,
    an anyio cancel scope) across the ``yield`` of its first token.

    Args:
        abort: Asks the engine to stop; called at most once. It should only start the work. By
            default, in a pipeline, it stops the request.
        drains: Owns and limits the drains.
        notified: Emits when the first token is known to exist before its chunk arrives; by default
            from the scope.
        label: Names the stream in the log; by default the request's id.
        scope: The scope of the stream; filled in by a pipeline.

    Raises:
        TypeError: *abort* is not callable, or *drains* is not a `Drains`; or, when the stream
            starts, there is neither *abort* nor a scope.

    Phase: anywhere; among the chunks, right after ``deferred_abort``.
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
            # There is no transfer to protect.
            return source
        abort = abort or scope.stop
        notified = notified or scope.first_token
        label = label or scope.id
    if abort is None:
        raise TypeError("drain_until_first_token: abort: expected a function, or a scope")
    return _UntilFirstToken(source, abort, drains, notified, label or "without a label")


class _UntilFirstToken(AsyncIterator[Any]):
    """
    One stream: pulled in its own task until its first token, and directly after that.

    It is not a generator, because a generator that was never started would not see the drop.
    """

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
        self._pump = Pump(source, self._take, self._end)
        # Whether the wait for the first token is over, and whether it timed out.
        self._is_settled = False
        self._is_late = False
        # Whether it is drained after a drop.
        self._is_draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._notice: abc.DisposableBase | None = None
        drains.pin(self)

    async def __anext__(self) -> Any:
        if self._is_settled:
            return await anext(self._source)
        self._pump.demand()
        return await self._inbox.get()

    def _take(self, item: Any) -> None:
        """Take an item in the task: for the consumer, or to discard it after the drop."""
        if self._is_draining:
            if is_terminal(item):
                self._source.close()
            elif has_content(item):
                self._abort_now()
            self._pump.demand()
            return
        if has_content(item) or is_terminal(item):
            self._settle()
            self._pump.stop()
        self._inbox.put(item)

    def _settle(self) -> None:
        """Stop waiting for the first token."""
        self._is_settled = True
        self._drains.unpin(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._notice is not None:
            self._notice.dispose()

    def _end(self, failure: BaseException | None) -> None:
        self._settle()
        self._inbox.end(failure)
        if not self._is_draining:
            return
        task = current_task()
        # A cancellation means that the event loop shuts down.
        if self._is_late or (task is not None and task.cancelling() > 0):
            self._drains.timed_out += 1
        else:
            self._drains.drained += 1
        if failure is not None:
            _log.debug(
                "the dropped stream %s failed", self._label, exc_info=redacted_exc_info(failure)
            )

    def close(self) -> None:
        """End the stream; drain it first where that is useful."""
        if self._is_draining:
            return
        is_running = self._source.event_loop.is_running()
        if self._is_settled:
            self._source.close()
        elif is_running and self._drains.has_room(self._label):
            self._start_drain()
        else:
            self._settle()
            self._pump.close()

    def _start_drain(self) -> None:
        """Drain to the first token, and discard the items."""
        self._is_draining = True
        loop = self._source.event_loop
        self._timer = loop.call_later(self._drains.timeout_s, self._on_timeout)
        if self._notified is not None:

            def abort_soon(_: object) -> None:
                # The engine may notify within one of its steps; let that finish first.
                loop.call_soon_threadsafe(self._abort_now)

            self._notice = self._notified.subscribe(abort_soon)
        self._pump.demand()
        if self._pump.task is not None:
            self._drains.track(self._pump.task, self._cut_off)

    def _abort_now(self) -> None:
        """Abort, once; the engine then has the grace period to end by itself."""
        if self._is_settled:
            return
        self._settle()
        self._timer = self._source.event_loop.call_later(self._drains.grace_s, self._source.close)
        try:
            self._abort()
        except Exception as error:
            _log.error(
                "the abort of the dropped stream %s failed",
                self._label,
                exc_info=redacted_exc_info(error),
            )

    def _on_timeout(self) -> None:
        self._is_late = True
        _log.warning(
            "the dropped stream %s had no first token within %g s",
            self._label,
            self._drains.timeout_s,
        )
        self._abort_now()

    def _cut_off(self) -> None:
        """Close the stream now, although it is being drained."""
        self._is_late |= not self._is_settled
        self._abort_now()
        self._source.close()

    async def aclose(self) -> None:
        """End the stream, and wait until it is released unless it is drained."""
        self.close()
        if not self._is_draining:
            await self._pump.wait_closed()


_log = logging.getLogger(__name__)
