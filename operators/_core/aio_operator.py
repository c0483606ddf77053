"""What an ``aioreactive`` operator is, and how it is told from a ``reactivex`` one."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import reactivex

from operators._core.aio_subscription import Observes, SubscribesAsync
from operators._core.operator import NotAnOperator

__all__ = (
    "AioOperator",
    "answers_within_asend",
    "applied_async",
    "async_observable",
    "is_aio_operator",
)

AioOperator: TypeAlias = Callable[[Any], SubscribesAsync[Any]]
"""An ``aioreactive`` operator: a function from AsyncObservable to AsyncObservable."""


def is_aio_operator(operator: Callable[..., Any]) -> bool:
    """
    Return whether something callable in a list is an ``aioreactive`` operator.

    Where the name of its home module doesn't tell, it is applied to a stream that never gives
    anything, of ``reactivex`` first and then, if that gave no Observable, of ``aioreactive``. An
    operator that gives back what it is given is taken for one of ``reactivex``.
    """
    if "aioreactive" not in sys.modules or inspect.iscoroutinefunction(operator):
        return False
    package = (getattr(operator, "__module__", None) or "").partition(".")[0]
    if package in {"operators", "reactivex"}:
        return False
    probed = _applied(operator, _NEVER)
    if isinstance(probed, reactivex.abc.ObservableBase):
        return False
    if not hasattr(probed, "subscribe_async"):
        probed = _applied(operator, _async_never())
    return hasattr(probed, "subscribe_async")


def answers_within_asend(operator: AioOperator) -> bool:
    """
    Return whether an ``aioreactive`` operator emits within the ``asend`` that it is given an item by.

    Known of ``map``, ``starmap``, ``filter``, ``starfilter``, ``choose`` and ``scan``, and of
    their forms with an asynchronous function. All others hand their items to a task of their own.
    """
    if getattr(operator, "__module__", "") != "aioreactive.transform":
        return False
    if not inspect.isfunction(operator):
        return False
    if operator.__qualname__ == "transform.<locals>._":
        handler = inspect.getclosurevars(operator).nonlocals.get("anext")
        return getattr(handler, "__module__", "").startswith("aioreactive.")
    return operator.__qualname__ == "_scan.<locals>._scan_operator"


def applied_async(
    operator: AioOperator, source: SubscribesAsync[Any], where: str
) -> SubscribesAsync[Any]:
    """
    Apply an ``aioreactive`` operator.

    Raises:
        NotAnOperator: It gives no AsyncObservable, or can't be applied at all; names *where*.
    """
    result = _applied(operator, source)
    if isinstance(result, Exception):
        raise NotAnOperator(
            f"{where} is no operator: {operator!r} can't be applied to an AsyncObservable: "
            f"{type(result).__name__}: {result}"
        ) from result
    if not hasattr(result, "subscribe_async"):
        raise NotAnOperator(
            f"{where} is no operator: applied to an AsyncObservable it gave "
            f"{type(result).__name__}, expected an AsyncObservable"
        )
    return cast("SubscribesAsync[Any]", result)


def async_observable(subscribe: Callable[[Observes], Any]) -> SubscribesAsync[Any]:
    """Return an AsyncObservable with operators as methods, which those of a user may want."""
    from aioreactive import AsyncAnonymousObservable, AsyncRx  # noqa: PLC0415 - who has operators of it has it

    return AsyncRx(AsyncAnonymousObservable[Any](subscribe))


def _async_never() -> SubscribesAsync[Any]:
    import aioreactive  # noqa: PLC0415 - who has operators of it has it

    return aioreactive.AsyncRx(aioreactive.never())


def _applied(operator: Callable[..., Any], source: object) -> object:
    try:
        return operator(source)
    except Exception as error:
        return error


_NEVER = reactivex.never()
