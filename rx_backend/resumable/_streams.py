"""Streams that a client can resume, by id and position."""

from __future__ import annotations

import asyncio
import reprlib
from collections.abc import Mapping
from typing import Final, Self, cast

from opentelemetry.metrics import MeterProvider

from operators import PositionDropped, PositionUnknown
from rx_backend.adapter import EngineAdapter
from rx_backend.checks import integer
from rx_backend.context import RequestContext
from rx_backend.errors import Cancelled, EngineShutdown, InvalidArgument
from rx_backend.protocols import Annotated, LLMEngineOutput, PreprocessedRequest
from rx_backend.resumable._errors import StreamNotFound
from rx_backend.resumable._held_stream import HeldStream
from rx_backend.resumable._ids import check_text, new_stream_id
from rx_backend.resumable._metrics import ResumableStats
from rx_backend.resumable._options import MayRead, Options, WhenAbandoned, same_owner
from rx_backend.resumable._reader import ResumableReader
from rx_backend.resumable._source import AdapterSource, OpenedStream, StreamSource
from rx_backend.resumable._table import StreamTable

__all__ = ("ResumableStreams",)


class ResumableStreams:
    """
    Hold running and recently ended answers, for clients that lose their connection and resume.

    A client requests the rest of an answer by stream id and position, and gets it once, even while
    the engine continues. Several clients may read one answer, each at its own pace. Create one per
    process, on the serving event loop, and close it before the engine is cleaned up; it is an
    asynchronous context manager.

    Args:
        source: An adapter, or another source of streams.
        max_streams: How many streams are held, running and ended. A further one replaces the
            earliest-ended stream without readers; if there is none, it fails with `TooManyStreams`.
        max_ahead: How many items the engine may be ahead of the fastest reader before it waits.
        max_bytes: How many bytes of a stream's items are held. Items that the fastest reader has
            read are dropped, oldest first; when there are none left to drop, the engine waits.
        linger_s: How long a stream runs without a reader, in seconds, before it is stopped.
        when_abandoned: ``continue``: the engine runs to its end even without readers; meanwhile
            neither `linger_s` nor `max_ahead` applies, and `max_bytes` drops unread items.
        stop_grace_s: How long an engine may take to end after that stop, in seconds, before its
            stream is closed.
        keep_s: How long an answer can be read after its end, in seconds; longer while it is read.
        may_read: Decides, from the stream's owner and the caller, whether the caller may read and
            stop it.
        meter_provider: Receives metrics; the global provider by default.

    Raises:
        InvalidArgument: An option is invalid; names it.

    >>> import asyncio
    >>> from rx_backend.engines import SampleEngine
    >>> async def main():
    ...     adapter = EngineAdapter(SampleEngine(token_interval_ms=0))
    ...     async with ResumableStreams(adapter) as streams:
    ...         async with await streams.start(PreprocessedRequest(token_ids=[1])) as reader:
    ...             begun = [(await anext(reader)).data.token_ids for _ in range(3)]
    ... # The connection is lost; the client reconnects.
    ...         async with await streams.resume(reader.stream_id, after=reader.position) as reader:
    ...             rest = [item.data.token_ids async for item in reader]
    ...     return begun, sum(rest, [])
    >>> asyncio.run(main())
    ([[0], [1], [2]], [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
    """

    def __init__(
        self,
        source: EngineAdapter[Annotated[LLMEngineOutput]] | StreamSource,
        *,
        max_streams: int = 10_000,
        max_ahead: int = 256,
        max_bytes: int = 1_048_576,
        linger_s: float = 30.0,
        when_abandoned: WhenAbandoned = "stop",
        stop_grace_s: float = 10.0,
        keep_s: float = 60.0,
        may_read: MayRead = same_owner,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._source = _as_source(source)
        self._options = options = Options(
            max_streams=max_streams,
            max_ahead=max_ahead,
            max_bytes=max_bytes,
            linger_s=linger_s,
            when_abandoned=when_abandoned,
            stop_grace_s=stop_grace_s,
            keep_s=keep_s,
            may_read=may_read,
        )
        self._table = StreamTable(options, meter_provider)
        self._is_closed = False

    def __len__(self) -> int:
        """Return the number of held streams."""
        return len(self._table)

    async def start(
        self,
        request: PreprocessedRequest,
        context: RequestContext | None = None,
        *,
        owner: str | None = None,
    ) -> ResumableReader:
        """
        Start the answer to *request*, and return its first reader.

        Args:
            request: The request.
            context: Its identity and cancellation; a new one by default.
            owner: Who may resume it, subject to `may_read`.

        Raises:
            BackendError: As for ``EngineAdapter.generate``; nothing remains.
            TooManyStreams: There is no room for it.
            EngineShutdown: The streams are closed.
        """
        self._check_open()
        if owner is not None:
            check_text("owner", owner)
        self._table.make_room()
        self._table.metrics()
        if context is None:
            context = RequestContext()
        stream_id = new_stream_id()
        with self._table.opening(context):
            opened = await self._source.start(stream_id, request, context, owner)
            held = await self._hold(stream_id, opened)
        return ResumableReader(held, held.shared.read(), lambda: self._discard(held))

    async def resume(self, id: str, after: int = 0, *, owner: str | None = None) -> ResumableReader:
        """
        Return another reader of a stream, which starts after the first *after* items.

        Args:
            id: The stream's id.
            after: How many of the items the client has.
            owner: The caller.

        Raises:
            StreamNotFound: There is no such stream, or `may_read` returns False.
            PositionDropped: Part of the rest is no longer held.
            PositionUnknown: The stream does not have that many items yet.
            InvalidArgument: An argument is invalid; names it.
            TooManyStreams: The stream was started elsewhere, and there is no room for it here.
            EngineShutdown: The streams are closed.
        """
        check_text("id", id)
        integer("after", after, low=0, unit="items")
        try:
            held = await self._found(id, owner)
            reader = ResumableReader(held, await held.read(after))
        except Exception as error:
            self._table.count_resume(_OUTCOMES.get(type(error), "failed"))
            raise
        self._table.count_resume("resumed")
        return reader

    async def stop(self, id: str, *, owner: str | None = None) -> None:
        """
        Ask the engine to end a stream, for all readers, which get the terminal (row A2).

        A stream that has ended is not changed.

        Raises:
            StreamNotFound: There is no such stream, or `may_read` returns False.
            EngineShutdown: The streams are closed.
        """
        check_text("id", id)
        self._check_open()
        held = self._table.get(id)
        with self._table.opening():
            opened = await self._source.find(id) if held is None else None
            try:
                found = held or opened
                if found is None or not self._options.allows(found.owner, owner):
                    raise StreamNotFound(_NOT_FOUND.format(reprlib.repr(id)))
                found.stop()
            finally:
                if opened is not None:
                    await opened.aclose()

    async def aclose(self) -> None:
        """
        Close all streams, and wait until everything is released. Idempotent.

        Running answers are stopped and dropped; their readers get `EngineShutdown`. A request that
        is still being set up is killed; its ``start`` raises once the engine has returned.
        """
        self._is_closed = True
        await self._table.aclose(EngineShutdown("the streams were closed"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def stats(self) -> ResumableStats:
        """Return the current numbers, as in the metrics."""
        return self._table.figures()

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineShutdown("the streams are closed")

    async def _hold(self, id: str, opened: OpenedStream) -> HeldStream:
        """Hold a stream that the source has opened."""
        try:
            self._check_open()
            return self._table.add(id, opened)
        except BaseException:
            await opened.aclose()
            raise

    async def _found(self, id: str, owner: str | None) -> HeldStream:
        """Return the stream *id*, which *owner* may read, even if it was started elsewhere."""
        self._check_open()
        held = self._table.get(id)
        if held is None:
            with self._table.opening():
                opened = await self._source.find(id)
                if opened is not None:
                    held = await self._take_in(id, opened, owner)
        if held is None or not self._options.allows(held.owner, owner):
            raise StreamNotFound(_NOT_FOUND.format(reprlib.repr(id)))
        return held

    async def _take_in(self, id: str, opened: OpenedStream, owner: str | None) -> HeldStream | None:
        """Hold a stream that was started elsewhere, unless it is held by now or may not be read."""
        held = self._table.get(id)
        try:
            if held is None and self._options.allows(opened.owner, owner):
                self._table.make_room()
                self._check_open()
                return self._table.add(id, opened)
        except BaseException:
            await opened.aclose()
            raise
        await opened.aclose()
        return held

    async def _discard(self, held: HeldStream) -> None:
        """Forget a stream that failed before its first token."""
        error = Cancelled("the stream failed before its first token")
        await asyncio.shield(self._table.discard(held, error))


_NOT_FOUND: Final = "there is no stream {}"
_OUTCOMES: Final[Mapping[type[Exception], str]] = {
    StreamNotFound: "not_found",
    PositionDropped: "position_dropped",
    PositionUnknown: "position_unknown",
}


def _as_source(source: object) -> StreamSource:
    if isinstance(source, EngineAdapter):
        return AdapterSource(cast("EngineAdapter[Annotated[LLMEngineOutput]]", source))
    if not isinstance(source, StreamSource):
        raise InvalidArgument(
            f"source: expected an EngineAdapter or a StreamSource, got {type(source).__name__}"
        )
    return source
