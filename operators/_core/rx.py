"""Any ``reactivex`` operators as a segment of a pulled pipeline."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sized
from functools import partial
from typing import Any, TypeAlias

from reactivex import Observable, abc, typing
from reactivex.disposable import Disposable, SingleAssignmentDisposable
from reactivex.scheduler import CurrentThreadScheduler

from operators._core.foreign import ForeignSegment
from operators._core.inbox import RxInbox
from operators._core.loop_scheduler import LoopScheduler
from operators._core.naming import home_of
from operators._core.own_copy import own_copy
from operators._core.tasks import weak_callback

__all__ = ("RxOperator", "RxSegment")

RxOperator: TypeAlias = Callable[[Observable[Any]], Observable[Any]]

# Stock operators that act only within their source's signals.
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


# How many items may wait before an operator's timers pause for the consumer.
_ROOM = 64
# How many items pushed by an operator on its own may wait before the stream fails.
_LIMIT = 4096


class _SegmentScheduler(LoopScheduler):
    """
    Timers on the event loop; work that is due now runs at once, as without a scheduler.

    A timer that is due while too many items wait is deferred until the consumer has taken some: the
    operator's clock pauses for the client.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        # The items that wait for the consumer.
        self.waiting: Sized = ()
        self._deferred: deque[Callable[[], None]] = deque()

    def schedule(self, action: abc.ScheduledAction[Any], state: Any = None) -> abc.DisposableBase:
        return CurrentThreadScheduler.singleton().schedule(action, state)

    def schedule_relative(
        self,
        duetime: typing.RelativeTime,
        action: abc.ScheduledAction[Any],
        state: Any = None,
    ) -> abc.DisposableBase:
        def when_due(_: abc.SchedulerBase, state: Any = None) -> abc.DisposableBase:
            result = SingleAssignmentDisposable()
            self._run(action, state, result)
            return result

        if self.to_seconds(duetime) <= 0.0:
            # Still a timer: a periodic one of zero length would never release the thread.
            return super().schedule(when_due, state)
        return super().schedule_relative(duetime, when_due, state)

    def _run(
        self, action: abc.ScheduledAction[Any], state: Any, result: SingleAssignmentDisposable
    ) -> None:
        if result.is_disposed:
            return
        if len(self.waiting) >= _ROOM:
            self._deferred.append(partial(self._run, action, state, result))
            return
        result.disposable = self.invoke_action(action, state)

    def resume(self) -> None:
        """Schedule the deferred timers: the consumer has taken an item."""
        if self._deferred and len(self.waiting) < _ROOM:
            deferred, self._deferred = self._deferred, deque()
            for run in deferred:
                self._loop.call_soon(run)


class RxSegment(ForeignSegment[RxInbox]):
    """
    Adjacent ``reactivex`` operators, applied as in ``source.pipe(*operators)``.

    If they are detached, an operator may emit from a timer or another stream at any time. While
    such items wait, each pull of the consumer also allows one pull of the source (row S4), so that
    a fast timer does not starve the source.
    """

    library = "reactivex"

    @staticmethod
    def answers_at_once(operator: RxOperator) -> bool:
        """Return whether it is a stock operator listed here; any other may emit on its own."""
        return home_of(operator) in _AT_ONCE

    def _observable(self) -> Observable[Any]:
        # A timer keeps a reference to its operator's source.
        subscribed, unsubscribed = (
            weak_callback(self._subscribed),
            weak_callback(self._unsubscribed),
        )

        def subscribe(
            observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            subscribed(observer)
            return Disposable(unsubscribed)

        return Observable(subscribe)

    def _receive(self, observable: Observable[Any]) -> None:
        self._scheduler = _SegmentScheduler(asyncio.get_running_loop())
        self._inbox = RxInbox(observable, self._scheduler, limit=_LIMIT, name=self.name)
        self._scheduler.waiting = self._inbox
        self._tell(self._inbox.open)

    def _taken(self) -> None:
        self._scheduler.resume()

    def _feed(self, item: Any) -> Awaitable[None] | None:
        if self._observer is None:
            return None
        self._tell(self._observer.on_next, own_copy(item))
        if self._inbox.is_remote:
            return self._wait_for_threads()
        self._demand_more()
        return None

    async def _wait_for_threads(self) -> None:
        # Items that the operator emits on another thread arrive through the loop.
        await asyncio.sleep(0)
        self._demand_more()

    def _tell_end(self, observer: abc.ObserverBase[Any], failure: Exception | None) -> None:
        if failure is None:
            self._tell(observer.on_completed)
        else:
            self._tell(observer.on_error, failure)

    def _tell(self, signal: Callable[..., object], *arguments: Any) -> None:
        """Send the operators a signal; items that they emit meanwhile count as requested."""
        self._inbox.is_fed = True
        try:
            signal(*arguments)
        except Exception as error:
            self._inbox.end(error)
        finally:
            self._inbox.is_fed = False
