"""End the stream after so many tokens."""

from __future__ import annotations

import sys
from operator import length_hint
from typing import Any, TypeVar, cast

from operators._chunk import Chunk
from operators._core.checked import checked
from operators._core.operator import operator
from operators._core.stage import Emission, Hooks, last
from operators._cut import cut_last

__all__ = ("limit_tokens",)

C = TypeVar("C", bound=Chunk)


def _check(limit: int | None, *, reason: object = None) -> None:
    given = cast("object", limit)
    if given is not None and (type(given) is not int or given < 1):
        raise ValueError(f"limit_tokens: limit: expected at least 1 token or None, got {given!r}")


@checked(_check)
@operator
def limit_tokens(limit: int | None, *, reason: object = None) -> Hooks[Any, Any]:
    """
    End the stream after *limit* tokens, with finish reason ``length`` (rows S2, S8).

    Token ids are counted, not chunks, of all choices together. The chunk that reaches the limit is
    the last: the engine is closed and not pulled again. It comes out as a copy with the finish
    reason, and where it goes beyond the limit without the tokens that do, their log probabilities
    and their text. With a limit of 2, ``B`` is ``b`` with the finish reason::

        source  -a-b-c-|
        result  -a-(B|)

    A terminal of the engine within the limit passes as it is, also when it reaches the limit; one
    that goes beyond gets the finish reason ``length``. Its ``completion_usage`` stays what the
    engine says.

    Args:
        limit: How many tokens may come out, 1 at least; None for no limit, at no cost per chunk.
        reason: The finish reason. By default that of the terminal which the chunk's class makes by
            ``length()``; for a class without one, the text ``length``.

    Raises:
        ValueError: *limit* is no such number; when the operator is made.

    Errors: source errors pass unchanged.
    On dispose: nothing.

    >>> import reactivex
    >>> from rx_backend import LLMEngineOutput
    >>> chunks = reactivex.of(LLMEngineOutput.token(7), LLMEngineOutput(token_ids=[8, 9, 10]))
    >>> _ = chunks.pipe(limit_tokens(3)).subscribe(print)
    LLMEngineOutput(token_ids=[7])
    LLMEngineOutput(token_ids=[8, 9], finish_reason=FinishReason.LENGTH)
    """
    if limit is None:
        return Hooks()
    # Counts in passing: an iterator knows how much is left of it.
    left = iter(range(min(limit, sys.maxsize) - 1, -1, -1))
    take = left.__next__

    def look(chunk: C) -> C | Emission:
        tokens = len(chunk.token_ids)
        # A chunk of one token only comes here when the condition has taken the last.
        room = 1 if tokens == 1 else length_hint(left)
        if tokens < room:
            for _ in chunk.token_ids:
                take()
            return chunk
        if tokens == room and chunk.finish_reason is not None:
            return last(chunk)
        return last(cut_last(chunk, room, "length", reason))

    return Hooks(look, only=_IS_UNUSUAL, names={"take": take})


# Counts a chunk of one token in passing; any other, and the one that takes the last, is looked at.
_IS_UNUSUAL = "len(item.token_ids) != 1 or not take()"
