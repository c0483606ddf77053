"""Operators: how one is written, and its life as a plain ``reactivex`` operator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Generic, ParamSpec, TypeVar

from reactivex import Observable, abc
from reactivex.disposable import Disposable, SingleAssignmentDisposable

from operators._chain import Chain, leave_frame
from operators._stage import Emission, Hooks, Stage

__all__ = ("NotAnOperator", "Operator", "operator", "stateless")

A = TypeVar("A")
B = TypeVar("B")
P = ParamSpec("P")


class NotAnOperator(TypeError, ValueError):
    """A pipeline's list holds something that is no operator; names the place and the value."""


class Operator(Generic[A, B]):
    """
    One operator: fusable with its neighbours in a pipeline, and callable as a ``reactivex`` one.

    It is an immutable value without state: every subscription and every stream that it is used in
    starts its own generator.

    Args:
        function: The generator function that is the operator's body.
        args: Its arguments.
        kwargs: Its arguments by name.
        hooks: What *function* gives, where that has no state and serves every stream.
    """

    __slots__ = ("_args", "_function", "_hooks", "_kwargs")

    def __init__(
        self,
        function: Callable[..., Stage[A, B] | Hooks[A, B]],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] = MappingProxyType({}),
        hooks: Hooks[A, B] | None = None,
    ) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._hooks = hooks

    @property
    def name(self) -> str:
        """Shown in errors and in ``repr``."""
        return self._function.__name__

    def start(self) -> Stage[A, B] | Hooks[A, B]:
        """Make a new stage."""
        if self._hooks is not None:
            return self._hooks
        return self._function(*self._args, **self._kwargs)

    def __repr__(self) -> str:
        arguments = [repr(value) for value in self._args]
        arguments += [f"{name}={value!r}" for name, value in self._kwargs.items()]
        return f"{self.name}({', '.join(arguments)})"

    def __call__(self, source: Observable[A]) -> Observable[B]:
        """Apply the operator to an Observable, as in ``source.pipe(operator)``."""

        def subscribe(
            observer: abc.ObserverBase[B], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            return _Subscription(self, observer).run(source, scheduler)

        return Observable(subscribe)


def operator(function: Callable[P, Stage[A, B] | Hooks[A, B]]) -> Callable[P, Operator[A, B]]:
    """
    Turn a generator function into an operator.

    The function's arguments are the operator's. Its body runs anew for every subscription, so its
    local variables are the operator's state, and what comes before its first ``yield`` is set-up.
    It receives an item at ``yield`` and yields what comes out::

        item = yield            # the first item
        while True:
            item = yield change(item)

    - ``yield out`` hands out one item, and ``yield emit(a, b)`` several, ``yield emit()`` none.
    - ``return out`` (or ``return``) ends the stream, with ``out`` (or nothing) as its last item.
    - The end arrives at the ``yield``: as :class:`Completed` when the source is through, as the
      source's exception when it failed, as ``GeneratorExit`` when the stream was dropped or an
      operator behind ended it. What is yielded or returned there still goes out, as the last item,
      and a failure ends there; ``finally`` releases in all cases.

    An operator that has nothing to do for most items says so, and costs them next to nothing. These
    may be yielded before the first item too, without an ``out``:

    - ``yield bypass(out)`` hands out ``out`` and steps aside: later items don't visit it, but the
      end still arrives here. ``return bypass(out)`` steps aside for good.
    - ``yield apply(function, out)`` does the same, and sends later items through *function*.
    - ``yield visit_if(condition, out)``: of later items only those visit for which *condition*, an
      expression over ``item``, is true.

    A function that gives :class:`Hooks` instead of being a generator is cheaper still.

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
        return Operator(function, args, kwargs)

    return make


def stateless(function: Callable[P, Hooks[A, B]]) -> Callable[P, Operator[A, B]]:
    """
    Turn a function that gives hooks without state into an operator.

    Like :func:`operator`, but the function runs once, when the operator is made, and its hooks
    serve every stream: setting one up costs next to nothing.

    >>> import reactivex
    >>> from operators import Hooks
    >>> @stateless
    ... def doubled():
    ...     return Hooks(lambda item: item * 2)
    >>> _ = reactivex.of(1, 2).pipe(doubled()).subscribe(print)
    2
    4
    """

    @functools.wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> Operator[A, B]:
        return Operator(function, args, kwargs, function(*args, **kwargs))

    return make


class _Subscription(Generic[A, B]):
    """One subscription of one operator: a chain of a single stage between two Observables."""

    __slots__ = ("_chain", "_observer", "_upstream")

    def __init__(self, operator: Operator[A, B], observer: abc.ObserverBase[B]) -> None:
        self._observer = observer
        self._chain = Chain([operator])
        self._upstream = SingleAssignmentDisposable()

    def run(self, source: Observable[A], scheduler: abc.SchedulerBase | None) -> abc.DisposableBase:
        if self._chain.ended:
            # It returned before its first yield.
            self._deliver()
            return Disposable()
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
                if condition is not None and condition.expression.once:
                    chain.steps[0] = None
                item = step(item)
        except BaseException as error:
            leave_frame(error)
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
        self._chain.out.clear()
        self._chain.close()
        self._upstream.dispose()
