"""Fusion: a run of operators over a source, as one loop driven by the consumer's pull."""

from __future__ import annotations

import asyncio
import inspect
import operator
import types
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

from operators._core.loop import READY, compiled
from operators._core.release import (
    IDLE,
    LEAVING,
    RETURNED,
    UNWINDING,
    WAITING,
    Run,
)
from operators._core.segment import Segment, first_pull
from operators._core.tasks import is_elsewhere

__all__ = ("FusedRun",)

B = TypeVar("B", covariant=True)


class FusedRun(Run, Generic[B]):
    """
    A run of operators over an asynchronous source, pulled by its consumer.

    One pull of the consumer pulls the source until an item comes out: once if the operators return
    one item for one (row S4). There is no task, queue or future per item. However the run ends, it
    releases everything once; if it ends with a last item, before that is handed out (row P6a).

    Args:
        source: The source of the items. Its ``aclose``, if it has one, is called at the end.
        operators: Adjacent operators, in order.
        own_context: The context that source and operators run in; None for the consumer's own.
        enters: Whether the run enters *own_context* for each pull; earlier parts of a stream are
            already pulled in it by the last run.
        scope: Passed to operators that take the scope of the stream.
        observer: Notified of items that a drop kept from the consumer, and of the end.
        loop: The running event loop, if the caller has it.
    """

    __slots__ = ()

    def _begin_loop(self) -> None:
        """Start the loop for the stages still visited; it first hands out waiting items."""
        chain = self._chain
        chain.reshaped = False
        source: Any = chain.source
        pull = first = _pull_of(source)
        if type(source) is types.AsyncGeneratorType:
            first = partial(first_pull, source)
        loop = compiled(tuple(chain.visits), isinstance(source, Segment))(
            chain, source, first, pull
        )
        self._generator = loop
        self._send = loop.send

    async def __anext__(self) -> B:
        while not self._state:
            try:
                signal = self._enter(self._send, None)
            except StopIteration:
                # The loop has returned.
                pass
            except GeneratorExit as error:
                self._enter(self._chain.fail_from_source, error)
            else:
                if signal is READY or await self._wait(signal):
                    return self._chain.item
            if self._state:
                break
            if self._chain.has_ended:
                # Without a context to enter, the caller may already run in the source's.
                self._finish(eagerly=self._enter is not operator.call)
            else:
                self._begin_loop()
        return await self._after_end()

    async def _after_end(self) -> B:
        """Hand out the remaining items when the loop has returned, then raise the run's end."""
        if self._state == WAITING:
            raise RuntimeError("the stream is already being pulled by another task")
        if self._state == LEAVING:
            self._drop()
        chain = self._chain
        if chain.out:
            item = chain.out.pop(0)
            if not chain.out and chain.error is None:
                self._report_end(dropped=False)
            return item
        error, chain.error = chain.error, None
        self._report_end(dropped=not (error is None or isinstance(error, Exception)))
        if error is None or isinstance(error, Exception):
            await self.wait_closed()
        if error is not None:
            self.raised = id(error)
            try:
                raise error
            finally:
                # This frame is in its traceback: a reference from here would be a cycle.
                del error
        raise StopAsyncIteration

    @types.coroutine
    def _wait(self, signal: Any) -> Generator[Any, Any, bool]:
        """Pass on the futures that the step awaits; return whether it produced an item."""
        chain = self._chain
        self._state = WAITING
        self.waits += 1
        task = chain.puller = asyncio.current_task(self.event_loop)
        chain.baseline = 0 if task is None else task.cancelling()
        message: tuple[Any, ...] = ()
        if task is None and is_elsewhere(self.event_loop):
            # The engine fails, as with any future of another loop, and its stream ends.
            error = RuntimeError("the stream is pulled on an event loop other than its own")
            signal = self._advance(self._generator.throw, error)
        while signal is not READY and signal is not RETURNED:
            if chain.is_disturbed:
                self._check_disturbance()
            try:
                yield signal
            except GeneratorExit:
                self._abandon_pull()
                raise
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError):
                    message = error.args
                    chain.interrupt(interrupted=True)
                signal = self._advance(self._generator.throw, error)
            else:
                signal = self._advance(self._send, None)
        if chain.is_disturbed or self._is_leaving:
            return self._end_disturbed_wait(message, has_item=signal is READY)
        self._state = IDLE
        chain.puller = None
        return signal is READY

    def _check_disturbance(self) -> None:
        """Check the state of a cancellation and of a close, before the step waits again."""
        chain, task = self._chain, self._chain.puller
        if chain.is_interrupted and task is not None and task.cancelling() <= chain.baseline:
            chain.interrupt(interrupted=False)
        if self._state == UNWINDING and not chain.is_interrupted:
            # It was closed while another cancellation unwound, which was caught since.
            self._cancel_pull()

    def _end_disturbed_wait(self, message: tuple[Any, ...], *, has_item: bool) -> bool:
        """End a wait that saw a cancellation or a close; re-raise a consumer's cancellation."""
        chain, task = self._chain, self._chain.puller
        if chain.own_cancels and task is not None:
            chain.own_cancels = 0
            task.uncancel()
        is_cancelled = chain.is_cancelled()
        chain.puller = None
        if self._state == UNWINDING:
            self._end_unwinding()
        elif is_cancelled:
            # Whatever the engine did with it, the consumer's cancellation is a drop (rows S6, S7).
            self._state = IDLE
            self._withhold([chain.item] if has_item else [])
            self._drop()
        else:
            self._state = LEAVING if self._is_leaving else IDLE
            chain.interrupt(interrupted=False)
        if is_cancelled:
            raise asyncio.CancelledError(*message)
        return has_item and not chain.dropped

    def put_back(self, items: Iterable[B]) -> None:
        """
        Hand out *items*, in order, before anything else; not while a pull is in progress.

        A drop, earlier or later, discards them. Once handed out they cost nothing.
        """
        if self.dropped:
            return
        self._chain.out[:0] = items
        if self._state == IDLE and self._chain.out:
            self._generator.close()
            self._begin_loop()


def _pull_of(source: AsyncIterator[Any]) -> Callable[[], Any]:
    """Return the function whose awaitable the loop delegates to for the next item of *source*."""
    if type(source) is types.AsyncGeneratorType or inspect.iscoroutinefunction(source.__anext__):
        return source.__anext__

    async def pull() -> Any:
        return await anext(source)

    return pull
