"""The envelope of every item of a stream."""

from __future__ import annotations

from typing import Any, Generic

from msgspec import Struct
from typing_extensions import TypeVar

from rx_backend.errors import BackendError, as_backend_error
from rx_backend.protocols._output import LLMEngineOutput

__all__ = ("Annotated",)

T = TypeVar("T", default=LLMEngineOutput)


class Annotated(Struct, Generic[T], gc=False, repr_omit_defaults=True):
    """
    An item of a stream: data, or an event.

    The cyclic garbage collector tracks only error items, since exceptions can be part of a cycle.

    Attributes:
        data: The chunk; None on error items and bare events.
        id: An id for the item.
        event: Its name; ``error`` on error items.
        comment: Text that belongs to the event; on error items the message.
        error: The typed error of an error item (row S6).

    >>> Annotated("chunk")
    Annotated(data='chunk')
    """

    data: T | None = None
    id: str | None = None
    event: str | None = None
    comment: list[str] | None = None
    error: BackendError | None = None

    @staticmethod
    def from_error(exc: BaseException) -> Annotated[Any]:
        """
        Return the error item of *exc*, converted by `as_backend_error` first (row S6).

        Raises:
            BaseException: *exc* itself if it is not an ``Exception``.

        >>> Annotated.from_error(ValueError("too long")).comment
        ['too long']
        """
        error = as_backend_error(exc)
        return _ErrorItem(event="error", comment=[error.message], error=error)

    @property
    def is_error(self) -> bool:
        """Whether the item is an error item."""
        return self.event == "error"


class _ErrorItem(Annotated[Any], gc=True):
    """An error item; the garbage collector tracks it."""

    def __repr__(self) -> str:
        # Users see one class of items.
        return super().__repr__().replace(type(self).__name__, Annotated.__name__, 1)
