"""The shape by which operators know a chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias

__all__ = ("HAS_TOKENS", "IS_TERMINAL", "Chunk", "Clock")

Clock: TypeAlias = Callable[[], float]
"""A monotonic clock, in seconds: ``time.monotonic``, or a virtual loop's ``time``."""


HAS_TOKENS: Final = "item.token_ids"
IS_TERMINAL: Final = "item.finish_reason is not None"
"""Conditions for ``visit_if``."""


class Chunk(Protocol):
    """One chunk of a token stream, whatever its class."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens that this chunk brings; none in a handshake or a bare terminal."""
        ...

    @property
    def finish_reason(self) -> Any:
        """Set on the terminal chunk, else None."""
        ...
