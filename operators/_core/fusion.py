"""Fusion: a run of operators over a source, as one loop that the consumer's pull drives."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import operator
import sys
import types
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from operators._core.chain import Chain, StageFactory
from operators._core.failures import (
    SourceCancelled,
    add_operator_note,
    drop_top_frame,
    is_cancellation,
    redacted_exc_info,
)
from operators._core.loop import READY, Visit, compiled
from operators._core.segment import Segment, close_quietly, first_pull
from operators._core.stage import Callbacks
from operators._core.tasks import done, start_task

if TYPE_CHECKING:
    from operators._core.loop import Loop

__all__ = ("FusedRun",)

B = TypeVar("B", covariant=True)

# The states of a run. IDLE is 0, so that a pull asks for it by a truth test.
_IDLE: Final = 0
_WAITING: Final = 1  # a pull waits for the source
_UNWINDING: Final = 2  # it was dropped while it waited, and the pull has not ended yet
_OVER: Final = 3  # the source is closed, or being closed
_PUT_BACK: Final = 4  # items that were put back come first
_LEAVING: Final = 5  # it was closed from within its own step, and is dropped before the next

_RETURNED = object()


class PulledChain(Chain):
    """
    The stages of a run, and what the loop tells them of a pull.

    The loop refers to this and not to the run, so that losing the run is noticed at once.

    Args:
        source: What the run pulls.
        operators: The operators.
        scope: As for `Chain`.

    Attributes:
        source: What the run pulls.
        item: The slot in which the loop hands over an item.
        dropped: Whether the run was dropped before its end.
        puller: The task that waits in a pull.
        baseline: How many cancellations *puller* had been asked for when it began to wait.
        own_cancels: How many the run has made since, to end the pull: none or one.
        is_interrupted: Whether a cancellation is on its way through the pull.
        is_disturbed: Whether it was dropped or is interrupted; then the loop asks `is_over`.
        pump: A task of ours that may pull, whose cancellation is no consumer's.
    """

    __slots__ = (
        "baseline",
        "dropped",
        "is_disturbed",
        "is_interrupted",
        "item",
        "own_cancels",
        "puller",
        "pump",
        "source",
    )

    def __init__(
        self, source: AsyncIterator[Any], operators: Sequence[StageFactory], scope: Any
    ) -> None:
        self.source = source
        self.item: Any = None
        self.dropped = False
        self.puller: asyncio.Task[Any] | None = None
        self.baseline = 0
        self.own_cancels = 0
        self.is_interrupted = False
        self.is_disturbed = False
        self.pump: asyncio.Task[None] | None = None
        super().__init__(operators, scope)

    def complete(self, place: int = 0, ended_by: str | None = None) -> None:
        """Complete the stages from *place* on, in order."""
        if self.is_disturbed and self.is_over():
            return
        super().complete(place, ended_by or self._source_ended_by())

    def push_last(self, item: Any, place: int = 0, ended_by: str | None = None) -> None:
        """Send the stream's last item through the stages from *place* on, and complete them."""
        super().push_last(item, place, ended_by or self._source_ended_by())

    def _source_ended_by(self) -> str | None:
        return self.source.ended_by if isinstance(self.source, Segment) else None

    def is_cancelled(self) -> bool:
        """Return whether the consumer was cancelled; what an engine cancels and catches is not it."""
        if not self.is_interrupted or (self.pump is not None and self.puller is self.pump):
            return False
        if self.puller is None:
            return not self.dropped
        return self.puller.cancelling() > self.baseline + self.own_cancels

    def is_over(self) -> bool:
        """Return whether the run was dropped; it is where the consumer was cancelled meanwhile."""
        if not self.dropped and self.is_cancelled():
            self.drop()
        return self.dropped

    def fail_from_source(self, error: BaseException) -> None:
        """Fail the stages with what the source raised; its own cancellation is a failure (S6)."""
        if (
            _GROUPS_FORGET
            and isinstance(error, BaseExceptionGroup)
            and self.is_cancelled()
            and self.puller is not None
        ):
            # A task group that fails has cancelled its parent, and does not always take that back.
            self.puller.uncancel()
        if self.is_over():
            if isinstance(error, Exception):
                _log.error("a dropped source failed", exc_info=redacted_exc_info(error))
            return
        if is_cancellation(error):
            cause, error = error, SourceCancelled(f"the source raised {type(error).__name__}")
            error.__cause__ = cause
        drop_top_frame(error)
        if isinstance(self.source, Segment):
            name = self.source.raised_by(error)
            if name is not None:
                add_operator_note(error, name, self._scope)
        self.fail(error)

    def interrupt(self, *, interrupted: bool) -> None:
        """Tell the stages that a cancellation is on its way through the pull, or did not drop it."""
        self.is_interrupted = interrupted
        self.is_disturbed = interrupted or self.dropped
        for stage in self._stages:
            if type(stage) is Callbacks and stage.on_interrupt is not None:
                stage.on_interrupt(interrupted)

    def drop(self) -> None:
        """Close the stages, here and in front, and forget what was not handed out."""
        self.dropped = self.is_disturbed = True
        self.out.clear()
        self.error = None
        self.close_stages()
        if isinstance(self.source, Segment):
            self.source.drop()


