"""Say what a request cost, in tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from operators._answers import check_answers
from operators._chunk import Chunk, answer_of
from operators._core.checked import checked
from operators._core.operator import operator
from operators._core.stage import Stage, emit

__all__ = ("CountedChunk", "usage")


class CountedChunk(Chunk, Protocol):
    """A chunk that can carry what its request cost."""

    completion_usage: Any


U = TypeVar("U")


def _check(
    prompt_tokens: int,
    make: object,
    *,
    replace: bool = False,
    on_end: object = None,
    answers: int = 1,
) -> None:
    check_answers("usage", answers)
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
    answers: int = 1,
) -> Stage[Any, Any]:
    """
    Write ``completion_usage`` on the last terminal, and report it however the stream ends.

    Token ids are counted, not chunks, of all answers together, as OpenAI does. The terminal of the
    last answer comes out as a copy with the usage; other chunks pass unchanged. Put this behind operators that end the stream or
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
        answers: How many answers the request has, 1 at least.

    Raises:
        ValueError: *prompt_tokens* or *answers* is no such number; when the operator is made.
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
    tokens = 0
    ended: set[int] = set()
    reported: U | None = None
    out: Any = emit()
    try:
        while True:
            chunk = yield out
            tokens += len(chunk.token_ids)
            if chunk.finish_reason is not None:
                ended.add(answer_of(chunk))
                if len(ended) >= answers:
                    if replace or chunk.completion_usage is None:
                        chunk = copy.copy(chunk)
                        chunk.completion_usage = make(prompt_tokens, tokens)
                    reported = chunk.completion_usage
            out = chunk
    finally:
        if on_end is not None:
            on_end(make(prompt_tokens, tokens) if reported is None else reported)
