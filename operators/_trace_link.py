"""Stamp the worker's trace link on the chunks from which the next worker reads it."""

from __future__ import annotations

import copy
from typing import Any

from operators._chunk import HAS_CONTENT, has_content
from operators._core.operator import callbacks, same_type
from operators._core.scope import StreamScope
from operators._core.stage import Hooks, Visit, condition

__all__ = ("trace_link",)


@same_type
@callbacks(takes="chunks")
def trace_link(
    link: object | None = None, *, on_terminal: bool = False, scope: StreamScope | None = None
) -> Hooks[Any, Any] | None:
    """
    Stamp ``worker_trace_link`` on the first chunk with content (rows T3, T4, T5).

    The first chunk with tokens, or with other content, gets *link*, replacing one that the engine
    set; later chunks are unchanged. A stamped chunk is a copy: the engine's own object is not
    changed. Upper case is stamped here, ``h`` is a handshake::

        source  -h-a-b-|
        result  -h-A-b-|

    Args:
        link: What to stamp; by default from the scope; None for nothing, at no cost.
        on_terminal: Whether also to stamp a terminal that has no link yet, even without content
            (prefill workers, row T4); by default from the scope.
        scope: The scope of the stream; filled in by a pipeline.

    Phase: chunks; part of the standard pipeline, after ``until_terminal``.
    Errors: source errors pass unchanged.
    On dispose: nothing.

    >>> import reactivex
    >>> from rx_backend import LLMEngineOutput, TraceLink
    >>> chunks = reactivex.of(LLMEngineOutput.token(7), LLMEngineOutput.token(8))
    >>> stamped = chunks.pipe(trace_link(TraceLink("a" * 32, "b" * 16)))
    >>> _ = stamped.subscribe(lambda chunk: print(chunk.worker_trace_link is not None))
    True
    False
    """
    if scope is not None and link is None:
        link, on_terminal = scope.trace_link, scope.is_prefill
    if link is None:
        return None
    return (_FirstAndTerminals if on_terminal else _First)(link)


class _First(Hooks[Any, Any]):
    """Stamps the first chunk with content."""

    __slots__ = ("_link",)

    visit: Visit = condition(HAS_CONTENT, once=True)

    def __init__(self, link: object) -> None:
        self._link = link

    def step(self, chunk: Any) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        stamped = copy.copy(chunk)
        stamped.worker_trace_link = self._link
        return stamped


class _FirstAndTerminals(_First):
    """Also stamps terminals without a link."""

    __slots__ = ("_has_content",)

    visit = True

    def __init__(self, link: object) -> None:
        super().__init__(link)
        self._has_content = False

    def step(self, chunk: Any) -> Any:
        if not self._has_content and has_content(chunk):
            self._has_content = True
            return super().step(chunk)
        if chunk.finish_reason is not None and chunk.worker_trace_link is None:
            return super().step(chunk)
        return chunk
