"""Say what a request cost, in tokens."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from operators._chunk import IS_TERMINAL, Chunk
from operators._core.checked import checked
from operators._core.operator import operator
from operators._core.stage import Hooks

__all__ = ("CountedChunk", "usage")


class CountedChunk(Chunk, Protocol):
    """A chunk that can carry what its request cost."""

    completion_usage: Any


C = TypeVar("C", bound=CountedChunk)
U = TypeVar("U")


def _check(
    prompt_tokens: int,
    make: object,
    *,
    replace: bool = False,
    on_end: object = None,
) -> None:
    given = cast("object", prompt_tokens)
    if type(given) is not int or given < 0:
        raise ValueError(f"usage: prompt_tokens: expected 0 tokens or more, got {given!r}")
    if not callable(make):
        raise TypeError(f"usage: make: expected a function of two counts, got {make!r}")
    if on_end is not None and not callable(on_end):
        raise TypeError(f"usage: on_end: expected a function of a usage or None, got {on_end!r}")


@checked(_check)
@operator
def usage(
    prompt_tokens: int,
    make: Callable[[int, int], U],
    *,
    replace: bool = False,
    on_end: Callable[[U], None] | None = None,
) -> Hooks[Any, Any]:
    """
    Write ``completion_usage`` on the terminal, and report it however the stream ends.

    Token ids are counted, not chunks, of all choices together. The terminal comes out as a copy
    with the usage; other chunks pass unchanged. Put this behind operators that end the stream or
    take tokens out. With a prompt of 3 tokens, ``U`` is ``T`` with a usage of 3 and 2 tokens::

        source  -a-b-T|
        result  -a-b-U|
        on_end  ------3 + 2

    Args:
        prompt_tokens: How many tokens the prompt has.
        make: Makes a usage of the counts of prompt and generated tokens, and adds up the total:
            ``rx_backend.protocols.usage``.
        replace: Write it also over a usage that the engine set, which is kept otherwise.
        on_end: Called once at the end, whichever way, with the usage that the terminal carried;
            without a terminal (cancelled, dropped, failed) with what was counted so far.

    Raises:
        ValueError: *prompt_tokens* is no such number; when the operator is made.
        TypeError: *make* or *on_end* can't be called; when the operator is made.

    Errors: source errors pass unchanged, after *on_end*.
    On dispose: *on_end* is called.

    >>> import reactivex
    >>> from rx_backend import LLMEngineOutput, protocols
    >>> chunks = reactivex.of(LLMEngineOutput.token(7), LLMEngineOutput.stop())
    >>> counted = chunks.pipe(usage(3, protocols.usage))
    >>> _ = counted.subscribe(lambda chunk: print(chunk.completion_usage))
    None
    CompletionUsage(prompt_tokens=3, completion_tokens=1, total_tokens=4)
    """
    count = itertools.count(1).__next__
    others = 0
    reported: U | None = None

    def counted() -> U:
        # Asking the counter counts too.
        nonlocal others
        others -= 1
        return make(prompt_tokens, count() + others)

    def look(chunk: C) -> C:
        nonlocal others, reported
        tokens = len(chunk.token_ids)
        if tokens != 1:
            others += tokens
        if chunk.finish_reason is None:
            return chunk
        if replace or chunk.completion_usage is None:
            chunk = copy.copy(chunk)
            chunk.completion_usage = counted()
        reported = chunk.completion_usage
        return chunk

    def end(_failure: Exception | None, _dropped: bool) -> None:
        if on_end is not None:
            on_end(counted() if reported is None else reported)

    return Hooks(
        look, only=_IS_UNUSUAL, names={"count": count}, on_end=None if on_end is None else end
    )


# Counts a chunk of one token in passing; any other chunk, and a terminal, is looked at.
_IS_UNUSUAL = f"len(item.token_ids) != 1 or not count() or {IS_TERMINAL}"
