"""What one client reads of a resumable stream."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from copy import copy
from typing import Self

from operators import PositionDropped, SourceClosed, peek_first
from operators.authoring import Reader
from rx_backend.context import RequestContext
from rx_backend.errors import Unknown, as_backend_error
from rx_backend.protocols import Annotated, CompletionUsage, LLMEngineOutput
from rx_backend.resumable._held_stream import HeldStream
from rx_backend.resumable._ids import event_id

__all__ = ("ResumableReader",)

Item = Annotated[LLMEngineOutput]


class ResumableReader:
    """
    One reader of a stream: an async iterator of its items, and an async context manager.

    Each item's ``id`` is its event id, to resume behind it. What a reader is behind comes as few
    merged items. Closing the reader, cancelling its pull and losing it leave the answer alone: it
    goes on for the other readers, and for ``linger_s`` without any.

    Made by :class:`ResumableStreams`.

    Attributes:
        stream_id: The stream's id.
        position: How many of the answer's items were handed out to this reader and those before it.
        context: The request's context.
        created: When the answer was begun, in seconds since the epoch.
        earlier_answers: The answers of which a client has seen something before the reader's first item:
            text, log probabilities or an end.
        earlier_usage: What the terminals before the reader's first item said that their answers
            cost.
    """

    def __init__(
        self,
        held: HeldStream,
        reader: Reader[Item],
        discard: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.stream_id = held.id
        self.position = reader.position
        self.context: RequestContext = held.context
        self.created = held.created
        self.earlier_answers: set[int] = {
            answer for answer, begun in held.log.begun.items() if begun <= self.position
        }
        self.earlier_usage: list[CompletionUsage] = [
            usage for end, usage in held.log.usages if end <= self.position
        ]
        self._reader = reader
        self._discard = discard
        self._held = held
        self._peeked: deque[tuple[Item, int]] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        if self._peeked:
            item, self.position = self._peeked.popleft()
            return item
        try:
            item = await anext(self._reader)
        except SourceClosed:
            item = self._cut_off()
        except PositionDropped:
            self._held.count_lag()
            raise
        self.position = position = self._reader.position
        item.id = event_id(self.stream_id, position)
        return item

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def peek_first(self) -> Self:
        """
        Wait for the first token, so that a failure before it is raised here (rows S5, S6).

        As :meth:`rx_backend.ResponseStream.peek_first`. Where the stream was begun for this reader,
        a failure forgets the stream.

        Raises:
            BackendError: The error that came before any token and any other terminal; ``Unknown``
                for an ``error`` terminal. The reader is closed.
        """
        position, peeked = self.position, list[tuple[Item, int]]()
        try:
            run = await peek_first(self._recorded(peeked), error=Unknown)
            await run.aclose()
        except Exception as error:
            await self.aclose()
            # One that has fallen behind the others has no say in theirs.
            if self._discard is not None and not isinstance(error, PositionDropped):
                await self._discard()
            typed = as_backend_error(error)
            if typed is error:
                raise
            raise typed from error
        except BaseException:
            # As by the cancellation of any pull, the reader leaves: what was pulled is gone.
            await self.aclose()
            raise
        finally:
            self.position = position
        self._peeked.extendleft(reversed(peeked))
        return self

    async def aclose(self) -> None:
        """Leave the stream. Idempotent."""
        self._peeked.clear()
        await self._reader.aclose()

    def _cut_off(self) -> Item:
        """Return the error item of an answer that was closed before its end (row S9)."""
        error = self._held.cut_off
        if error is None:
            raise StopAsyncIteration
        return Annotated.from_error(copy(error))

    async def _recorded(self, peeked: list[tuple[Item, int]]) -> AsyncGenerator[Item]:
        async for item in self:
            peeked.append((item, self.position))
            yield item
