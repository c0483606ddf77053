"""A queue of a request's chunks, from their producer to the stream's one consumer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from operators.assembly import Mailbox
from operators.authoring import has_content
from rx_backend.context import RequestContext
from rx_backend.engines.answer_progress import AnswerProgress
from rx_backend.errors import Unknown
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest

__all__ = ("ChunkQueue",)


class ChunkQueue:
    """
    A queue of chunks for the consumer, which enters it as a context manager and iterates over it.

    Once the request is stopped, each open answer gets a ``cancelled`` terminal with its usage, and
    these are the last items (row E4); in decode mode a stop takes effect after the first token (row
    A4). The queue belongs to its event loop; other threads may read :attr:`is_full` and
    :attr:`is_abandoned`.

    Args:
        request: The request, for the usage.
        context: Its context, whose stop ends the stream.
        max_ahead: The number of waiting chunks at which the queue is full.
        on_change: Called in the loop when there is room again, at a stop, and when the consumer
            exits.

    Attributes:
        is_abandoned: Whether the consumer has exited the context, so that new chunks are useless.
        sent: How many chunks were sent, counted by the producer.
    """

    __slots__ = (
        "_box",
        "_context",
        "_has_begun",
        "_last",
        "_max_ahead",
        "_on_change",
        "_progress",
        "_taken",
        "_unlisten",
        "is_abandoned",
        "sent",
    )

    def __init__(
        self,
        request: PreprocessedRequest,
        context: RequestContext,
        *,
        max_ahead: int,
        on_change: Callable[[], object],
    ) -> None:
        self._progress = AnswerProgress(request)
        self._context = context
        self._max_ahead = max_ahead
        self._on_change = on_change
        self._box: Mailbox[LLMEngineOutput] = Mailbox()
        self._unlisten: Callable[[], None] = lambda: None
        self._taken = 0
        self._has_begun = False
        # The chunks still to be yielded once the request is stopped.
        self._last: list[LLMEngineOutput] | None = None
        self.is_abandoned = False
        self.sent = 0

    @property
    def is_full(self) -> bool:
        """Whether *max_ahead* chunks wait."""
        return self.sent - self._taken >= self._max_ahead

    def receive(self, chunk: LLMEngineOutput) -> None:
        """Pass a chunk to the consumer."""
        self._box.put(chunk)

    def end(self, error: BaseException | None = None) -> None:
        """
        End the stream after the waiting chunks, with *error* if there is one.

        Anything but an ``Exception`` becomes an `Unknown`.
        """
        if error is not None and not isinstance(error, Exception):
            error = Unknown(f"a thread of the engine has ended: {error!r}")
        self._box.end(error)

    def __enter__(self) -> Self:
        self._unlisten = self._context.stopped().listen(self._note_stop)
        return self

    def __exit__(self, *_: object) -> None:
        self._unlisten()
        self._box.close()
        self.is_abandoned = True
        self._on_change()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LLMEngineOutput:
        box = self._box
        while self._last is None:
            if self._is_stopped():
                self._last = self._progress.cancelled()
                break
            if box.waiting:
                chunk = box.take()
                self._note_taken(chunk)
                return chunk
            if box.is_closed:
                box.raise_end()
            await box.changed()
        if self._last:
            return self._last.pop(0)
        raise StopAsyncIteration

    def _note_stop(self) -> None:
        self._box.wake()
        self._on_change()

    def _is_stopped(self) -> bool:
        context = self._context
        return context.is_stopped and (self._has_begun or not context.defers_abort)

    def _note_taken(self, chunk: LLMEngineOutput) -> None:
        self._progress.add(chunk)
        self._has_begun = self._has_begun or has_content(chunk)
        was_full = self.is_full
        self._taken += 1
        if was_full:
            self._on_change()