class FusedRun(Segment, Generic[B]):
    """
    A run of operators over an asynchronous source, pulled by its consumer.

    One pull of the consumer pulls the source until one item comes out, once where the operators
    give one for one (row S4). There is no task, queue or future per item. However the run ends,
    it releases everything once, before its last item is handed out where it ends by one (row P6a).

    Args:
        source: Where items come from. Its ``aclose``, if it has one, is called at the end.
        operators: Neighbouring operators, in order.
        own_context: The context that source and operators run in; None for the consumer's own.
        enters: Whether the run enters *own_context* for each pull; a part of a stream whose last run
            does is pulled in it already.
        scope: Handed to operators that ask for the scope of the stream.
        on_end: Called once when the run is over, with whether it was dropped.
        on_left: Called before it with items that the stages made, and that are not handed out since
            the run is dropped.
        loop: The running event loop, for a caller who knows it.

    Attributes:
        is_adopted: Whether an operator behind has taken the run over, and closes it.
        event_loop: The event loop that the run lives on.
        raised: The ``id`` of the exception that the run raised to its consumer.
    """

    __slots__ = (
        "__weakref__",
        "_chain",
        "_closing",
        "_enter",
        "_generator",
        "_is_leaving",
        "_on_end",
        "_on_left",
        "_put_back",
        "_resumed_state",
        "_send",
        "_state",
        "_unwound",
        "event_loop",
        "is_adopted",
        "own_context",
        "raised",
    )

    def __init__(
        self,
        source: AsyncIterator[Any],
        operators: Sequence[StageFactory],
        *,
        own_context: contextvars.Context | None = None,
        enters: bool = True,
        scope: Any = None,
        on_end: Callable[[bool], None] | None = None,
        on_left: Callable[[Sequence[Any]], None] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        # Asking for the running loop is a system call on some Pythons, dear with many requests.
        self.event_loop = loop or asyncio.get_running_loop()
        # An empty context is false.
        self.own_context = own_context
        is_entered = own_context is None or not enters
        self._enter = operator.call if is_entered else own_context.run
        self._on_end = on_end
        self._on_left = on_left
        self.is_adopted = False
        self.raised = 0
        self._is_leaving = False
        self._unwound: asyncio.Future[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._put_back: list[Any] | None = None
        self._resumed_state = _IDLE
        self._state = _OVER
        self._chain: PulledChain = self._enter(PulledChain, source, operators, scope)
        if self.has_ended:
            # An operator returned before it had an item.
            self._finish()
        else:
            self._state = _IDLE
            self._begin_loop(is_first=True)

    def _begin_loop(self, *, is_first: bool = False) -> None:
        """Begin the loop for the stages that items still visit."""
        self._chain.reshaped = False
        arguments: list[Any] = []
        shape: list[Visit] = []
        for step, condition in zip(self._chain.steps, self._chain.conditions, strict=True):
            if step is None:
                shape.append(None)
                continue
            arguments.append(step)
            if condition is None:
                shape.append(not isinstance(step, type))
            else:
                shape.append(condition.expression)
                arguments += condition.values
        source = self._chain.source
        tells_end = isinstance(source, Segment)
        pull = first = _pull_of(source)
        if is_first and type(source) is types.AsyncGeneratorType:
            first = _FirstPull(source)
        loop: Loop = compiled(tuple(shape), tells_end)(self._chain, source, first, pull, *arguments)
        self._generator = loop
        self._send = loop.send

    @property
    def ended(self) -> bool:
        """Whether the item handed out last was the last one."""
        return (
            self._put_back is None
            and self.has_ended
            and not self._chain.out
            and self._chain.error is None
        )

    def __aiter__(self) -> AsyncIterator[B]:
        return self

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
            if self.has_ended:
                self._finish()
            else:
                self._begin_loop()
        return await self._after_end()

    async def _after_end(self) -> B:
        """Hand out what is left when the loop has returned, then raise what the run ended with."""
        if self._state == _WAITING:
            raise RuntimeError("the stream is already being pulled by another task")
        if self._put_back is not None:
            item = self._put_back.pop(0)
            if not self._put_back:
                self._put_back = None
                self._state = self._resumed_state
            return item
        if self._state == _LEAVING:
            self._drop()
        if self._chain.out:
            item = self._chain.out.pop(0)
            if self.ended:
                self._tell_end(dropped=False)
            return item
        error, self._chain.error = self._chain.error, None
        self._tell_end(dropped=not (error is None or isinstance(error, Exception)))
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
        """Pass on the futures that the step waits for; return whether an item came of it."""
        chain = self._chain
        self._state = _WAITING
        task = chain.puller = asyncio.current_task(self.event_loop)
        chain.baseline = 0 if task is None else task.cancelling()
        while signal is not READY and signal is not _RETURNED:
            try:
                yield signal
            except GeneratorExit:
                self._abandon_pull()
                raise
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and not chain.is_interrupted:
                    chain.interrupt(interrupted=True)
                signal = self._advance(self._generator.throw, error)
            else:
                signal = self._advance(self._send, None)
            if chain.is_interrupted and task is not None and task.cancelling() <= chain.baseline:
                chain.interrupt(interrupted=False)
            is_waiting = signal is not READY and signal is not _RETURNED
            if self._state == _UNWINDING and is_waiting and not chain.is_interrupted:
                # It was closed while something else unwound that has been caught since.
                self._cancel_pull()
        return self._end_wait(has_item=signal is READY)

    def _end_wait(self, *, has_item: bool) -> bool:
        """Take what came of a pull that had to wait; return whether that is an item."""
        chain, task = self._chain, self._chain.puller
        if chain.own_cancels and task is not None:
            chain.own_cancels = 0
            task.uncancel()
        is_cancelled = chain.is_cancelled()
        chain.puller = None
        if self._state == _UNWINDING:
            self._end_unwinding()
        elif is_cancelled:
            # Whatever the engine made of it, the consumer's cancellation is a drop (rows S6, S7).
            self._state = _IDLE
            self._leave([chain.item] if has_item else [])
            self._drop()
        else:
            self._state = _LEAVING if self._is_leaving else _IDLE
            if chain.is_interrupted:
                chain.interrupt(interrupted=False)
        if is_cancelled:
            raise asyncio.CancelledError
        return has_item and not chain.dropped

    def _advance(self, function: Callable[[Any], Any], argument: Any) -> Any:
        try:
            return self._enter(function, argument)
        except StopIteration:
            return _RETURNED
        except GeneratorExit as error:
            self._enter(self._chain.fail_from_source, error)
            return _RETURNED

    def put_back(self, items: Iterable[B]) -> None:  # type: ignore[misc]
        """
        Have *items* handed out, in order, before anything else; not while a pull is under way.

        A drop forgets them, and one that came before does too. Once they are out, they cost nothing
        any more.
        """
        items = list(items)
        if self.dropped or not items:
            return
        if self._put_back is None:
            self._resumed_state = self._state
            self._state = _PUT_BACK
        self._put_back = [*items, *(self._put_back or ())]

    # Ends and drops.

    @property
    def has_ended(self) -> bool:
        """Whether nothing comes in any more: completed, failed or dropped."""
        return self._chain.has_ended

    def pulled_by(self, pump: asyncio.Task[None]) -> None:
        """Note that the task *pump* pulls: its cancellation is a failure, and no consumer's."""
        self._chain.pump = pump

    @property
    def dropped(self) -> bool:
        """Whether it was dropped before its end."""
        return self._chain.dropped

    @property
    def ended_by(self) -> str | None:
        """The operator that ended the stream before its source did; None where none did."""
        return self._chain.ended_by

    def drop(self) -> None:
        """Close the stages, here and in front, and forget what was not handed out."""
        if self._state != _OVER:
            self._leave(self._chain.out)
            _enter_once(self._enter, self._chain.drop)

    def close(self) -> None:
        """
        Drop the run without waiting: everything is released, once (row S7).

        A pull that another task waits in ends there without an item. What closing the source waits
        for goes on in a task; :meth:`aclose` waits for that too.
        """
        if self._put_back is not None:
            self._put_back = None
            self._state = self._resumed_state
        if self._state == _OVER:
            self._leave(self._chain.out)
            self._chain.out.clear()
            self._chain.error = None
            self._tell_end(dropped=True)
            return
        if self._generator.gi_running:
            # An operator or the engine drops its own stream: let the step end first.
            self._is_leaving = True
            if self._state == _IDLE:
                self._state = _LEAVING
            self.event_loop.call_soon(self.close)
        elif self._state == _WAITING:
            self._state = _UNWINDING
            self.drop()
            self._tell_end(dropped=True)
            self._cancel_pull()
        elif self._state != _UNWINDING:
            self._drop()

    def _cancel_pull(self) -> None:
        task = self._chain.puller
        if task is None:
            self._unwind_pull()
        elif task.cancelling() <= self._chain.baseline:
            # As asyncio.timeout does; a second one would cut the engine's clean-up short.
            self._chain.own_cancels = 1
            task.cancel()

    def _drop(self) -> None:
        self.drop()
        self._generator.close()
        self._tell_end(dropped=True)
        self._finish()

    def _finish(self) -> None:
        """Release the source; what is in ``out`` is still to be handed out."""
        self._state = _OVER
        if self.ended:
            self._tell_end(dropped=False)
        self._close_source()

    def _leave(self, items: Sequence[Any]) -> None:
        """Note that *items* are not handed out."""
        if items and self._on_left is not None and self._on_end is not None:
            self._on_left(items)

    def _tell_end(self, *, dropped: bool) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return
        try:
            _enter_once(self._enter, partial(on_end, dropped))
        except Exception as error:
            _log.error(
                "the callback at the end of a stream failed", exc_info=redacted_exc_info(error)
            )

    def _close_source(self) -> None:
        source, loop = self._chain.source, self.event_loop
        if isinstance(source, Segment):
            source.close()
        elif hasattr(source, "aclose"):
            if loop.is_closed():
                self._enter(_close_now, source)
            else:
                self._closing = start_task(close_quietly(source, _FAILED), loop, self.own_context)

    def _abandon_pull(self) -> None:
        """Unwind a pull whose coroutine was closed: by a task, since it may have to wait."""
        self._chain.puller = None
        if self._state == _WAITING:
            self._state = _UNWINDING
            self.drop()
            self._tell_end(dropped=True)
        self._unwind_pull()

    def _unwind_pull(self) -> None:
        """Cancel the step that nobody waits for any more, in a task: its clean-up may wait."""
        if self.event_loop.is_running():
            self._closing = start_task(self._unwind(), self.event_loop, self.own_context)
        else:
            self._advance(self._generator.throw, asyncio.CancelledError())
            self._end_unwinding()

    async def _unwind(self) -> None:
        # The task runs in the context already.
        self._enter = operator.call
        try:
            await self._pass_on()
        finally:
            self._end_unwinding()

    @types.coroutine
    def _pass_on(self) -> Generator[Any, Any, None]:
        signal = self._advance(self._generator.throw, asyncio.CancelledError())
        while signal is not READY and signal is not _RETURNED:
            try:
                yield signal
            except BaseException as error:
                signal = self._advance(self._generator.throw, error)
            else:
                signal = self._advance(self._send, None)

    def _end_unwinding(self) -> None:
        self.drop()
        self._generator.close()
        self._tell_end(dropped=True)
        self._finish()
        if self._unwound is not None and not self._unwound.done():
            self._unwound.set_result(None)

    async def wait_closed(self) -> None:
        """Wait until everything is released; being cancelled here does not disturb the release."""
        if self._state == _UNWINDING:
            if self._unwound is None:
                self._unwound = self.event_loop.create_future()
            await asyncio.shield(self._unwound)
        if isinstance(self._chain.source, Segment):
            await self._chain.source.aclose()
        elif self._closing is not None and not self._closing.done():
            await done(self._closing)

    async def aclose(self) -> None:
        """Drop the run, and wait until everything is released."""
        self.close()
        await self.wait_closed()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # When the interpreter ends, the names of this module may be gone.
        if is_finalizing() or getattr(self, "_state", _OVER) == _OVER:
            return
        if self.event_loop.is_running():
            # The collector may call this in the middle of anything, in any thread.
            self.event_loop.call_soon_threadsafe(self.close)
        else:
            self.close()


class _FirstPull:
    """The first pull of an asynchronous generator."""

    __slots__ = ("_generator",)

    def __init__(self, generator: types.AsyncGeneratorType[Any, None]) -> None:
        self._generator = generator

    def __call__(self) -> Any:
        return first_pull(self._generator)


def _pull_of(source: AsyncIterator[Any]) -> Callable[[], Any]:
    """Return the function that returns the next of *source*, to be delegated to."""
    if type(source) is types.AsyncGeneratorType or inspect.iscoroutinefunction(source.__anext__):
        return source.__anext__

    async def pull() -> Any:
        return await anext(source)

    return pull


def _enter_once(enter: Callable[..., Any], function: Callable[[], None]) -> None:
    """Call *function* by way of *enter*, or as it is where the caller is in that context already."""
    try:
        enter(_do_nothing)
    except RuntimeError:
        function()
    else:
        enter(function)


def _do_nothing() -> None: ...


def _close_now(source: AsyncIterator[Any]) -> None:
    """Close a source whose event loop is closed: what needs no waiting is still done."""
    closing = close_quietly(source, _FAILED)
    try:
        closing.send(None)
    except StopIteration:
        return
    closing.close()


_GROUPS_FORGET: Final = sys.version_info < (3, 13)
_FAILED: Final = "closing the source of a stream failed"
_log = logging.getLogger(__name__)
