"""What goes wrong with a stream that a client wants to come back to."""

from __future__ import annotations

from rx_backend.errors import CannotConnect, InvalidArgument
from rx_backend.protocols import Annotated

__all__ = ("StreamNotFound", "TooManyStreams", "check_item")


class StreamNotFound(InvalidArgument):
    """No stream has this id, any more or for this owner; which of these is not told."""


class TooManyStreams(CannotConnect):
    """As many streams as ``max_streams`` allows are running; the request may be tried again later."""


def check_item(item: object) -> None:
    """
    Check that *item*, of a user's pipeline, is one that can be held.

    Raises:
        InvalidArgument: It is no ``Annotated``.
    """
    if not isinstance(item, Annotated):
        raise InvalidArgument(
            f"resumable streams hold Annotated items; the pipeline yielded {type(item).__name__}"
        )
