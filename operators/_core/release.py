"""A run's states, and the release at its end, however it ends."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import operator
import sys
import types
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from typing import Any, Final, Protocol

from operators._core.failures import redacted_exc_info
from operators._core.loop import READY, Loop
from operators._core.pulled_chain import PulledChain
from operators._core.segment import Segment, close_now, close_quietly
from operators._core.stages import StageFactory
from operators._core.tasks import done, start_eagerly, start_release

__all__ = (
    "IDLE",
    "LEAVING",
    "OVER",
    "RETURNED",
    "UNWINDING",
    "WAITING",
    "Run",
    "StreamObserver",
)

# The states of a run. IDLE is 0, so that a pull checks for it by truth value.
IDLE: Final = 0
WAITING: Final = 1  # a pull waits for the source
UNWINDING: Final = 2  # dropped while a pull waited, which has not ended yet
OVER: Final = 3  # the source is closed, or being closed
LEAVING: Final = 4  # closed from within its own step; dropped before the next

RETURNED: Final = object()


class StreamObserver(Protocol):
    """Notified of a stream's end, and of items that did not reach the consumer."""

    def mark_undelivered(self, items: Sequence[Any]) -> None:
        """Subtract items that were ready, but that a drop kept from the consumer."""
        ...

    def end(self, dropped: bool) -> None:
        """Record the end, once; *dropped* if the consumer left before it."""
        ...


