"""Shorter copies of chunks, for operators that take tokens out or end a stream within a chunk."""

from __future__ import annotations

import copy
import inspect
from typing import Any, TypeVar, cast

from operators._chunk import PER_TOKEN, Chunk

__all__ = ("cut_last", "first_tokens", "part_of")

C = TypeVar("C", bound=Chunk)


def first_tokens(chunk: C, count: int) -> C:
    """
    Return a copy of *chunk* with its first *count* tokens and their data.

    ``tokens``, ``log_probs`` and ``top_logprobs`` are cut alike. ``cum_log_probs`` and ``text`` are
    recomputed from them, or None if that is not possible. Everything else stays, including the
    finish reason; an operator may change the copy.

    Args:
        chunk: The chunk, which is not changed.
        count: How many tokens; all if it has fewer.

    Raises:
        ValueError: *count* is negative.

    >>> from rx_backend import LLMEngineOutput
    >>> first_tokens(LLMEngineOutput([7, 8, 9], tokens=["a", "b", "c"], text="abc"), 2)
    LLMEngineOutput(token_ids=[7, 8], tokens=['a', 'b'], text='ab')
    """
    if count < 0:
        raise ValueError(f"first_tokens: count: expected at least 0 tokens, got {count}")
    if count >= len(chunk.token_ids):
        return copy.copy(chunk)
    has_text = getattr(chunk, "text", None) is not None
    return part_of(chunk, 0, count, _text(chunk, count) if has_text else None)


def part_of(chunk: C, start: int, end: int, text: str | None) -> C:
    """
    Return a copy of *chunk* with its tokens from *start* to *end* and their data.

    Args:
        chunk: The chunk.
        start: The index of the first token.
        end: The index after the last token.
        text: The text of the part; None for none.
    """
    part: Any = copy.copy(chunk)
    part.token_ids = chunk.token_ids[start:end]
    for name in PER_TOKEN:
        entries = getattr(chunk, name, None)
        if entries is not None:
            setattr(part, name, entries[start:end])
    if getattr(chunk, "text", None) is not None:
        part.text = text
    if getattr(chunk, "cum_log_probs", None) is not None and end < len(chunk.token_ids):
        part.cum_log_probs = _cum_log_probs(chunk, end)
    return part


def cut_last(chunk: C, tokens: int, kind: str, stop_reason: int | str | None = None) -> C:
    """
    Return a copy of *chunk* with its first *tokens* tokens, as the terminal of its stream.

    Its finish reason is that of the terminal made by the chunk class's class method *kind*, or the
    text itself if there is no such method.

    Args:
        chunk: A chunk; if it is a terminal, its own reason is replaced.
        tokens: How many tokens stay.
        kind: Why the stream ends, as text: ``stop`` or ``length``.
        stop_reason: The token or text that ended the stream, for chunks with a ``stop_reason``.
    """
    part: Any = first_tokens(chunk, tokens)
    make_terminal = getattr(type(chunk), kind, None)
    is_made = inspect.ismethod(make_terminal)
    part.finish_reason = make_terminal().finish_reason if is_made else kind
    if hasattr(chunk, "stop_reason"):
        part.stop_reason = stop_reason
    return part


def _text(chunk: object, tokens: int) -> str | None:
    if not tokens:
        return ""
    texts = cast("list[str | None] | None", getattr(chunk, "tokens", None)) or [None]
    known = [text for text in texts if text is not None]
    if len(known) < len(texts) or "".join(known) != getattr(chunk, "text", None):
        return None
    return "".join(known[:tokens])


def _cum_log_probs(chunk: Chunk, tokens: int) -> float | None:
    log_probs = cast("list[float] | None", getattr(chunk, "log_probs", None))
    if log_probs is None or len(log_probs) != len(chunk.token_ids):
        return None
    whole: float = getattr(chunk, "cum_log_probs")  # noqa: B009
    return whole - sum(log_probs[tokens:])
