"""Operators: how one is written, and its life as a plain ``reactivex`` operator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from reactivex import Observable, abc
from reactivex.disposable import Disposable, SingleAssignmentDisposable

from operators._stage import Chain, Emission, Stage

__all__ = ("NotAnOperator", "Operator", "operator")

A = TypeVar("A")
B = TypeVar("B")
P = ParamSpec("P")


class NotAnOperator(TypeError):
    """A pipeline's list holds something that is no operator; names the place and the value."""


class Operator(Generic[A, B]):
    """
    One operator: fusable with its neighbours in a pipeline, and callable as a ``reactivex`` one.

    It is an immutable value without state: every subscription and every stream that it is used in
    starts its own generator.

    Attributes:
        name: Shown in errors and in ``repr``.
        start: Makes a new stage.
    """

    __slots__ = ("_arguments", "name", "start")

    def __init__(self, name: str, start: Callable[[], Stage[A, B]], arguments: str = "") -> None:
        self.name = name
        self.start = start
        self._arguments = arguments

    def __repr__(self) -> str:
        return f"{self.name}({self._arguments})"

    def __call__(self, source: Observable[A]) -> Observable[B]:
        """Apply the operator to an Observable, as in ``source.pipe(operator)``."""

        def subscribe(
            observer: abc.ObserverBase[B], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            return _Subscription(self, observer).run(source, scheduler)

        return Observable(subscribe)


def operator(function: Callable[P, Stage[A, B]]) -> Callable[P, Operator[A, B]]:
    """
    Turn a generator function into an operator; see :mod:`operators._stage` for what it can say.

    The function's arguments are the operator's. Its body runs anew for every subscription, so its
    local variables are the operator's state, and up to its first ``yield`` it is set-up.

    >>> import reactivex
    >>> @operator
    ... def pairwise_sum():
    ...     before = 0
    ...     item = yield
    ...     while True:
    ...         before, item = item, (yield before + item)
    >>> _ = reactivex.of(1, 2, 3).pipe(pairwise_sum()).subscribe(print)
    1
    3
    5
    """

    @functools.wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> Operator[A, B]:
        arguments = [repr(arg) for arg in args]
        arguments += [f"{name}={value!r}" for name, value in kwargs.items()]
        return Operator(
            function.__name__, lambda: function(*args, **kwargs), ", ".join(arguments)
        )

    return make


class _Subscription(Generic[A, B]):
    """One subscription of one operator: a chain of a single stage between two Observables."""

    __slots__ = ("_chain", "_observer", "_upstream")

    def __init__(self, operator: Operator[A, B], observer: abc.ObserverBase[B]) -> None:
        self._observer = observer
        self._chain = Chain([(operator.name, operator.start)])
        self._upstream = SingleAssignmentDisposable()

    def run(
        self, source: Observable[A], scheduler: abc.SchedulerBase | None
    ) -> abc.DisposableBase:
        self._upstream.disposable = source.subscribe(
            self._next, self._error, self._completed, scheduler=scheduler
        )
        return Disposable(self._dispose)

    def _next(self, item: Any) -> None:
        chain = self._chain
        if chain.ended:
            return
        step, condition = chain.steps[0], chain.conditions[0]
        try:
            if step is not None and (condition is None or condition.holds(item)):
                item = step(item)
        except BaseException as error:
            chain.interrupted(error, 0)
        else:
            if chain.ended:
                # Disposed from within its own step.
                chain.close()
                return
            if type(item) is not Emission:
                self._observer.on_next(item)
                return
            chain.emitted(0, item)
        self._deliver()

    def _error(self, error: Exception) -> None:
        if not self._chain.ended:
            self._chain.fail(error)
            self._deliver()

    def _completed(self) -> None:
        if not self._chain.ended:
            self._chain.complete()
            self._deliver()

    def _deliver(self) -> None:
        chain = self._chain
        ended = chain.ended
        if ended:
            self._upstream.dispose()
        while chain.out:
            self._observer.on_next(chain.out.popleft())
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
        self._chain.out.clear()
        self._chain.close()
        self._upstream.dispose()
