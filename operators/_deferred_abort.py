"""Abort an engine's request on a stop signal, but not before its first token."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Any, NamedTuple, TypeVar

from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.disposable import CompositeDisposable
from reactivex.subject import Subject

from operators._abort_step import AbortStep
from operators._chunk import HAS_CONTENT, Chunk
from operators._core.operator import callbacks, same_type
from operators._core.scope import StreamScope
from operators._core.stage import Hooks, condition

__all__ = ("abort_gate", "deferred_abort")

C = TypeVar("C", bound=Chunk)


def abort_gate(
    stop: Observable[Any], opened: Observable[Any], closed: Observable[Any]
) -> Observable[Any]:
    """
    Emit once when both *stop* and *opened* have come, unless *closed* came first (row A8).

    All three may be latched signals, which replay to a late subscriber::

        stop    --s------|
        opened  -----o---|
        closed  -------c-|
        result  -----(o|)

    Args:
        stop: Requests the abort.
        opened: The abort is safe from here on.
        closed: The abort is useless from here on.

    >>> stop, opened, closed = Subject(), Subject(), Subject()
    >>> _ = abort_gate(stop, opened, closed).subscribe(lambda _: print("abort"))
    >>> stop.on_next(True)
    >>> opened.on_next(True)
    abort
    """

    def subscribe(
        observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        # Latched signals replay during subscription; through subjects they arrive one after the
        # other.
        stopping: Subject[Any] = Subject()
        opening: Subject[Any] = Subject()
        # Whichever of the two comes second passes. (If the gate is made within another
        # subscription, `merge` would subscribe later and miss the signal for which it is made.)
        second: Subject[Any] = Subject()
        gate = second.pipe(ops.take(1), ops.take_until(closed))
        return CompositeDisposable(
            gate.subscribe(observer, scheduler=scheduler),
            stopping.pipe(ops.skip_until(opening)).subscribe(second.on_next),
            opening.pipe(ops.skip_until(stopping)).subscribe(second.on_next),
            stop.subscribe(stopping.on_next, observer.on_error, scheduler=scheduler),
            opened.subscribe(opening.on_next, observer.on_error, scheduler=scheduler),
        )

    return Observable(subscribe)


@same_type
@callbacks(takes="chunks")
def deferred_abort(
    abort: Callable[[], None] | None = None,
    *,
    stop: Observable[Any] | None = None,
    notified: Observable[Any] | None = None,
    defer: bool = True,
    call_soon: Callable[[Callable[[], None]], object] | None = None,
    on_step: Callable[[AbortStep], None] | None = None,
    scope: StreamScope | None = None,
) -> Hooks[Any, Any]:
    """
    Call *abort* once on a stop signal, deferred until the first token (rows A2 to A6).

    An abort before the first token would orphan a prefill peer's KV transfer. The stream itself
    continues: chunks pass through unchanged, and after the first token they bypass the operator.
    ``h`` has no tokens::

        source  -h---a-b-|
        stop    --s------|
        result  -h---a-b-|
        abort   -----!

    In a pipeline it takes all it needs from the scope of the stream.

    Args:
        abort: Called at most once, after both the signal and the first token. It must not raise,
            and should only start the work.
        stop: Emits when the request is to be aborted; may be a latched signal.
        notified: Emits when the first token is known to exist before its chunk arrives.
        defer: Whether to wait for the first token (row A3).
        call_soon: Calls a function in the event loop's next iteration, as ``loop.call_soon`` does.
            With it, a first token that is notified in the same iteration as a drop still wins (row
            A5).
        on_step: Called with each step of the abort; must not raise.
        scope: The scope of the stream; filled in by a pipeline.

    Raises:
        TypeError: Without a scope, *abort* or *stop* is missing; when the operator starts.

    Phase: chunks; part of the standard pipeline, after ``until_terminal``.
    Errors: source errors pass unchanged; no abort is made after one.
    On dispose: an abort that is still waiting for the first token is not made.

    >>> stop, chunks = Subject(), Subject()
    >>> gate = deferred_abort(lambda: print("abort"), stop=stop)
    >>> _ = chunks.pipe(gate).subscribe(lambda chunk: print(chunk.token_ids))
    >>> from rx_backend import LLMEngineOutput
    >>> stop.on_next(True)
    >>> chunks.on_next(LLMEngineOutput())
    []
    >>> chunks.on_next(LLMEngineOutput.token(7))
    abort
    [7]
    """
    if scope is not None:
        abort = abort or scope.abort
        stop = stop or scope.stopped
        notified = notified or scope.first_token
        defer = defer and notified is not None
        call_soon = call_soon or scope.call_soon
        on_step = on_step or scope.abort_step
    if abort is None or stop is None:
        raise TypeError("deferred_abort: expected abort and stop, or the scope of a pipeline")
    return _Gate(_Parts(abort, on_step or _ignore, call_soon), stop, notified, is_open=not defer)


class _Parts(NamedTuple):
    """What a gate needs of a scope, as separate values."""

    abort: Callable[[], None]
    abort_step: Callable[[AbortStep], None]
    call_soon: Callable[[Callable[[], None]], object] | None


def _ignore(_: AbortStep) -> None: ...


_FIRST_TOKEN = condition(HAS_CONTENT, once=True)


class _Gate(Hooks[Any, Any]):
    """One stream's gate, which opens at the first token; it only listens, as few streams are stopped."""

    __slots__ = (
        "_abort",
        "_is_interrupted",
        "_is_open",
        "_listening",
        "_notified",
        "_parts",
        "visit",
    )

    handles_end = True

    def __init__(
        self,
        parts: _Parts,
        stop: Observable[Any],
        notified: Observable[Any] | None,
        *,
        is_open: bool,
    ) -> None:
        self._parts = parts
        self._notified = notified
        self._is_open = is_open
        self.visit = None if is_open else _FIRST_TOKEN
        self._is_interrupted = False
        self._abort: _Abort | None = None
        self._listening = stop.subscribe(self._arm)

    def step(self, chunk: C) -> C:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Open the gate at the first token."""
        self._is_open = True
        if self._abort is not None:
            self._abort.opened.on_next(True)
        return chunk

    def on_interrupt(self, interrupted: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Record that a cancellation passes through the engine, or did not drop the stream."""
        self._is_interrupted = interrupted
        if self._abort is not None:
            self._abort.interrupt(interrupted=interrupted)

    def on_end(self, _failure: Exception | None, dropped: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Allow no abort from here on."""
        self._listening.dispose()
        # The subscription refers to the gate: deleting it here avoids a reference cycle.
        del self._listening
        if self._abort is not None:
            self._abort.end(dropped=dropped)

    def _arm(self, _: Any) -> None:
        if self._abort is None:
            self._abort = _Abort(self._parts, self._notified)
            if self._is_interrupted:
                self._abort.interrupt(interrupted=True)
            self._abort.start(is_open=self._is_open)


class _Waits(Enum):
    """What an abort waits for once the request is stopped."""

    FIRST_TOKEN = auto()
    CANCELLATION = auto()
    NOTHING = auto()


class _Cancellation(Enum):
    """
    What is known about a cancellation that passes through the engine.

    If it is the consumer's, the engine's clean-up must not open the gate (row A5); if the engine
    raised it itself, the stream survives it.
    """

    NONE = auto()
    IN_THIS_ITERATION = auto()
    IN_AN_EARLIER_ITERATION = auto()
    DROPPED_THE_STREAM = auto()


class _Abort:
    """
    The abort of a request that was stopped: an Rx composition of the stop, the gate and the end.

    Args:
        parts: The callbacks that it needs.
        notified: Emits when the first token is known to exist.

    Attributes:
        opened: The abort is safe from here on.
    """

    def __init__(self, parts: _Parts, notified: Observable[Any] | None) -> None:
        self._parts = parts
        self._notified = notified
        self._waits = _Waits.FIRST_TOKEN
        self._cancellation = _Cancellation.NONE
        self._step = AbortStep.CALLED_IMMEDIATELY
        self.opened: Subject[Any] = Subject()
        self._closed: Subject[Any] = Subject()

    def start(self, *, is_open: bool) -> None:
        """Abort now if *is_open*, else once the first token is notified."""
        self._parts.abort_step(AbortStep.REQUESTED)
        stop: Subject[Any] = Subject()
        abort_gate(stop, self.opened, self._closed).subscribe(self._fire)
        stop.on_next(True)
        if is_open:
            self.opened.on_next(True)
        elif self._notified is not None:
            notified = self._notified.pipe(ops.take_until(self._closed))
            notified.subscribe(self.opened.on_next)
        self._step = AbortStep.CALLED_AFTER_DEFERRAL

    def interrupt(self, *, interrupted: bool) -> None:
        """Hold the abort back while a cancellation passes through the engine."""
        if interrupted:
            self._cancellation = _Cancellation.IN_THIS_ITERATION
            if self._parts.call_soon is not None:
                # Before the engine's clean-up starts, perhaps in a task of the next iteration.
                self._parts.call_soon(self._end_iteration)
            return
        self._cancellation = _Cancellation.NONE
        if self._waits is _Waits.CANCELLATION:
            self._fire(True)

    def end(self, *, dropped: bool) -> None:
        """Allow no abort from here on; a first token in this iteration still wins over a drop."""
        call_soon = self._parts.call_soon
        if not dropped or call_soon is None:
            self._close()
        elif self._cancellation is _Cancellation.IN_THIS_ITERATION:
            self._cancellation = _Cancellation.DROPPED_THE_STREAM
        else:
            try:
                call_soon(self._close_after_iteration)
            except RuntimeError:
                # The event loop is closed: there is no further iteration.
                self._close()

    def _end_iteration(self) -> None:
        """Record that the iteration in which a cancellation came is over."""
        if self._cancellation is _Cancellation.DROPPED_THE_STREAM:
            self._close_after_iteration()
        elif self._cancellation is _Cancellation.IN_THIS_ITERATION:
            self._cancellation = _Cancellation.IN_AN_EARLIER_ITERATION

    def _close_after_iteration(self) -> None:
        """Close, unless the first token was notified in this iteration, from any thread."""
        if self._notified is not None:
            self._notified.subscribe(self.opened.on_next).dispose()
        self._close()

    def _close(self) -> None:
        self._closed.on_next(True)
        if self._waits is not _Waits.NOTHING:
            self._parts.abort_step(AbortStep.SUPPRESSED)

    def _fire(self, _: Any) -> None:
        if self._cancellation in {
            _Cancellation.IN_THIS_ITERATION,
            _Cancellation.IN_AN_EARLIER_ITERATION,
        }:
            self._waits = _Waits.CANCELLATION
            return
        self._waits = _Waits.NOTHING
        self._parts.abort()
        self._parts.abort_step(self._step)
