"""
The SDK's queue of finished spans, with a count of those that are lost.

Importing this module imports the SDK's exporters: ``configure()`` does so.
"""

from __future__ import annotations

import inspect
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from rx_backend.telemetry.losses import CUT_OFF, Losses, export_failure

__all__ = ("CountedSpans",)

_QUEUE_FULL = "the queue is full, the receiver is slow or down"


class CountedSpans(SpanProcessor):
    """
    The SDK's batches of spans, with a count of those that are lost.

    A span is lost when it ends while the queue is full, when its export fails, or when it still
    waits at the end of `settle`. Ending a span never waits, and takes no lock: the garbage
    collector may end one anywhere.

    Args:
        exporter: Where spans go.
        losses: Where losses are counted.
        queue_size: Most spans that wait.
        batch_size: Most of them in one export.
    """

    def __init__(
        self, exporter: SpanExporter, losses: Losses, *, queue_size: int, batch_size: int
    ) -> None:
        self._losses = losses
        self._queue_size = queue_size
        self._exporter = _CountedSpanExporter(exporter, losses)
        self._batches = BatchSpanProcessor(
            self._exporter, max_queue_size=queue_size, max_export_batch_size=batch_size
        )
        self._is_closed = False
        self._closer = _Closer(self._batches.shutdown)
        _call_after_fork(self._after_fork)

    def on_end(self, span: ReadableSpan) -> None:
        """Put *span* into the queue where there is room."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        waiting = self._exporter.waiting
        if self._is_closed:
            self._losses.add("traces", 1, None)
        elif len(waiting) >= self._queue_size:
            # The SDK's queue would drop its oldest span, and log each.
            self._losses.add("traces", 1, _QUEUE_FULL)
        else:
            waiting.append(None)
            self._batches.on_end(span)

    def start_closing(self) -> None:
        """Begin to export what waits, and take no more."""
        self._is_closed = True
        self._closer.start()

    def wait_closed(self, within_s: float) -> None:
        """Wait for the end of that, no longer than so many seconds."""
        self._closer.wait(within_s)

    def cut_off(self) -> None:
        """End the exporter, whatever it is doing."""
        self._exporter.shutdown()

    def settle(self, within_s: float) -> None:
        """Wait for what was cut off to fail, no longer than that; the rest is lost too."""
        self._closer.wait(within_s)
        unsettled = self._exporter.write_off()
        if unsettled:
            self._losses.add("traces", unsettled, CUT_OFF)

    def shutdown(self) -> None:
        """Export what waits, for half a minute at most, as the SDK does."""
        self.start_closing()
        self.wait_closed(30.0)
        self.cut_off()
        self.settle(0.0)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Export what waits."""
        return self._batches.force_flush(timeout_millis)

    def _after_fork(self) -> None:
        """In a forked process the SDK has emptied the queue, and the closer's thread is gone."""
        self._exporter.after_fork()
        self._losses.after_fork()
        if not self._is_closed:
            self._closer = _Closer(self._batches.shutdown)


class _CountedSpanExporter(SpanExporter):
    """
    An exporter that counts what fails.

    Attributes:
        waiting: As many items as there are spans in the queue.
    """

    waiting: deque[None]

    def __init__(self, exporter: SpanExporter, losses: Losses) -> None:
        self._exporter = exporter
        self._losses = losses
        self._is_shut_down = False
        self._is_written_off = False
        self.after_fork()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._lock:
            self._under_way = len(spans)
            for _ in spans:
                self.waiting.pop()
        if self._is_shut_down:
            reason = CUT_OFF
        else:
            reason = export_failure(
                lambda: self._exporter.export(spans) is SpanExportResult.SUCCESS,
                lambda: self._is_shut_down,
            )
        with self._lock:
            self._under_way = 0
            is_counted = self._is_written_off
        if reason is None:
            return SpanExportResult.SUCCESS
        if not is_counted:
            self._losses.add("traces", len(spans), reason)
        return SpanExportResult.FAILURE

    def write_off(self) -> int:
        """Give how many spans are not settled, and count no more of them."""
        with self._lock:
            self._is_written_off = True
            return self._under_way + len(self.waiting)

    def shutdown(self) -> None:
        if not self._is_shut_down:
            self._is_shut_down = True
            end: Callable[..., object] = self._exporter.shutdown
            # Some wait for the export under way, unless told not to.
            waits = "timeout_millis" in inspect.signature(end).parameters
            end(**({"timeout_millis": 0.0} if waits else {}))

    def after_fork(self) -> None:
        self._lock = threading.RLock()
        self._under_way = 0
        self.waiting = deque()


class _Closer:
    """
    A thread that waits to close something, so that closing may be given up.

    It is made beforehand because at a process's exit no thread can be started any more.

    Args:
        close: What to call, once.
    """

    def __init__(self, close: Callable[[], object]) -> None:
        self._close = close
        self._asked, self._done = threading.Event(), threading.Event()
        threading.Thread(target=self._run, name="rx-backend-telemetry", daemon=True).start()

    def start(self) -> None:
        """Call it, without waiting for its end."""
        self._asked.set()

    def wait(self, within_s: float) -> None:
        """Wait for its end, no longer than so many seconds."""
        self._done.wait(max(0.0, within_s))

    def _run(self) -> None:
        self._asked.wait()
        try:
            self._close()
        finally:
            self._done.set()


def _call_after_fork(method: Callable[[], None]) -> None:
    """Have a method called in forked processes, as long as its object lives."""
    weak = weakref.WeakMethod(method)

    def call() -> None:
        alive = weak()
        if alive is not None:
            alive()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)
