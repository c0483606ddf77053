"""Any ``reactivex`` operator as a part of a pulled pipeline, and what it means for the pull."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, cast

from reactivex import Observable, abc, typing
from reactivex.disposable import Disposable
from reactivex.scheduler import CurrentThreadScheduler

from operators._core.foreign import ForeignSegment
from operators._core.loop_scheduler import LoopScheduler
from operators._core.naming import home_of
from operators._core.operator import NotAnOperator, Operator

__all__ = ("RxOperator", "RxSegment", "answers_at_once", "applied")

RxOperator: TypeAlias = Callable[[Observable[Any]], Observable[Any]]

# Stock operators that do all they do within their source's own signals.
_AT_ONCE = frozenset(
    f"reactivex.operators._{name}"
    for name in (  # noqa: SIM905 - as a list it would take a page
        "all average contains count defaultifempty dematerialize distinct distinctuntilchanged do "
        "elementatordefault filter first firstordefault ignoreelements isempty last lastordefault "
        "map materialize max maxby min minby pairwise pluck reduce scan single singleordefault skip "
        "skiplast skipwhile some startswith sum take takelast takelastbuffer takewhile todict "
        "toiterable toset zipwithiterable"
    ).split()
)


def answers_at_once(operator: RxOperator) -> bool:
    """
    Whether a ``reactivex`` operator emits only while it is handed a signal of its source.

    Known of the stock operators named here, asked of the function's home module. Any other one
    may emit from a timer or another stream, so it is taken to be detached from the pull.
    """
    return home_of(operator) in _AT_ONCE


def applied(operator: RxOperator, source: Observable[Any], where: str) -> Observable[Any]:
    """
    Apply a ``reactivex`` operator.

    Raises:
        NotAnOperator: It gives no Observable, or can't be applied at all; names *where*.
    """
    try:
        result = cast("object", operator(source))
    except Exception as error:
        hint = "; is a call's () missing?" if hasattr(operator, "__wrapped__") else ""
        raise NotAnOperator(
            f"{where} is no operator: {operator!r} can't be applied to an Observable: "
            f"{type(error).__name__}: {error}{hint}"
        ) from error
    if isinstance(result, abc.ObservableBase):
        return cast("Observable[Any]", result)
    hint = "; is a call's () missing?" if isinstance(result, Operator) else ""
    raise NotAnOperator(
        f"{where} is no operator: applied to an Observable it gave "
        f"{type(cast('object', result)).__name__}, expected an Observable{hint}"
    )


class _SegmentScheduler(LoopScheduler):
    """Timers on the event loop; work that is due at once at once, as without a scheduler."""

    def schedule(self, action: abc.ScheduledAction[Any], state: Any = None) -> abc.DisposableBase:
        return CurrentThreadScheduler.singleton().schedule(action, state)

    def schedule_relative(
        self,
        duetime: typing.RelativeTime,
        action: abc.ScheduledAction[Any],
        state: Any = None,
    ) -> abc.DisposableBase:
        if self.to_seconds(duetime) <= 0.0:
            # A timer still: a periodic one of no length would never let go of the thread.
            return super().schedule(action, state)
        return super().schedule_relative(duetime, action, state)


class RxSegment(ForeignSegment):
    """
    A ``reactivex`` operator between two parts of a pulled pipeline.

    Args:
        source: The part before this one.
        operator: The operator.
        where: Its place, for errors.
        context: The context that whoever pulls is in; the task pulls in it too.

    Raises:
        NotAnOperator: *operator* gives no Observable, or can't be applied at all.
    """

    __slots__ = ("_elsewhere", "_observer", "_subscribed", "_subscription", "_thread")

    def __init__(
        self,
        source: Any,
        operator: RxOperator,
        where: str,
        context: contextvars.Context | None = None,
    ) -> None:
        super().__init__(source, context, detached=not answers_at_once(operator))
        self._thread = threading.get_ident()
        self._elsewhere = False
        self._observer: abc.ObserverBase[Any] | None = None
        self._subscribed = False
        self._subscription: abc.DisposableBase = Disposable()
        result = applied(operator, Observable(self._subscribe_source), where)
        self._subscription = result.subscribe(
            self._on_next,
            self._on_error,
            self._on_completed,
            scheduler=_SegmentScheduler(self._loop),
        )

    def _more(self) -> Awaitable[None]:
        if self._observer is not None:
            if not self._detached:
                return self._pull()
            self._start_pump()
        return self._wait()

    async def _pull_on_demand(self) -> None:
        while True:
            await self._demand.wait()
            if self._observer is None or self._done:
                return
            await self._pull()
            if self._elsewhere:
                # What the operator emitted on another thread comes by the loop.
                await asyncio.sleep(0)

    async def _pull(self) -> None:
        try:
            item = await anext(self._source)
        except StopAsyncIteration:
            if self._observer is not None:
                self._observer.on_completed()
        except Exception as error:
            if self._observer is not None:
                self._observer.on_error(error)
        else:
            if self._observer is not None:
                self._observer.on_next(item)
            if self._observer is not None and self._source.ended:
                self._observer.on_completed()

    def _subscribe_source(
        self, observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        if self._subscribed:
            # The operator isn't told: one that tries again on an error would do so for ever.
            self._on_error(RuntimeError("a token stream can be subscribed to only once"))
            return Disposable()
        self._subscribed = True
        self._observer = observer
        # The consumer may have begun to wait already.
        self._here(self._wake_pump, None)
        return Disposable(lambda: self._here(self._leave_source, None))

    def _wake_pump(self, _: None) -> None:
        if self._waiter is not None:
            self._start_pump()

    def _leave_source(self, _: None) -> None:
        """The operator wants no more of its source."""
        self._observer = None
        # A pull that is under way unwinds by this; the task that waits in it ends with it.
        self._source.close()
        self._demand.set()

    def _on_next(self, item: Any) -> None:
        self._here(self._take, item)

    def _on_error(self, error: Exception) -> None:
        self._here(self._end, error)

    def _on_completed(self) -> None:
        self._here(self._end, None)

    def _here(self, function: Callable[[Any], None], argument: Any) -> None:
        """Call on the loop's thread; an operator may emit on a thread of its own scheduler."""
        if threading.get_ident() == self._thread:
            function(argument)
        elif not self._loop.is_closed():
            self._elsewhere = True
            self._loop.call_soon_threadsafe(function, argument)

    def _take(self, item: Any) -> None:
        if not self._done:
            self._out.append(item)
            self._wake()

    def close(self) -> None:
        """Drop: the operator's subscription, the source and the task that pulls it. Idempotent."""
        self._done = True
        self._out.clear()
        self._subscription.dispose()
        self._wake()
        self._leave_source(None)

    async def aclose(self) -> None:
        """Drop, and wait until the source is released."""
        self.close()
        if self._pump is not None:
            await asyncio.wait([self._pump])
        await self._source.aclose()
