"""The shape of a chunk, on which operators rely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias

__all__ = (
    "HAS_CONTENT",
    "IS_TERMINAL",
    "PER_TOKEN",
    "Chunk",
    "Clock",
    "answer_of",
    "has_content",
)

Clock: TypeAlias = Callable[[], float]
"""A monotonic clock, in seconds: ``time.monotonic``, or a virtual loop's ``time``."""


HAS_CONTENT: Final = (
    "item.token_ids or getattr(item, 'text', None) or getattr(item, 'content_parts', None)"
)
"""The condition of :class:`Callbacks` for chunks with content (row F1)."""

IS_TERMINAL: Final = "item.finish_reason is not None"
"""The condition for chunks that end an answer."""

PER_TOKEN: Final = ("tokens", "log_probs", "top_logprobs")
"""The fields with an entry for each token; a chunk may lack any."""


class Chunk(Protocol):
    """One chunk of a token stream, whatever its class."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens of this chunk; none in a handshake or a bare terminal."""
        ...

    @property
    def finish_reason(self) -> Any:
        """Set on the terminal chunk, else None."""
        ...


def has_content(chunk: Chunk) -> bool:
    """
    Return whether *chunk* has content: token ids or, from engines without them, text or parts (row F1).

    The function for ``HAS_CONTENT``; ``_raw_chunk.has_content`` takes items of any shape.
    """
    return bool(
        chunk.token_ids or getattr(chunk, "text", None) or getattr(chunk, "content_parts", None)
    )


def answer_of(chunk: Chunk) -> int:
    """Return which of a request's answers *chunk* belongs to: its ``index``, 0 without one."""
    index = getattr(chunk, "index", None)
    # A named tuple without the field has a method of that name.
    return index if type(index) is int else 0
