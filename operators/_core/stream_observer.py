"""Who is notified of what becomes of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ("StreamObserver",)


class StreamObserver(Protocol):
    """Notified of what becomes of a stream."""

    def take_back(self, items: Sequence[Any]) -> None:
        """Take note of items that were ready, and that a drop keeps from the consumer."""
        ...

    def end(self, dropped: bool) -> None:
        """Take note of the end, once; *dropped*: the consumer left before it."""
        ...
