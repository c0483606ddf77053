"""One client's reader of a resumable stream."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from copy import copy
from typing import Final, Self

from operators import PositionDropped, SourceClosed, peek_first
from operators.authoring import Reader
from rx_backend.context import RequestContext
from rx_backend.errors import StreamIncomplete, Unknown, as_backend_error
from rx_backend.protocols import Annotated, CompletionUsage, LLMEngineOutput
from rx_backend.resumable._held_stream import HeldStream
from rx_backend.resumable._ids import event_id

__all__ = ("ResumableReader",)

Item = Annotated[LLMEngineOutput]


class ResumableReader:
    """
    One reader of a stream: an async iterator of its items, and an async context manager.

    Each item's ``id`` is its event id, from which to resume after it. A lagging reader gets few
    merged items. Closing the reader, cancelling its pull and dropping the last reference do not
    affect the answer: it continues for the other readers, and for ``linger_s`` without any.

    Made by :class:`ResumableStreams`.

    Attributes:
        stream_id: The stream's id.
        position: How many of the answer's items were handed out to this reader and those before it.
        context: The request's context.
        created: When the answer was started, in seconds since the epoch.
        earlier_answers: The answers of which a client saw text, log probabilities or the end before
            the reader's first item.
        earlier_usage: The usages of the terminals before the reader's first item.
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
            # An answer that was closed before its end (row S9).
            item = Annotated.from_error(copy(self._held.cut_off or _CLOSED))
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

        Like :meth:`rx_backend.ResponseStream.peek_first`. If the stream was started for this
        reader, a failure forgets the stream.

        Raises:
            BackendError: The error that came before any token or other terminal; ``Unknown`` for an
                ``error`` terminal. The reader is closed.
        """
        position, peeked = self.position, list[tuple[Item, int]]()
        try:
            run = await peek_first(self._recorded(peeked), error=Unknown)
            await run.aclose()
        except Exception as error:
            await self.aclose()
            # A reader that lags behind others must not discard their stream.
            if self._discard is not None and not isinstance(error, PositionDropped):
                await self._discard()
            typed = as_backend_error(error)
            if typed is error:
                raise
            raise typed from error
        except BaseException:
            # As with any cancelled pull, the reader leaves, and the pulled items are lost.
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

    async def _recorded(self, peeked: list[tuple[Item, int]]) -> AsyncGenerator[Item]:
        async for item in self:
            peeked.append((item, self.position))
            yield item


_CLOSED: Final = StreamIncomplete("the stream was closed before its end")
