"""Operators: how to write one, and its use as a plain ``reactivex`` operator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Final,
    Generic,
    Literal,
    ParamSpec,
    TypeAlias,
    TypeVar,
    cast,
    get_args,
    overload,
)

from reactivex import Observable, abc

from operators._core.arguments import check_arguments, described
from operators._core.fusion import FusedRun
from operators._core.plain import Subscription, subscribe_in_task
from operators._core.pulled_segment import PulledSegment
from operators._core.stage import Hooks, Stage, StageResult

__all__ = (
    "SCOPE",
    "NotAnOperator",
    "OnWholeStreams",
    "Operator",
    "PullingOperator",
    "SameTypeOperator",
    "Takes",
    "Transform",
    "callbacks",
    "operator",
    "pulling",
    "same_type",
)

A = TypeVar("A")
B = TypeVar("B")
P = ParamSpec("P")

Transform: TypeAlias = Callable[[Observable[A]], Observable[B]]
"""An operator, ours or of ``reactivex``, that turns items A into items B."""

Takes: TypeAlias = Literal["chunks", "items", "anything"]
"""What an operator takes: an engine's chunks, annotated items, or anything (row O1)."""


class _Scope:
    """A placeholder for the scope of a stream."""

    def __repr__(self) -> str:
        return "SCOPE"


SCOPE: Final[Any] = _Scope()
"""
The default of an operator's parameter ``scope``: filled in when its stage starts.

In a pipeline of ``rx_backend`` that is the request's ``RequestScope``.
"""


def _shown(value: object) -> str:
    """Return the name of a function or a class, and the repr of anything else."""
    name = getattr(value, "__qualname__", None)
    return name if isinstance(name, str) else repr(value)


class NotAnOperator(TypeError, ValueError):
    """An entry of a pipeline is not an operator, or misplaced; names its position."""


class OnWholeStreams:
    """
    Applies to a whole stream, and can't be part of a pipeline.

    Attributes:
        instead: How to use it, for the error message.
    """

    instead: ClassVar[str]


class Operator(Generic[A, B]):
    """
    One operator: fusable with its neighbours in a pipeline, and callable as a ``reactivex`` one.

    It is an immutable value without state: every subscription and every stream starts its own body.

    Args:
        function: Returns the operator's body.
        args: Its arguments.
        kwargs: Its keyword arguments.
        takes: Which items it takes.

    Attributes:
        name: Shown in errors and in ``repr``.
        takes: Which items it takes.
    """

    # How many of the function's first parameters are not parameters of the operator.
    _sources: ClassVar[int] = 0

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        takes: Takes = "anything",
    ) -> None:
        self._make = functools.partial(function, *args, **kwargs)
        # A scope passed by position is an argument like any other.
        left = list(_parameters(function))[self._sources + len(args) :]
        self._asks_for_scope = "scope" in left and "scope" not in kwargs
        self.name = function.__name__
        self.takes: Takes = takes

    def start(self, scope: Any, *source: Any) -> Any:
        """Make a new body, for *scope* or None; one that pulls also gets its *source*."""
        make = self._make
        if source:
            make = functools.partial(make.func, *source, *make.args, **make.keywords)
        if not self._asks_for_scope:
            return make()
        if scope is None and _parameters(make.func)["scope"].default is SCOPE:
            raise TypeError(
                f"{self.name} needs the scope of a request: use it in the pipeline of an adapter, "
                "or pass scope=..."
            )
        return make() if scope is None else make(scope=scope)

    def __repr__(self) -> str:
        arguments = [_shown(value) for value in self._make.args]
        arguments += [f"{name}={_shown(value)}" for name, value in self._make.keywords.items()]
        return f"{self.name}({', '.join(arguments)})"

    def __call__(self, source: Observable[A]) -> Observable[B]:
        """Apply the operator to an Observable, as in ``source.pipe(operator)``."""
        return Observable(functools.partial(self._subscribe, source))

    def _subscribe(
        self,
        source: Observable[A],
        observer: abc.ObserverBase[B],
        scheduler: abc.SchedulerBase | None = None,
    ) -> abc.DisposableBase:
        return Subscription(self, observer).run(source, scheduler)


