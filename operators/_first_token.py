"""Notice the first token of a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from operators._chunk import HAS_CONTENT, Chunk
from operators._core.operator import callbacks, same_type
from operators._core.stage import Callbacks

__all__ = ("first_token",)


@same_type
@callbacks(takes="chunks")
def first_token(on_first: Callable[[Any], object]) -> Callbacks[Any, Any]:
    """
    Call *on_first* with the first token's chunk; pass every chunk through unchanged (row F1).

    The first token is the first chunk with content: non-empty ``token_ids`` or, from engines that
    have no ids, non-empty ``text`` or ``content_parts``. Earlier handshake chunks are ignored.
    Later chunks bypass the operator. ``h`` is a handshake::

        source  -h-a-b-|
        result  -h-a-b-|
        called  ---a

    Args:
        on_first: Called once per subscription, before the chunk goes downstream.

    Phase: chunks; wherever the first token is to be observed.
    Errors: source errors pass unchanged; an exception of *on_first* fails the stream.
    On dispose: nothing; without a token *on_first* is not called.

    >>> import reactivex
    >>> from rx_backend import LLMEngineOutput
    >>> chunks = reactivex.of(LLMEngineOutput(), LLMEngineOutput.token(7), LLMEngineOutput.token(8))
    >>> _ = chunks.pipe(first_token(lambda chunk: print(chunk.token_ids))).subscribe()
    [7]
    """

    def note(chunk: Chunk) -> Chunk:
        on_first(chunk)
        return chunk

    return Callbacks(note, only=HAS_CONTENT, once=True)
