"""End the stream with its terminal chunk."""

from __future__ import annotations

from typing import Any

from operators._chunk import IS_TERMINAL
from operators._core.operator import stateless
from operators._core.stage import Hooks, last

__all__ = ("until_terminal",)


@stateless
def until_terminal() -> Hooks[Any, Any]:
    """
    End the stream with its first terminal chunk: one whose ``finish_reason`` is set (row S2).

    The terminal itself is handed out, and then nothing that the source still has (row S8)::

        source  ---a-b-T-c-|
        result  ---a-b-(T|)

    Errors: source errors pass unchanged.
    On dispose: nothing.

    >>> import reactivex
    >>> from rx_backend import LLMEngineOutput
    >>> chunks = reactivex.of(LLMEngineOutput.token(7), LLMEngineOutput.stop(), LLMEngineOutput())
    >>> _ = chunks.pipe(until_terminal()).subscribe(lambda chunk: print(chunk.finish_reason))
    None
    stop
    """
    return Hooks(last, only=IS_TERMINAL)
