"""The streams of one process: running ones, kept ones, and room for more."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import Any

from opentelemetry.metrics import MeterProvider

from rx_backend.context import RequestContext
from rx_backend.errors import BackendError, Cancelled
from rx_backend.resumable._errors import TooManyStreams
from rx_backend.resumable._held_stream import HeldStream
from rx_backend.resumable._metrics import ResumableMetrics, ResumableStats
from rx_backend.resumable._options import Options
from rx_backend.resumable._source import OpenedStream

__all__ = ("StreamTable",)


class StreamTable:
    """
    All held streams, by id.

    Args:
        options: The limits.
        meter_provider: Receives metrics; the global provider by default.
    """

    def __init__(self, options: Options, meter_provider: MeterProvider | None) -> None:
        self._options = options
        self._meter_provider = meter_provider
        # Streams being opened, and the contexts of those being started, for which room is reserved.
        self._opening: dict[asyncio.Event, RequestContext | None] = {}
        self._running: dict[str, HeldStream] = {}
        # Ended streams, in the order in which they ended.
        self._kept: dict[str, HeldStream] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running) + len(self._kept)

    def get(self, id: str) -> HeldStream | None:
        """Return the stream *id*, if it is held."""
        return self._running.get(id) or self._kept.get(id)

    def make_room(self) -> None:
        """
        Make room for one more stream, if needed by forgetting the earliest-ended unread one.

        Raises:
            TooManyStreams: All of them are running or being read.
        """
        limit = self._options.max_streams
        begun = sum(context is not None for context in self._opening.values())
        if len(self) + begun < limit:
            return
        unread = (held for held in self._kept.values() if not held.shared.readers)
        oldest = next(unread, None)
        if oldest is None:
            self.count_limit_hit("max_streams", "refused")
            raise TooManyStreams(f"max_streams: all {limit} streams are running or being read")
        self.count_limit_hit("max_streams", "evicted")
        self.forget(oldest)

    @contextmanager
    def opening(self, context: RequestContext | None = None) -> Generator[None]:
        """
        Make :meth:`aclose` wait for the block, in which the source opens a stream.

        Args:
            context: The context of a stream being started: room is reserved for it, and
                :meth:`aclose` kills it.
        """
        over = asyncio.Event()
        self._opening[over] = context
        try:
            yield
        finally:
            del self._opening[over]
            over.set()

    def add(self, id: str, opened: OpenedStream) -> HeldStream:
        """Hold a stream that a source has opened, after :meth:`make_room`."""
        held = self._running[id] = HeldStream(id, opened, self._options, self)
        return held

    def forget(self, held: HeldStream) -> None:
        """Stop holding an ended stream."""
        held.forget()
        # Meanwhile another one with this id may have been found.
        if self._kept.get(held.id) is held:
            del self._kept[held.id]

    def ended(self, held: HeldStream) -> None:
        """Record that the answer of *held* has ended; called by the stream."""
        if self._running.get(held.id) is held:
            del self._running[held.id]
            self._kept[held.id] = held

    def expired(self, held: HeldStream) -> None:
        """Forget *held*, which was kept for long enough; called by the stream."""
        self.count_limit_hit("keep_s", "forgotten")
        self.forget(held)

    def close_soon(self, held: HeldStream, error: BackendError) -> None:
        """Close *held* in a task, for which :meth:`aclose` waits; called by the stream."""
        self._start(held.aclose(error))

    def release(self, held: HeldStream) -> None:
        """Close and forget *held*, which can be found again; called by the stream."""
        del self._running[held.id]
        self.discard(held, Cancelled("the stream was left"))

    def discard(self, held: HeldStream, error: BackendError) -> asyncio.Task[None]:
        """Close and forget *held* in a task, which continues even if not awaited."""
        return self._start(self._forget_closed(held, error))

    async def _forget_closed(self, held: HeldStream, error: BackendError) -> None:
        await held.aclose(error)
        self.forget(held)

    def _start(self, closing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def aclose(self, error: BackendError) -> None:
        """Stop, close and forget all streams; readers get *error*."""
        for context in self._opening.values():
            if context is not None:
                context.kill()
        for held in [*self._running.values(), *self._kept.values()]:
            held.shut_down()
            self.discard(held, error)
        while self._closing:
            await asyncio.wait(self._closing)
        for over in list(self._opening):
            await over.wait()

    def figures(self) -> ResumableStats:
        """Return the current numbers; may be called in any thread."""
        running, kept = list(self._running.values()), list(self._kept.values())
        both = [*running, *kept]
        return ResumableStats(
            running=len(running),
            kept=len(kept),
            readers=sum(held.shared.readers for held in both),
            held_bytes=sum(held.log.held_bytes for held in both),
            waiting=Counter(held.waits_for for held in running if held.waits_for),
        )

    def count_limit_hit(self, option: str, effect: str) -> None:
        """Count that a limit took effect."""
        metrics = self.metrics()
        if metrics is not None:
            metrics.count_limit_hit(option, effect)

    def count_resume(self, outcome: str) -> None:
        """Count a request for the rest of a stream."""
        metrics = self.metrics()
        if metrics is not None:
            metrics.count_resume(outcome)

    def metrics(self) -> ResumableMetrics | None:
        """Return the metrics; a global provider may be installed after the streams were made."""
        metrics = ResumableMetrics.of(self._meter_provider)
        if metrics is not None:
            metrics.observe(self)
        return metrics
