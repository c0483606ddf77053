"""Operators: how one is written, and its life as a plain ``reactivex`` operator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from reactivex import Observable, abc

from operators._core.fusion import FusedRun
from operators._core.plain import subscribe_here, subscribe_in_task
from operators._core.pulled import PulledSegment
from operators._core.stage import Awaited, Emission, Hooks, Stage

__all__ = ("NotAnOperator", "Operator", "PullingOperator", "operator", "pulling", "stateless")

A = TypeVar("A")
B = TypeVar("B")
P = ParamSpec("P")


class NotAnOperator(TypeError, ValueError):
    """A pipeline's list holds something that is no operator; names the place and the value."""


class Operator(Generic[A, B]):
    """
    One operator: fusable with its neighbours in a pipeline, and callable as a ``reactivex`` one.

    It is an immutable value without state: every subscription and every stream that it is used in
    starts its own body.

    Args:
        function: Gives the operator's body.
        args: Its arguments.
        kwargs: Its arguments by name.
        body: What *function* gives, where that has no state and serves every stream.

    Attributes:
        name: Shown in errors and in ``repr``.
    """

    __slots__ = ("_args", "_body", "_function", "_kwargs", "name")

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] = MappingProxyType({}),
        body: Hooks[A, B] | Awaited[A, B] | None = None,
    ) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._body = body
        self.name = function.__name__

    @property
    def awaits(self) -> bool:
        """Whether it is an asynchronous step: awaited for each item, within its fused run."""
        return isinstance(self._body, Awaited)

    def start(self) -> Stage[A, B] | Hooks[A, B] | Awaited[A, B]:
        """Make a new stage."""
        if self._body is not None:
            return self._body
        return self._function(*self._args, **self._kwargs)

    def __repr__(self) -> str:
        arguments = [repr(value) for value in self._args]
        arguments += [f"{name}={value!r}" for name, value in self._kwargs.items()]
        return f"{self.name}({', '.join(arguments)})"

    def __call__(self, source: Observable[A]) -> Observable[B]:
        """
        Apply the operator to an Observable, as in ``source.pipe(operator)``.

        An asynchronous one runs in a task of the event loop that runs when it is subscribed to.
        """

        def subscribe(
            observer: abc.ObserverBase[B], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            if self.awaits:
                return subscribe_in_task(self._run, source, observer, scheduler)
            return subscribe_here(self, source, observer, scheduler)

        return Observable(subscribe)

    def _run(self, source: AsyncIterator[Any]) -> FusedRun[B]:
        return FusedRun(source, [self])


class PullingOperator(Operator[A, B]):
    """An operator that pulls its source itself: its body is an asynchronous generator."""

    __slots__ = ()

    def generate(self, source: FusedRun[A]) -> AsyncGenerator[B]:
        """Make a new generator."""
        return self._function(source, *self._args, **self._kwargs)

    def __call__(self, source: Observable[A]) -> Observable[B]:
        """Apply the operator to an Observable, in a task of the running event loop."""

        def subscribe(
            observer: abc.ObserverBase[B], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            return subscribe_in_task(self._run, source, observer, scheduler)

        return Observable(subscribe)

    def _run(self, source: AsyncIterator[Any]) -> FusedRun[B]:
        return FusedRun(PulledSegment(FusedRun(source, []), self.generate), [])


@overload
def operator(
    function: Callable[Concatenate[FusedRun[A], P], AsyncIterator[B | Emission]],
) -> Callable[P, Operator[A, B]]: ...
@overload
def operator(
    function: Callable[P, Stage[A, B] | Hooks[A, B]],
) -> Callable[P, Operator[A, B]]: ...
def operator(function: Callable[..., Any]) -> Callable[..., Operator[Any, Any]]:
    """
    Turn a generator function, or an asynchronous generator function, into an operator.

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

    An operator that has to do with time or with the pull itself is an asynchronous generator over
    its source, which is its first argument; the operator's arguments are the others::

        async for item in source:
            yield item

    It is no longer fused with its neighbours, and costs a few calls per item. Source and generator
    are closed at the end, however it comes. Besides pulling it, the generator may ``close()`` its
    source at any moment, also while it waits for it: the pull then ends without an item. ``yield
    last(item)`` hands out the last item and says so; ``yield bypass(item)`` steps aside, so that
    later items come from the source at once.

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
    if inspect.isasyncgenfunction(function):
        return pulling(function)

    @functools.wraps(function)
    def make(*args: Any, **kwargs: Any) -> Operator[Any, Any]:
        return Operator(function, args, kwargs)

    return make


def pulling(
    function: Callable[Concatenate[FusedRun[A], P], AsyncIterator[B]],
) -> Callable[P, Operator[A, B]]:
    """Like :func:`operator` for an asynchronous generator; *function* may give any iterator."""

    @functools.wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> Operator[A, B]:
        return PullingOperator(function, args, kwargs)

    # The source is no argument of the operator.
    signature = inspect.signature(function)
    arguments = list(signature.parameters.values())[1:]
    cast("Any", make).__signature__ = signature.replace(parameters=arguments)
    return make


def stateless(
    function: Callable[P, Hooks[A, B] | Awaited[A, B]],
) -> Callable[P, Operator[A, B]]:
    """
    Turn a function that gives :class:`Hooks` without state, or :class:`Awaited`, into an operator.

    Like :func:`operator`, but the function runs once, when the operator is made, and what it gives
    serves every stream: setting one up costs next to nothing.

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
