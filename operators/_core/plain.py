"""An operator as a plain ``reactivex`` one, between two Observables."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from reactivex import Observable, abc
from reactivex.disposable import Disposable, SingleAssignmentDisposable

from operators._core.chain import Chain
from operators._core.fusion import FusedRun
from operators._core.pushing import push_in_task
from operators._core.sources import ObservableSource
from operators._core.stages import StageFactory
from operators._core.tasks import running_loop

__all__ = ("Subscription", "subscribe_in_task")


def subscribe_in_task(
    make: Callable[[AsyncIterator[Any]], FusedRun[Any]],
    source: Observable[Any],
    observer: abc.ObserverBase[Any],
    scheduler: abc.SchedulerBase | None,
) -> abc.DisposableBase:
    """Run the stream that *make* makes of *source* in a task of the running event loop."""
    loop = running_loop()
    if loop is None:
        observer.on_error(
            RuntimeError("an asynchronous operator needs a running event loop to be subscribed to")
        )
        return Disposable()
    items = ObservableSource(source, scheduler=scheduler)
    run = make(items)
    items.open()
    return push_in_task(run, observer, loop)


class Subscription:
    """One subscription of one operator: a chain of a single stage between two Observables."""

    def __init__(self, operator: StageFactory, observer: abc.ObserverBase[Any]) -> None:
        self._observer = observer
        self._chain = Chain([operator])
        self._upstream = SingleAssignmentDisposable()
        self._is_disposed = False

    def run(
        self, source: Observable[Any], scheduler: abc.SchedulerBase | None
    ) -> abc.DisposableBase:
        """Run the operator on the signals of *source*."""
        if self._chain.has_ended:
            # The operator returned before its first yield.
            self._deliver()
            return Disposable()
        chain = self._chain
        self._upstream.disposable = source.subscribe(
            partial(self._receive, chain.push),
            partial(self._receive, chain.fail),
            partial(self._receive, chain.complete),
            scheduler=scheduler,
        )
        return Disposable(self._dispose)

    def _receive(self, signal: Callable[..., None], *arguments: Any) -> None:
        if not self._chain.has_ended:
            signal(*arguments)
            self._deliver()

    def _deliver(self) -> None:
        chain = self._chain
        if self._is_disposed:
            # Disposed of within its own step: the stage can be closed only now.
            self._dispose()
            return
        ended = chain.has_ended
        if ended:
            self._upstream.dispose()
        while chain.out:
            self._observer.on_next(chain.out.pop(0))
        if not ended:
            return
        error = chain.error
        if error is None:
            self._observer.on_completed()
        elif isinstance(error, Exception):
            self._observer.on_error(error)
        else:
            raise error

    def _dispose(self) -> None:
        self._is_disposed = True
        self._chain.out.clear()
        self._chain.close_stages()
        self._upstream.dispose()
