"""From a blocking iterator to an engine's stream."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import AsyncGenerator, Callable, Iterable

from rx_backend.context import RequestContext
from rx_backend.engines.inbox import ThreadInbox
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest

__all__ = ("iterate_in_thread",)


async def iterate_in_thread(
    make: Callable[[], Iterable[LLMEngineOutput]],
    request: PreprocessedRequest,
    context: RequestContext,
    *,
    max_ahead: int = 16,
) -> AsyncGenerator[LLMEngineOutput]:
    """
    Iterate over ``make()`` in a new thread, and yield its chunks.

    For engines whose library returns a blocking iterator, such as a plain generator. The thread is
    at most *max_ahead* chunks ahead of the consumer. Once the request is stopped, each open answer
    gets a ``cancelled`` terminal, and these are the last items (row E4), at once, even if the
    iterator blocks. After a stop or a drop the thread closes the iterator and ends, as soon as the
    iterator has returned its current chunk. An error of the iterator is raised after its chunks.

    Args:
        make: Returns the iterator of chunks, the last one a terminal; called in the thread, with
            the context variables of the first pull.
        request: The request, for its answers and their usage.
        context: Its context.
        max_ahead: How many chunks may wait for the consumer.

    >>> import asyncio
    >>> from rx_backend import LLMEngineOutput, PreprocessedRequest, RequestContext
    >>> def blocking():
    ...     yield LLMEngineOutput.token(7)
    ...     yield LLMEngineOutput.stop()
    >>> async def main():
    ...     request = PreprocessedRequest(token_ids=[1])
    ...     async for chunk in iterate_in_thread(blocking, request, RequestContext()):
    ...         print(chunk.token_ids, chunk.finish_reason)
    >>> asyncio.run(main())
    [7] None
    [] stop
    """
    with ThreadInbox(request, context, max_ahead=max_ahead) as inbox:
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(_feed, make, inbox), daemon=True).start()
        async for chunk in inbox:
            yield chunk


def _feed(make: Callable[[], Iterable[LLMEngineOutput]], inbox: ThreadInbox) -> None:
    try:
        chunks = iter(make())
        try:
            for chunk in chunks:
                if not inbox.put(chunk):
                    break
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
    except BaseException as error:
        inbox.end(error)
    else:
        inbox.end()
