"""What a function gave when it was asked for another stream, as a run to pull."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeAlias, cast

from reactivex import Observable

from operators._core.aio_subscription import SubscribesAsync
from operators._core.fusion import FusedRun
from operators._core.sources import source_of

__all__ = ("Openable", "Opened", "opened")

Openable: TypeAlias = AsyncIterator[Any] | Observable[Any] | SubscribesAsync[Any]
"""A stream: an asynchronous iterator, or an observable of either kind."""

Opened: TypeAlias = Openable | Awaitable[Openable]
"""A stream, or something to await for one."""


async def opened(given: Opened, name: str) -> FusedRun[Any]:
    """
    Make a run of a stream; one that is a run already stays as it is.

    It runs in a copy of the current context, whichever task pulls it.

    Args:
        given: The stream, or something to await for it.
        name: Who gave it, for the error.

    Raises:
        TypeError: It is no stream.
    """
    found: object = given
    # An Observable can be awaited too: that would give its last item.
    if source_of(found) is None and not hasattr(found, "__aiter__") and hasattr(found, "__await__"):
        found = await cast("Awaitable[object]", found)
    if isinstance(found, FusedRun):
        return cast("FusedRun[Any]", found)
    source = source_of(found)
    if source is None:
        if not hasattr(found, "__aiter__"):
            raise TypeError(f"{name}: expected an asynchronous iterator, got {found!r}")
        source = aiter(cast("AsyncIterator[Any]", found))
    own = contextvars.copy_context()
    enter = own.run
    return enter(lambda: FusedRun[Any](source, [], own_context=own))
