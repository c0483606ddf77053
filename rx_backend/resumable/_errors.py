"""What goes wrong with a stream that a client wants to come back to."""

from __future__ import annotations

from rx_backend.errors import CannotConnect, InvalidArgument

__all__ = ("StreamNotFound", "TooManyStreams")


class StreamNotFound(InvalidArgument):
    """No stream has this id, any more or for this owner; which of these is not told."""


class TooManyStreams(CannotConnect):
    """As many streams as ``max_streams`` allows are running; the request may be tried again later."""
