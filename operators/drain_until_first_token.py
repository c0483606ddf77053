"""Let a stream that is dropped early go on to its first token, and abort it then."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from typing import Any, ParamSpec, TypeVar

from reactivex import Observable

from operators._core.checked import checked
from operators._core.fusion import FusedRun
from operators._core.operator import pulling
from operators._core.stage import last
from operators._raw_chunk import has_content, is_terminal
from operators.drains import Drain, Drains

__all__ = ("drain_until_first_token",)

A = TypeVar("A")
B = TypeVar("B")
P = ParamSpec("P")


def _check(abort: object, *, drains: object, notified: object = None, label: object = None) -> None:
    if not callable(abort):
        raise TypeError(f"drain_until_first_token: abort: expected a function, got {abort!r}")
    if not isinstance(drains, Drains):
        raise TypeError(f"drain_until_first_token: drains: expected a Drains, got {drains!r}")


@checked(_check)
@pulling
def drain_until_first_token(
    source: FusedRun[Any],
    abort: Callable[[], object],
    *,
    drains: Drains,
    notified: Observable[Any] | None = None,
    label: str = "without a label",
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
    standard pipeline it stands right behind ``deferred_abort``, which turns the stop that it gives
    into the one ``engine.abort``; the request's span behind it says ``Dropped``::

        drains = Drains()  # one for the worker

        def pipeline(scope):
            standard = OperatorList(standard_pipeline(scope))
            if not scope.mode.is_decode:
                return standard
            context = scope.context
            drain = drain_until_first_token(
                context.stop_generating,
                drains=drains,
                notified=context.first_token(),
                label=context.id,
            )
            return standard.insert_after("deferred_abort", drain)

    Up to the first token the engine is pulled by a task of the stream's own, and only when the
    consumer pulls (row S4); after it by the consumer's task, which costs a few calls per chunk. So
    an engine should not hold a scope of its task (``asyncio.timeout``, a cancel scope of anyio) open
    across the ``yield`` of its first token. Context variables stay the same.

    Args:
        abort: Asks the engine to stop; called at most once. It should only start the work.
        drains: Owns and bounds what goes on.
        notified: Emits when the first token is known to exist before a chunk shows it; a level that
            replays will do.
        label: Names the stream in the log, where a drain that is refused or late is told of.

    Raises:
        TypeError: *abort* can't be called, or *drains* is something else.

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
    return _UntilFirstToken(source, abort, drains, notified, label)


class _UntilFirstToken(AsyncIterator[Any]):
    """
    One stream: pulled by a task of its own up to its first token, and directly from there on.

    It is no generator, because one that was never pulled would not hear of the drop.
    """

    __slots__ = (
        "_abort",
        "_arrival",
        "_demand",
        "_drain",
        "_drains",
        "_failure",
        "_is_settled",
        "_label",
        "_loop",
        "_notified",
        "_run",
        "_task",
    )

    def __init__(
        self,
        source: FusedRun[Any],
        abort: Callable[[], object],
        drains: Drains,
        notified: Observable[Any] | None,
        label: str,
    ) -> None:
        # The engine is pulled in a task here and in another there, but in one context.
        self._run = source
        self._abort = abort
        self._drains = drains
        self._notified = notified
        self._label = label
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._arrival: asyncio.Future[Any] | None = None
        self._demand: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None
        self._drain: Drain | None = None
        # The first token has come, or the end.
        self._is_settled = False

    async def __anext__(self) -> Any:
        run = self._run
        item = _NOTHING if self._is_settled else await self._await_task()
        if item is _NOTHING:
            item = await anext(run)
        return last(item) if run.ended else item

    async def _await_task(self) -> Any:
        """Have the task pull once; gives what came, or nothing at the end."""
        self._arrival = self._loop.create_future()
        if self._demand is None:
            self._task = self._loop.create_task(self._pull())
        else:
            self._demand.set_result(None)
        # All that a drop can cancel here is this future.
        item = await self._arrival
        if self._is_settled:
            self._task = self._arrival = self._demand = None
        failure, self._failure = self._failure, None
        if failure is None:
            return item
        try:
            raise failure
        finally:
            # This frame is in its traceback: holding it here would be a cycle.
            del failure

    async def _pull(self) -> None:
        """Hand over one item for each demand up to the first token; go on by itself after a drop."""
        try:
            async for item in self._run:
                if self._drain is not None:
                    self._drain.look_at(item)
                    # An engine that never waits must not keep all others from their turn.
                    await asyncio.sleep(0)
                    continue
                is_last = self._run.ended or is_terminal(item)
                self._is_settled = is_last or has_content(item)
                self._hand_over(item)
                if self._is_settled:
                    return
                self._demand = self._loop.create_future()
                await self._demand
        except BaseException as error:
            self._failure = error
        self._is_settled = True
        if self._drain is None:
            self._hand_over(_NOTHING)
            return
        self._drain.end(self._failure)
        await self._run.aclose()

    def _hand_over(self, item: Any) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(item)

    async def aclose(self) -> None:
        """The stream has ended, or was dropped; then let it go on if that is of use."""
        if self._drain is not None:
            return
        is_running = self._loop.is_running()
        if not self._is_settled and is_running and self._drains.has_room(self._label):
            self._let_go_on()
            return
        task = self._task if is_running else None
        if task is not None:
            task.cancel()
        await self._run.aclose()
        if task is not None:
            await asyncio.wait([task])

    def _let_go_on(self) -> None:
        self._drain = Drain(self._drains, self._run, self._abort, self._notified, self._label)
        if self._task is None:
            self._task = self._loop.create_task(self._pull())
        elif self._demand is not None and not self._demand.done():
            self._demand.set_result(None)
        self._drains.own(self._task, self._drain)


_NOTHING = object()
