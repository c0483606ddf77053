"""Any ``reactivex`` operators as a part of a pulled pipeline, and what they mean for the pull."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, cast

from reactivex import Observable, abc, typing
from reactivex.disposable import Disposable, SingleAssignmentDisposable
from reactivex.scheduler import CurrentThreadScheduler

from operators._core.failures import nothing_due
from operators._core.foreign import ForeignSegment, applied_all
from operators._core.inbox import RxInbox
from operators._core.loop_scheduler import LoopScheduler
from operators._core.mailbox import Mailbox
from operators._core.naming import home_of
from operators._core.operator import NotAnOperator, Operator
from operators._core.pump import Pump
from operators._core.tasks import weakly

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
    Return whether a ``reactivex`` operator emits only while it is handed a signal of its source.

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


# How many items may wait before the timers of an operator wait for the consumer.
_ROOM = 64
# How many may wait that an operator pushes on its own, before the stream fails.
_LIMIT = 4096


class _SegmentScheduler(LoopScheduler):
    """
    Timers on the event loop; work that is due at once at once, as without a scheduler.

    A timer that is due while the consumer has enough to take waits until it has taken some: the
    operator's clock waits for the client.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.mailbox: Mailbox[Any] = Mailbox()
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
            # A timer still: a periodic one of no length would never let go of the thread.
            return super().schedule(when_due, state)
        return super().schedule_relative(duetime, when_due, state)

    def _run(
        self, action: abc.ScheduledAction[Any], state: Any, result: SingleAssignmentDisposable
    ) -> None:
        if result.is_disposed:
            return
        if len(self.mailbox) >= _ROOM:
            self._deferred.append(partial(self._run, action, state, result))
            return
        result.disposable = self.invoke_action(action, state)

    def resume(self) -> None:
        """Run the timers that waited, soon: the consumer has taken an item."""
        if self._deferred and len(self.mailbox) < _ROOM:
            deferred, self._deferred = self._deferred, deque()
            for run in deferred:
                self._loop.call_soon(run)


class RxSegment(ForeignSegment[abc.ObserverBase[Any], RxInbox]):
    """
    Neighbouring ``reactivex`` operators between two parts of a pulled pipeline.

    Operators that answer at once are fed within the consumer's pull, until an item comes out. If
    one of them does not, all are detached: a task pulls the source while the consumer waits and
    nothing has come out, so that an operator may emit from a timer or another stream at any moment.
    Where such items wait, each pull of the consumer permits one of the source (row S4): a timer
    faster than the consumer keeps nobody from the source.

    Args:
        source: The part before this one.
        operators: The operators, applied as by ``source.pipe(*operators)``.
        where: What the list is called, and the place of the first, for errors.
        context: The context that whoever pulls is in; the task pulls in it too.

    Raises:
        NotAnOperator: An operator gives no Observable, or can't be applied at all.
    """

    __slots__ = ("_scheduler",)

    def __init__(
        self,
        source: Any,
        operators: Sequence[RxOperator],
        where: tuple[str, int] = ("pipeline", 0),
        context: contextvars.Context | None = None,
    ) -> None:
        super().__init__(source, operators)
        # A timer refers to what its operator has subscribed to, but keeps no lost stream alive.
        subscribed, unsubscribed = weakly(self._subscribed), weakly(self._unsubscribed)

        def subscribe(
            observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            subscribed(observer)
            return Disposable(unsubscribed)

        observable = applied_all(applied, operators, Observable(subscribe), where)
        if not all(map(answers_at_once, operators)):
            self._pump = Pump(source, self._feed, self._source_ended, context)
        self._scheduler = _SegmentScheduler(asyncio.get_running_loop())
        self._inbox = RxInbox(observable, self._scheduler, limit=_LIMIT, name=self._names)
        self._scheduler.mailbox = self._inbox.mailbox
        self._inbox.is_fed = True
        self._inbox.open()
        self._inbox.is_fed = False

    async def __anext__(self) -> Any:
        inbox, mailbox = self._inbox, self._inbox.mailbox
        if self._pump is None:
            while not len(mailbox) and not mailbox.is_closed and self._observer is not None:
                await self._pull()
        elif not len(mailbox) or inbox.is_ahead:
            self._demand()
        item = mailbox.take() if len(mailbox) else await inbox.pull()
        self._scheduler.resume()
        if item is None:
            raise nothing_due()
        return item

    async def _pull(self) -> None:
        try:
            item = await anext(self._source)
        except StopAsyncIteration:
            self._source_ended(None)
        except Exception as error:
            self._source_ended(error)
        else:
            self._feed(item)
            if self._source.ended:
                self._source_ended(None)

    def _feed(self, item: Any) -> Awaitable[None] | None:
        if self._observer is None:
            return None
        self._inbox.is_fed = True
        try:
            self._observer.on_next(item)
        except Exception as error:
            self._inbox.end(error)
        finally:
            self._inbox.is_fed = False
        if self._inbox.is_remote:
            return self._wait_for_threads()
        self._demand_more()
        return None

    async def _wait_for_threads(self) -> None:
        # What the operator emits on another thread comes by the loop.
        await asyncio.sleep(0)
        self._demand_more()

    def _source_ended(self, failure: BaseException | None) -> None:
        observer, self._observer = self._observer, None
        if failure is not None and not isinstance(failure, Exception):
            # Cancellation and the like are no signal that an operator may turn into items.
            self._inbox.end(failure)
        elif observer is not None:
            self._inbox.is_fed = True
            try:
                if failure is None:
                    observer.on_completed()
                else:
                    observer.on_error(failure)
            except Exception as error:
                self._inbox.end(error)
            finally:
                self._inbox.is_fed = False

    def _on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        self._inbox.call_on_loop(function, *arguments)

    def _unsubscribed(self) -> None:
        """Note that the operators have left the source, in whatever thread."""
        self._on_loop(self._leave_source)
