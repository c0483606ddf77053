"""The errors of resumable streams."""

from __future__ import annotations

from rx_backend.errors import CannotConnect, InvalidArgument
from rx_backend.protocols import Annotated

__all__ = ("StreamNotFound", "TooManyStreams", "check_item")


class StreamNotFound(InvalidArgument):
    """There is no such stream, it was forgotten, or it has another owner; it isn't said which."""


class TooManyStreams(CannotConnect):
    """All ``max_streams`` streams are running or being read; the request may be retried later."""


def check_item(item: object) -> None:
    """
    Check that *item*, from a user's pipeline, can be held.

    Raises:
        InvalidArgument: It is not an ``Annotated``.
    """
    if not isinstance(item, Annotated):
        raise InvalidArgument(
            f"pipeline: expected Annotated items for a resumable stream, got {type(item).__name__}"
        )