class Run(Segment):
    """
    A run's state and its release, common to drops, failures and ends.

    :class:`FusedRun` pulls the loop of the run. However it ends, the stages are closed and the end
    is reported at once, while the source is closed in a task, because that may have to wait.

    Attributes:
        event_loop: The event loop of the run.
        own_context: The context that source and operators run in; None for the consumer's own.
        is_adopted: Whether a later operator has taken over the run, and closes it.
        raised: The ``id`` of the exception that the run raised to its consumer.
        waits: How many pulls had to wait for the source.
    """

    __slots__ = (
        "__weakref__",
        "_chain",
        "_closing",
        "_enter",
        "_generator",
        "_is_leaving",
        "_observer",
        "_send",
        "_state",
        "_unwound",
        "event_loop",
        "is_adopted",
        "own_context",
        "raised",
        "waits",
    )

    _generator: Loop
    _send: Callable[[None], Any]

    def __init__(
        self,
        source: AsyncIterator[Any],
        operators: Sequence[StageFactory],
        *,
        own_context: contextvars.Context | None = None,
        enters: bool = True,
        scope: Any = None,
        observer: StreamObserver | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        # Getting the running loop is a system call on some Pythons, expensive with many requests.
        self.event_loop = loop or asyncio.get_running_loop()
        # An empty context is falsy.
        self.own_context = own_context
        self._enter: Callable[..., Any] = (
            operator.call if own_context is None or not enters else own_context.run
        )
        self._observer: StreamObserver | None = None
        self.is_adopted = False
        self.raised = 0
        self.waits: int = 0
        self._is_leaving = False
        self._unwound: asyncio.Future[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._state: int = OVER
        self._chain: PulledChain = self._enter(PulledChain, source, operators, scope)
        self._observer = observer
        if self._chain.has_ended:
            # An operator returned before its first item.
            self._finish()
        else:
            self._state = IDLE
            self._begin_loop()

    @abstractmethod
    def _begin_loop(self) -> None:
        """Start the loop for the stages that items still visit."""

    @property
    def ended(self) -> bool:
        """Whether the most recent item was the last one."""
        chain = self._chain
        return chain.has_ended and not chain.out and chain.error is None

    @property
    def has_ended(self) -> bool:
        """Whether no more items come in: completed, failed or dropped."""
        return self._chain.has_ended

    def pulled_by(self, pump: asyncio.Task[None]) -> None:
        """Record that the task *pump* pulls: its cancellation is a failure, not a consumer's."""
        self._chain.pump = pump

    @property
    def dropped(self) -> bool:
        """Whether it was dropped before its end."""
        return self._chain.dropped

    @property
    def ended_by(self) -> str | None:
        """The operator that ended the stream before its source did, if any."""
        return self._chain.ended_by

    def made_by(self, item: object) -> str | None:
        """Return the operator that handed out *item*, the most recent one; None if unknown."""
        return self._chain.made_by(item)

    def drop(self) -> None:
        """Close these and all earlier stages, and discard items not handed out."""
        if self._state != OVER:
            self._withhold(self._chain.out)
            _enter_once(self._enter, self._chain.drop)

    def close(self) -> None:
        """
        Drop the run without waiting: everything is released, once (row S7).

        A pull pending in another task ends there without an item. Closing the source may continue
        in a task; :meth:`aclose` waits for that too.
        """
        if self._state == OVER:
            self._withhold(self._chain.out)
            self._chain.out.clear()
            self._chain.error = None
            self._report_end(dropped=True)
            return
        if self._generator.gi_running:
            # An operator or the engine drops its own stream: let its step finish first.
            self._is_leaving = True
            if self._state == IDLE:
                self._state = LEAVING
            self.event_loop.call_soon(self.close)
        elif self._state == WAITING:
            self._state = UNWINDING
            self.drop()
            self._report_end(dropped=True)
            self._cancel_pull()
        elif self._state != UNWINDING:
            self._drop()

    def _cancel_pull(self) -> None:
        task = self._chain.puller
        if task is None:
            self._unwind_pull()
        elif task.cancelling() <= self._chain.baseline:
            # As asyncio.timeout does; a second cancellation would interrupt the engine's clean-up.
            self._chain.own_cancels = 1
            task.cancel()

    def _drop(self) -> None:
        self.drop()
        self._generator.close()
        self._report_end(dropped=True)
        self._finish()

    def _finish(self, *, eagerly: bool = False) -> None:
        """Release the source; items in ``out`` are still to be handed out."""
        self._state = OVER
        # An error item's traceback may refer to the consumer's frame, and so back to this run.
        self._chain.item = None
        if self.ended:
            self._report_end(dropped=False)
        self._close_source(start_eagerly if eagerly else start_release)

    def mark_undelivered(self, item: Any) -> None:
        """Record that *item*, which was handed out, has not reached its consumer."""
        self._withhold([item])

    def _withhold(self, items: Sequence[Any]) -> None:
        """Record that *items* are not handed out."""
        if items and self._observer is not None:
            self._observer.mark_undelivered(items)

    def _report_end(self, *, dropped: bool) -> None:
        observer, self._observer = self._observer, None
        if observer is None:
            return
        try:
            _enter_once(self._enter, observer.end, dropped)
        except Exception as error:
            _log.error(
                "the callback at the end of a stream failed", exc_info=redacted_exc_info(error)
            )

    def _close_source(self, start: Callable[..., asyncio.Task[None]]) -> None:
        source, loop = self._chain.source, self.event_loop
        if isinstance(source, Segment):
            source.close()
        elif hasattr(source, "aclose"):
            if loop.is_closed():
                self._enter(close_now, source, _FAILED)
            else:
                self._closing = start(close_quietly(source, _FAILED), loop, self.own_context)

    def _abandon_pull(self) -> None:
        """Unwind a pull whose coroutine was closed, in a task, because it may have to wait."""
        self._chain.puller = None
        if self._state == WAITING:
            self.close()
        else:
            self._unwind_pull()

    def _unwind_pull(self) -> None:
        """Cancel the step that no task awaits any more, in a task: its clean-up may wait."""
        if self.event_loop.is_running():
            self._closing = start_release(self._unwind(), self.event_loop, self.own_context)
        else:
            self._advance(self._generator.throw, asyncio.CancelledError())
            self._end_unwinding()

    def _advance(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Run the loop to its next signal; return that, or `RETURNED`."""
        try:
            return self._enter(function, argument)
        except StopIteration:
            pass
        except GeneratorExit as error:
            self._enter(self._chain.fail_from_source, error)
        finally:
            # From Python 3.12 on the traceback of a thrown exception refers to this frame, through
            # its callers: a reference back would be a cycle.
            del argument
        return RETURNED

    async def _unwind(self) -> None:
        # The task already runs in the context.
        self._enter = operator.call
        try:
            await self._pass_on()
        finally:
            self._end_unwinding()

    @types.coroutine
    def _pass_on(self) -> Generator[Any, Any, None]:
        signal = self._advance(self._generator.throw, asyncio.CancelledError())
        while signal is not READY and signal is not RETURNED:
            try:
                yield signal
            except BaseException as error:
                signal = self._advance(self._generator.throw, error)
            else:
                signal = self._advance(self._send, None)

    def _end_unwinding(self) -> None:
        self._drop()
        if self._unwound is not None and not self._unwound.done():
            self._unwound.set_result(None)

    async def wait_closed(self) -> None:
        """Wait until everything is released; being cancelled here does not disturb the release."""
        if self._state == UNWINDING:
            if self._unwound is None:
                self._unwound = self.event_loop.create_future()
            await asyncio.shield(self._unwound)
        if isinstance(self._chain.source, Segment):
            await self._chain.source.aclose()
        else:
            await done(self._closing)

    async def aclose(self) -> None:
        """Drop the run, and wait until everything is released."""
        self.close()
        await self.wait_closed()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At interpreter shutdown, the names of this module may be gone.
        if is_finalizing():
            return
        # After the end, there may be items that will not be handed out any more.
        if getattr(self, "_state", OVER) == OVER and getattr(self, "_observer", None) is None:
            return
        if self.event_loop.is_running():
            # The garbage collector may call this at any point, in any thread.
            self.event_loop.call_soon_threadsafe(self.close)
        else:
            self.close()


def _enter_once(enter: Callable[..., Any], function: Callable[..., None], *args: Any) -> None:
    """Call *function* through *enter*, or directly if the caller is already in that context."""
    try:
        enter(_do_nothing)
    except RuntimeError:
        function(*args)
    else:
        enter(function, *args)


def _do_nothing() -> None: ...


_FAILED: Final = "closing the source of a stream failed"
_log = logging.getLogger(__name__)
