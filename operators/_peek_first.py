"""Pull the beginning of a stream before it is passed on, so that an early failure is raised."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeVar, overload

from operators._core.assemble import fuse
from operators._core.fusion import FusedRun
from operators._core.own_copy import own_copy
from operators._raw_chunk import field_of, has_content, is_terminal

__all__ = ("peek_first",)

B = TypeVar("B", covariant=True)
R = TypeVar("R", bound="FusedRun[Any]")
T = TypeVar("T")


@overload
async def peek_first(stream: R, *, error: Callable[[str], Exception] = ...) -> R: ...
@overload
async def peek_first(
    stream: AsyncIterator[T], *, error: Callable[[str], Exception] = ...
) -> FusedRun[T]: ...
async def peek_first(
    stream: AsyncIterator[Any], *, error: Callable[[str], Exception] = RuntimeError
) -> FusedRun[Any]:
    """
    Pull *stream* until it shows that it works, then return it from its beginning.

    A failure before that is raised here, where the caller can still answer with an error status
    instead of a broken stream. A stream works once it yields a token, other content, or a terminal.
    With ``h`` for a handshake, everything comes out from the first token on::

        source  -h-a-b-|
        result  ---(ha)-b-|

    and an earlier failure replaces everything::

        source  -h-#
        result  ---#

    The result is the same stream, or a wrapper if it is not a :class:`FusedRun`. The pulled items
    are handed out first and cost nothing later; if they include the terminal, the request is
    already complete (row P6a). ``rx_backend.ResponseStream`` has this as a method.

    It is not an operator and can't be part of a pipeline: it reports to the caller, which has not
    yet passed the stream to a consumer.

    Args:
        stream: A stream of chunks or of annotated items, recognised by their shape: an item with an
            exception as ``error`` is an error item, one whose ``data`` is None is an event, which
            proves nothing. An item of any other shape shows that the stream works.
        error: Makes the exception for a terminal before any content whose ``finish_reason`` says
            ``is_error``, from its message.

    Returns:
        The stream, even if it ends with nothing but events and handshakes.

    Raises:
        Exception: The exception of the error item, of the pull, or made by *error*. Everything is
            then released.

    Being cancelled while it pulls is a drop of the stream, as in any pull.

    >>> import asyncio
    >>> from rx_backend import Disconnected, LLMEngineOutput
    >>> async def engine(fails):
    ...     yield LLMEngineOutput()  # accepted
    ...     if fails:
    ...         raise Disconnected("peer gone")
    ...     yield LLMEngineOutput.token(7)
    >>> async def answer(fails):
    ...     try:
    ...         stream = await peek_first(engine(fails))
    ...     except Disconnected as error:
    ...         return f"503 {error}"
    ...     return [chunk.token_ids async for chunk in stream]
    >>> asyncio.run(answer(fails=True))
    '503 BackendDisconnected: peer gone'
    >>> asyncio.run(answer(fails=False))
    [[], [7]]
    """
    run = stream if isinstance(stream, FusedRun) else fuse(stream, [])
    items: list[Any] = []
    async for item in run:
        failure = _failure_in(item, error)
        if failure is not None:
            await run.aclose()
            raise failure
        items.append(own_copy(item))
        if _shows_life(item):
            break
    run.put_back(items)
    return run


def _failure_in(item: Any, error: Callable[[str], Exception]) -> Exception | None:
    failure = getattr(item, "error", None)
    if isinstance(failure, Exception):
        return failure
    reason = field_of(item, "finish_reason")
    if getattr(reason, "is_error", False) and not has_content(item):
        return error(getattr(reason, "message", None) or str(reason))
    return None


def _shows_life(item: Any) -> bool:
    chunk = getattr(item, "data", item)
    if chunk is None:
        return False
    is_chunk = "token_ids" in chunk if isinstance(chunk, Mapping) else hasattr(chunk, "token_ids")
    return not is_chunk or has_content(chunk) or is_terminal(chunk)
