"""Wrap items, and turn a failure into one last item."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from operators._core.operator import callbacks
from operators._core.stage import Callbacks

__all__ = ("annotate_errors",)

A = TypeVar("A")
B = TypeVar("B")


@callbacks(shared=True)
def annotate_errors(item: Callable[[A], B], error: Callable[[Exception], B]) -> Callbacks[A, B]:
    """
    Wrap every item, and turn a source failure into one error item that ends the stream (row S6).

    ``A`` is ``item(a)``, ``E`` is ``error(exception)``::

        source  ---a-b-#
        result  ---A-B-(E|)

    Args:
        item: Wraps one item; called for each, so let it be cheap (a class will do).
        error: Makes the error item. It gets every ``Exception``; cancellations and the like are not
            failures, and propagate.

    Phase: between the two: a pipeline's ``annotate``.
    Errors: turned into an item; what *item* or *error* raises propagates.
    On dispose: nothing.

    >>> import reactivex
    >>> from rx_backend import Annotated, Disconnected
    >>> failing = reactivex.throw(Disconnected("peer gone"))
    >>> wrapped = failing.pipe(annotate_errors(Annotated, Annotated.from_error))
    >>> _ = wrapped.subscribe(lambda item: print(item.event, item.comment))
    error ['peer gone']
    """
    return Callbacks(item, on_error=error)
