"""Streams that a client can come back to, by id and position."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Self, cast

from opentelemetry.metrics import MeterProvider

from operators import PositionDropped, PositionUnknown
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.errors import Cancelled, EngineShutdown, InvalidArgument
from rx_backend.protocols import Annotated, LLMEngineOutput, PreprocessedRequest
from rx_backend.resumable._errors import StreamNotFound, TooManyStreams
from rx_backend.resumable._held_stream import HeldStream
from rx_backend.resumable._ids import check_position, new_stream_id
from rx_backend.resumable._metrics import Held, ResumableMetrics
from rx_backend.resumable._options import MayRead, Options, WhenLeft, same_owner
from rx_backend.resumable._reader import ResumableReader
from rx_backend.resumable._source import AdapterSource, OpenedStream, StreamSource

__all__ = ("ResumableStreams",)


class ResumableStreams:
    """
    Hold running and just-ended answers, for clients that lose their connection and come back.

    A client that has read to a position asks for the rest by stream id and position, and gets it
    once, also while the engine continues. Several clients may read one answer, each at its own pace.
    Make one per process, on the event loop that it serves, and close it before the engine is cleaned
    up; it is an asynchronous context manager.

    Args:
        source: An adapter; or where else streams come from.
        max_streams: How many streams are held, running and ended. One more takes the place of the
            one that ended first and has no reader; if there is none it is `TooManyStreams`.
        max_ahead: How many items the engine may be ahead of the fastest reader before it waits.
        max_bytes: How many bytes of a stream's items are held. What the fastest reader has read is
            dropped first, oldest first; when nothing is left to drop, the engine waits.
        linger_s: How long a stream runs without a reader, in seconds, before it is stopped.
        when_left: ``continue``: the engine comes to its end without readers too; neither `linger_s`
            nor `max_ahead` applies while there is none, and `max_bytes` drops what nobody has read.
        stop_grace_s: How long an engine may take to end after that stop, in seconds, before its
            stream is closed.
        keep_s: How long an answer can be read after its end, in seconds; longer while it is read.
        may_read: Decides by the stream's owner and the one who asks who may read and stop it.
        meter_provider: Receives metrics; the global provider by default.

    Raises:
        InvalidArgument: An option does not fit; names it.

    >>> import asyncio
    >>> from rx_backend.engines import SampleEngine
    >>> async def main():
    ...     adapter = EngineAdapter(SampleEngine(token_interval_ms=0))
    ...     async with ResumableStreams(adapter) as streams:
    ...         async with await streams.start(PreprocessedRequest(token_ids=[1])) as reader:
    ...             begun = [(await anext(reader)).data.token_ids for _ in range(3)]
    ...         # The connection is lost; the client comes back.
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
        when_left: WhenLeft = "stop",
        stop_grace_s: float = 10.0,
        keep_s: float = 60.0,
        may_read: MayRead = same_owner,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._source = _as_source(source)
        self._options = Options(
            max_streams=max_streams,
            max_ahead=max_ahead,
            max_bytes=max_bytes,
            linger_s=linger_s,
            when_left=when_left,
            stop_grace_s=stop_grace_s,
            keep_s=keep_s,
            may_read=may_read,
        )
        self._meter_provider = meter_provider
        self._is_closed = False
        self._starting = 0
        self._running: dict[str, HeldStream] = {}
        # Those that ended, in the order of their ends.
        self._kept: dict[str, HeldStream] = {}

    def __len__(self) -> int:
        """Return the number of streams that are held."""
        return len(self._running) + len(self._kept)

    async def start(
        self,
        request: PreprocessedRequest,
        context: RequestContext | None = None,
        *,
        owner: str | None = None,
    ) -> ResumableReader:
        """
        Begin the answer to *request*, and return its first reader.

        Args:
            request: The request.
            context: Its identity and cancellation; a new one by default.
            owner: Who may come back for it, as `may_read` decides.

        Raises:
            BackendError: As ``EngineAdapter.generate``; nothing is left then.
            TooManyStreams: There is no room for it.
            EngineShutdown: The streams are closed.
        """
        self._check_open()
        self._make_room()
        if context is None:
            context = RequestContext()
        stream_id = new_stream_id()
        self._starting += 1
        try:
            opened = await self._source.start(stream_id, request, context, owner)
        finally:
            self._starting -= 1
        held = await self._hold(stream_id, opened)
        return ResumableReader(held, 0, lambda: self._discard(held))

    async def resume(self, id: str, after: int = 0, *, owner: str | None = None) -> ResumableReader:
        """
        Return one more reader of a stream, for what comes behind the first *after* items.

        Args:
            id: The stream's id.
            after: How many of the items are known already.
            owner: Who asks.

        Raises:
            StreamNotFound: There is no such stream, or `may_read` says no.
            PositionDropped: Some of the rest is not held any more.
            PositionUnknown: The stream has not so many items yet.
            InvalidArgument: An argument does not fit; names it.
            TooManyStreams: The stream was begun elsewhere, and there is no room for it here.
            EngineShutdown: The streams are closed.
        """
        check_position("after", after)
        try:
            held = await self._found(id, owner)
            reader = ResumableReader(held, after)
        except StreamNotFound:
            self._count_resume("not_found")
            raise
        except PositionDropped:
            self._count_resume("position_dropped")
            raise
        except PositionUnknown:
            self._count_resume("position_unknown")
            raise
        self._count_resume("resumed")
        return reader

    async def stop(self, id: str, *, owner: str | None = None) -> None:
        """
        Ask the engine to end a stream, whoever reads it; its readers get the terminal (row A2).

        A stream that has ended is left as it is.

        Raises:
            StreamNotFound: There is no such stream, or `may_read` says no.
            EngineShutdown: The streams are closed.
        """
        (await self._found(id, owner)).stop()

    async def aclose(self) -> None:
        """
        Close all streams, and wait until everything is released. Idempotent.

        Answers that run are stopped and dropped; their readers get `EngineShutdown`.
        """
        self._is_closed = True
        every = [*self._running.values(), *self._kept.values()]
        for held in every:
            held.stop()
            held.close(EngineShutdown("the streams were closed"))
        for held in every:
            await held.wait_closed()
            held.forget()
        self._kept.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def held(self) -> Held:
        """Return what is held at the moment, as the metrics have it."""
        streams = [*self._running.values(), *self._kept.values()]
        return Held(
            running=len(self._running),
            kept=len(self._kept),
            readers=sum(held.shared.readers for held in streams),
            held_bytes=sum(held.log.held_bytes for held in streams),
            waiting=Counter(held.waits_for for held in streams if held.waits_for),
        )

    def ended(self, held: HeldStream) -> None:
        """Note that the answer of *held* has ended; called by the stream."""
        if self._running.pop(held.id, None) is not None:
            self._kept[held.id] = held

    def expired(self, held: HeldStream) -> None:
        """Forget *held*, which was kept for long enough; called by the stream."""
        self._kept.pop(held.id, None)

    def count_bound(self, option: str, effect: str) -> None:
        """Count that a bound took effect."""
        metrics = self._metrics()
        if metrics is not None:
            metrics.count_bound(option, effect)

    def _metrics(self) -> ResumableMetrics | None:
        """Return the metrics; a global provider may be installed after the streams were made."""
        metrics = ResumableMetrics.of(self._meter_provider)
        if metrics is not None:
            metrics.add(self)
        return metrics

    def _count_resume(self, outcome: str) -> None:
        metrics = self._metrics()
        if metrics is not None:
            metrics.count_resume(outcome)

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineShutdown("the streams are closed")

    def _make_room(self) -> None:
        """Make room for one more stream, in place of the one that ended first where there is none."""
        limit = self._options.max_streams
        if len(self) + self._starting < limit:
            return
        unread = (held for held in self._kept.values() if not held.shared.readers)
        oldest = next(unread, None)
        if oldest is None:
            self.count_bound("max_streams", "refused")
            raise TooManyStreams(f"{limit} streams are held, and none can be forgotten")
        self.count_bound("max_streams", "evicted")
        oldest.forget()
        del self._kept[oldest.id]

    async def _hold(self, id: str, opened: OpenedStream) -> HeldStream:
        """Hold what the source has opened."""
        try:
            self._check_open()
            held = HeldStream(id, opened, self._options, self)
        except BaseException:
            await opened.aclose()
            raise
        self._running[id] = held
        return held

    async def _found(self, id: str, owner: str | None) -> HeldStream:
        """Return the stream *id*, which *owner* may read, also where it was begun elsewhere."""
        self._check_open()
        held = self._running.get(id) or self._kept.get(id)
        if held is None:
            opened = await self._source.find(id)
            held = self._running.get(id) or self._kept.get(id)
            if opened is not None:
                held = await self._take_in(id, opened, held, owner)
        if held is None or not self._options.allows(held.owner, owner):
            raise StreamNotFound(f"there is no stream {id!r}")
        return held

    async def _take_in(
        self, id: str, opened: OpenedStream, held: HeldStream | None, owner: str | None
    ) -> HeldStream | None:
        """Hold a stream that was found, unless it is held by now or may not be read."""
        try:
            is_wanted = held is None and self._options.allows(opened.owner, owner)
            if is_wanted:
                self._make_room()
        except BaseException:
            await opened.aclose()
            raise
        if is_wanted:
            return await self._hold(id, opened)
        await opened.aclose()
        return held

    async def _discard(self, held: HeldStream) -> None:
        """Forget a stream that failed before its first token."""
        held.close(Cancelled("the stream failed before its first token"))
        await held.wait_closed()
        held.forget()
        self._kept.pop(held.id, None)


def _as_source(source: object) -> StreamSource:
    if isinstance(source, EngineAdapter):
        return AdapterSource(cast("EngineAdapter[Annotated[LLMEngineOutput]]", source))
    if not isinstance(source, StreamSource):
        raise InvalidArgument(
            f"source: expected an EngineAdapter or a StreamSource, got {type(source).__name__}"
        )
    return source
