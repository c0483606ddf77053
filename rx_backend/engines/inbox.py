"""From callbacks on any thread to an engine's stream, with back-pressure."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Self

from operators.assembly import running_loop
from rx_backend.checks import integer
from rx_backend.context import RequestContext
from rx_backend.engines.chunk_queue import ChunkQueue
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest

__all__ = ("ThreadInbox",)


class ThreadInbox:
    """
    Carries one request's chunks from other threads to its stream.

    For engines that call back on their own threads: enter an inbox in ``generate``, :meth:`put`
    chunks in the callback, and iterate over the inbox. Once the request is stopped, each open
    answer gets a ``cancelled`` terminal, and these are the last items (row E4). After a stop or a
    drop :meth:`put` returns False.

    Args:
        request: The request, for its answers and their usage.
        context: Its context.
        max_ahead: How many chunks may wait for the consumer.

    Raises:
        InvalidArgument: *max_ahead* is below 1.

    >>> import asyncio, threading
    >>> from rx_backend import LLMEngineOutput, PreprocessedRequest, RequestContext
    >>> async def generate(request, context):
    ...     def on_thread():
    ...         for token in range(2):
    ...             if not inbox.put(LLMEngineOutput.token(token)):
    ...                 return
    ...         inbox.put(LLMEngineOutput.stop())
    ...         inbox.end()
    ...     with ThreadInbox(request, context) as inbox:
    ...         threading.Thread(target=on_thread).start()
    ...         async for chunk in inbox:
    ...             yield chunk
    >>> async def main():
    ...     async for chunk in generate(PreprocessedRequest(token_ids=[1]), RequestContext()):
    ...         print(chunk.token_ids, chunk.finish_reason)
    >>> asyncio.run(main())
    [0] None
    [1] None
    [] stop
    """

    __slots__ = ("_loop", "_queue", "_room")

    def __init__(
        self, request: PreprocessedRequest, context: RequestContext, *, max_ahead: int = 64
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = threading.Condition()
        max_ahead = integer("max_ahead", max_ahead, low=1, unit="chunks")
        self._queue = ChunkQueue(request, context, max_ahead=max_ahead, on_change=self._notify)

    @property
    def is_abandoned(self) -> bool:
        """Whether the consumer has exited, by a stop, a drop or at the end."""
        return self._queue.is_abandoned

    def put(self, chunk: LLMEngineOutput) -> bool:
        """
        Pass a chunk to the consumer; wait while there is no room.

        For any thread except the event loop's, which it would block forever.

        Returns:
            Whether the consumer still reads; if not, the chunk is dropped and the request is over.

        Raises:
            RuntimeError: There is no room, and this is the event loop's own thread.
        """
        with self._room:
            if (
                self._queue.is_full
                and not self._queue.is_abandoned
                and running_loop() is self._loop
            ):
                raise RuntimeError(
                    "ThreadInbox.put: there is no room, and the event loop can't wait for its own "
                    "consumer: put chunks in another thread"
                )
            self._room.wait_for(lambda: self._queue.is_abandoned or not self._queue.is_full)
            if self._queue.is_abandoned:
                return False
            self._queue.sent += 1
            # In the lock, so that chunks of several threads keep their order.
            self._call(self._queue.receive, chunk)
        return True

    def end(self, error: BaseException | None = None) -> None:
        """
        End the stream after what was put, with *error* if there is one. Thread-safe.

        Anything but an ``Exception`` ends the stream with `Unknown`: raised in the event loop,
        ``SystemExit`` would end the process.
        """
        self._call(self._queue.end, error)

    def __enter__(self) -> Self:
        self._queue.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._queue.__exit__(*error)

    def __aiter__(self) -> AsyncIterator[LLMEngineOutput]:
        return self._queue

    def _notify(self) -> None:
        with self._room:
            self._room.notify_all()

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        # A closed loop has no consumer.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)