class SharedOperator(Operator[A, B]):
    """An operator whose stateless body serves every stream."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._body = super().start(None)

    def start(self, scope: Any, *source: Any) -> Any:
        """Return the body."""
        return self._body


class PullingOperator(Operator[A, B]):
    """An operator that pulls its source: its body is an asynchronous generator."""

    _sources = 1

    def segment(self, source: FusedRun[A], scope: Any) -> PulledSegment:
        """Make the segment of a pipeline that follows *source*."""
        return PulledSegment(source, self.start(scope, source), self.name)

    def _subscribe(
        self,
        source: Observable[A],
        observer: abc.ObserverBase[B],
        scheduler: abc.SchedulerBase | None = None,
    ) -> abc.DisposableBase:
        return subscribe_in_task(self._run, source, observer, scheduler)

    def _run(self, source: AsyncIterator[Any]) -> FusedRun[B]:
        return FusedRun(self.segment(FusedRun(source, []), None), [])


_Body: TypeAlias = Stage[A, B] | Hooks[A, B] | None


class _Decorator:
    """The decorator that ``@operator(takes=...)`` and the like return."""

    def __init__(
        self,
        takes: Takes,
        kind: type[Operator[Any, Any]] | None = None,
        check: Callable[..., object] | None = None,
    ) -> None:
        self._takes: Takes = takes
        self._kind = kind
        self._check = check

    @overload
    def __call__(
        self, function: Callable[Concatenate[FusedRun[A], P], AsyncIterator[B | StageResult]]
    ) -> Callable[P, Operator[A, B]]: ...
    @overload
    def __call__(self, function: Callable[P, _Body[A, B]]) -> Callable[P, Operator[A, B]]: ...
    def __call__(self, function: Callable[..., Any]) -> Callable[..., Operator[Any, Any]]:
        return _made(function, self._takes, self._kind, self._check)


@overload
def operator(
    function: Callable[Concatenate[FusedRun[A], P], AsyncIterator[B | StageResult]], /
) -> Callable[P, Operator[A, B]]: ...
@overload
def operator(function: Callable[P, Stage[A, B]], /) -> Callable[P, Operator[A, B]]: ...
@overload
def operator(*, takes: Takes) -> _Decorator: ...
def operator(
    function: Callable[..., Any] | None = None, /, *, takes: Takes = "anything"
) -> Callable[..., Any]:
    """
    Turn a generator function, or an asynchronous generator function, into an operator.

    Calling the function makes the operator, and checks the arguments against its signature. Its
    body runs again for every stream, so its local variables are the operator's state, and code
    before its first ``yield`` is set-up. It receives an item at ``yield`` and yields what to hand
    out::

        item = yield            # the first item
        while True:
            item = yield change(item)

    - ``yield out`` hands out one item, ``yield emit(a, b)`` several, ``yield emit()`` none.
    - ``return out`` (or ``return``) ends the stream, with ``out`` (or nothing) as its last item.
    - The end arrives at the ``yield``: as :class:`Completed` when the source has completed, as the
      source's exception when it failed, as ``GeneratorExit`` when the stream was dropped or a later
      operator ended it. After the first two, a yielded or returned item is still handed out, as the
      last one, and a failure is handled by it; ``finally`` runs in all cases.
    - ``yield detach(out)`` hands out ``out`` and detaches the operator: later items bypass it at no
      cost, but the end still arrives here.

    An operator that uses timers or controls the pull is an asynchronous generator over its source,
    which is its first parameter; the others are the operator's parameters::

        async for item in source:
            yield item

    It runs in its own segment, at a few calls per item. Source and generator are closed at the end,
    however the stream ends. The generator may also ``close()`` its source at any time, even while
    it awaits it: the pull then ends without an item.

    When its source has ended, the generator is resumed until it has ended too or has yielded once
    more: only then is the previous item handed out, and known to be the last or not. So work after
    the last ``yield`` delays the last item; ``source.ended`` is true when the last item has been
    received::

        async for item in source:
            yield item
            if not source.ended:
                await asyncio.sleep(1.0)

    A parameter ``scope`` is filled in when the stage starts: ``scope: RequestScope = SCOPE``.

    Args:
        function: The generator or asynchronous generator function.
        takes: What the operator takes: ``chunks`` of an engine, annotated ``items``, or
            ``anything``.

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
    return _Decorator(takes) if function is None else _made(function, takes)


