"""Recognising ``aioreactive`` operators, and distinguishing them from ``reactivex`` ones."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import reactivex

from operators._core.aio_inbox import SubscribesAsync
from operators._core.foreign import kind_of
from operators._core.naming import home_of, name_of

if TYPE_CHECKING:
    from aioreactive import AsyncObserver

__all__ = (
    "AioOperator",
    "answers_within_asend",
    "async_observable",
    "is_aio_operator",
)

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


def answers_within_asend(operator: AioOperator) -> bool:
    """
    Return whether an ``aioreactive`` operator emits within the ``asend`` that passes it an item.

    All except those named here pass items to a task of their own, or may do so.
    """
    return home_of(operator) == "aioreactive.transform" and name_of(operator) in _AT_ONCE


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
