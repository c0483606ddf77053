"""Any ``aioreactive`` operators as a segment of a pulled pipeline."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import reactivex

from operators._core.aio_inbox import TURNS, AioInbox, SubscribesAsync
from operators._core.foreign import ForeignSegment, kind_of
from operators._core.naming import home_of, name_of
from operators._core.own_copy import own_copy
from operators._core.tasks import weak_callback

if TYPE_CHECKING:
    from aioreactive import AsyncDisposable, AsyncObserver

__all__ = ("AioOperator", "AioSegment", "is_aio_operator")

_AT_ONCE = frozenset(
    (  # noqa: SIM905 - as a list it would take a page
        "choose choose_async filter filter_async map map_async scan starfilter starmap "
        "starmap_async"
    ).split()
)

AioOperator: TypeAlias = Callable[[Any], SubscribesAsync[Any]]
"""An ``aioreactive`` operator: a function from AsyncObservable to AsyncObservable."""


def is_aio_operator(operator: Callable[..., Any]) -> bool:
    """
    Return whether something callable in a list is an ``aioreactive`` operator.

    If the name of its module does not decide, it is applied to an empty stream, first of
    ``reactivex`` and then, if the result is no Observable, of ``aioreactive``. An operator that
    returns its argument counts as ``reactivex``.
    """
    if "aioreactive" not in sys.modules or inspect.iscoroutinefunction(operator):
        return False
    package = (getattr(operator, "__module__", None) or "").partition(".")[0]
    if package in {"operators", "reactivex"}:
        return False
    kind = _kind_after(operator, _NEVER) or _kind_after(operator, async_observable(_never))
    return kind == "AsyncObservable"


def async_observable(subscribe: Callable[[AsyncObserver[Any]], Any]) -> SubscribesAsync[Any]:
    """Return an AsyncObservable with operators as methods, which user operators may need."""
    from aioreactive import AsyncAnonymousObservable, AsyncRx  # noqa: PLC0415 - who has operators has it

    return AsyncRx(AsyncAnonymousObservable[Any](subscribe))


def _kind_after(operator: Callable[..., Any], source: object) -> str | None:
    try:
        return kind_of(operator(source))
    except Exception:
        return None


async def _never(observer: object) -> None: ...


_NEVER = reactivex.never()


class AioSegment(ForeignSegment[AioInbox]):
    """
    Adjacent ``aioreactive`` operators, subscribed to at the first pull.

    They receive an item through their ``asend``, which is awaited. Operators that don't emit within
    it pass items to tasks of their own, so a task pulls for them: once for each pull of the
    consumer, and again if an item has produced nothing for some iterations of the loop. Their
    ``asend`` to us returns while at most one item waits; further items wait in their mailboxes.
    """

    library = "aioreactive"

    @staticmethod
    def answers_at_once(operator: AioOperator) -> bool:
        """Return whether it is one that emits within ``asend``; others may have a task of their own."""
        return home_of(operator) == "aioreactive.transform" and name_of(operator) in _AT_ONCE

    def _observable(self) -> SubscribesAsync[Any]:
        # The library's tasks keep references to these.
        subscribed, unsubscribed = (
            weak_callback(self._subscribed),
            weak_callback(self._unsubscribed),
        )

        async def unsubscribe() -> None:
            unsubscribed()

        async def subscribe(observer: AsyncObserver[Any]) -> AsyncDisposable:
            from aioreactive import AsyncDisposable  # noqa: PLC0415 - who has operators has it

            subscribed(observer)
            return AsyncDisposable.create(unsubscribe)

        return async_observable(subscribe)

    def _receive(self, observable: SubscribesAsync[Any]) -> None:
        # Most operators don't unsubscribe from their source at the end.
        self._inbox = AioInbox(observable, lead=-1, on_end=weak_callback(self._unsubscribed))

    async def _feed(self, item: Any) -> None:
        if self._observer is not None:
            try:
                await self._observer.asend(own_copy(item))
            except Exception as error:
                # The library's own sources also pass an operator's exception on as a failure.
                ending = self._source_ended(error)
                if ending is not None:
                    await ending
        if self._pump is None or self.source.ended:
            # The end follows with the last item.
            return
        for _ in range(TURNS):
            if not self._inbox.is_awaited:
                return
            await asyncio.sleep(0)
        self._demand_more()

    async def _tell_end(self, observer: AsyncObserver[Any], failure: Exception | None) -> None:
        try:
            await (observer.aclose() if failure is None else observer.athrow(failure))
        except Exception as error:
            self._inbox.end(error)