def callbacks(
    *,
    takes: Takes = "anything",
    shared: bool = False,
    check: Callable[..., object] | None = None,
) -> _Decorator:
    """
    Turn a function that returns a body into an operator, for the library's own operators.

    It may return :class:`Callbacks` or other :class:`Hooks`, a generator, or None if there is
    nothing to do.

    Args:
        takes: As for :func:`operator`.
        shared: Whether the callbacks are stateless: the function runs once, when the operator is
            made, and its result serves every stream.
        check: Called with the operator's arguments when it is made; raises if they are invalid
            beyond their types.
    """
    return _Decorator(takes, SharedOperator if shared else Operator, check)


def pulling(*, check: Callable[..., object] | None = None) -> _Decorator:
    """Do as :func:`callbacks`, for a function that returns an asynchronous iterator over its source."""
    return _Decorator("anything", PullingOperator, check)


def _made(
    function: Callable[..., Any],
    takes: Takes,
    kind: type[Operator[Any, Any]] | None = None,
    check: Callable[..., object] | None = None,
) -> Callable[..., Operator[Any, Any]]:
    """Return the function that makes the operator of a body."""
    if takes not in get_args(Takes):
        raise ValueError(f"operator: takes: expected one of {get_args(Takes)}, got {takes!r}")
    kind = kind or _kind_of(function)
    operands = _operands(function, kind)

    @functools.wraps(function)
    def make(*args: Any, **kwargs: Any) -> Operator[Any, Any]:
        check_arguments(operands, *args, **kwargs)
        if check is not None:
            check(*args, **kwargs)
        return kind(function, args, kwargs, takes)

    make.__signature__ = inspect.signature(operands)  # type: ignore[attr-defined]
    return make


def _kind_of(function: Callable[..., Any]) -> type[Operator[Any, Any]]:
    """Return the kind of operator that a function makes, by its body."""
    if inspect.isasyncgenfunction(function):
        return PullingOperator
    if inspect.isgeneratorfunction(function):
        return Operator
    hint = ", or map_async" if inspect.iscoroutinefunction(function) else ""
    raise TypeError(
        "operator: expected a generator or an asynchronous generator function, with a yield in its "
        f"body{hint}, got {function!r}"
    )


def _operands(function: Callable[..., Any], kind: type[Operator[Any, Any]]) -> Callable[..., Any]:
    """Return a function with the operator's own signature, without the source."""
    if kind is not PullingOperator:
        return function

    @functools.wraps(function)
    def operands(*args: Any, **kwargs: Any) -> None: ...

    signature = inspect.signature(function)
    first, *parameters = [*signature.parameters.values()] or [None]
    if first is None or first.kind in {first.KEYWORD_ONLY, first.VAR_KEYWORD}:
        raise TypeError(
            f"operator: expected an asynchronous generator function with the source as its first "
            f"argument, got {function!r}"
        )
    operands.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return operands


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return described(function)[0].parameters


if TYPE_CHECKING:

    class SameTypeOperator(Operator[Any, Any]):
        """An operator whose output type is its input type."""

        def __call__(self, source: Observable[A]) -> Observable[A]:
            """Apply the operator to an Observable, as in ``source.pipe(operator)``."""
            ...

else:
    SameTypeOperator = Operator


def same_type(make: Callable[P, Operator[Any, Any]]) -> Callable[P, SameTypeOperator]:
    """
    Declare that an operator's output type is its input type.

    It is for type checkers and has no effect at run time::

        @same_type
        @operator
        def at_most(count: int) -> Stage[Any, Any]: ...
    """
    return cast("Callable[P, SameTypeOperator]", make)
