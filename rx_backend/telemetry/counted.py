"""Exporters that count what does not arrive, and log the first of it."""

from __future__ import annotations

import inspect
import logging
import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from rx_backend.telemetry.repaired_span import repaired_span
from rx_backend.telemetry.settings import hide_secrets

__all__ = (
    "CountedExporter",
    "CountedMetricExporter",
    "CountedSpanExporter",
    "CountedSpans",
    "observe_lost",
)

_LOST: Final = "rx_backend.telemetry.lost"
_QUEUE_FULL: Final = "the queue is full, the receiver is slow or down"
_CUT_OFF: Final = "not exported before the deadline of the shutdown"
_LONGEST_REASON: Final = 300
_RETRYING: Final = re.compile(r", retrying in [\d.]+s\b")

_logger = logging.getLogger("rx_backend.telemetry")


class CountedExporter(ABC):
    """
    Counts the items on their way through an exporter, and those that are lost. Thread-safe.

    What the exporter logs while it exports is held back: it would repeat itself for each batch and
    each try as long as a receiver is down.

    Args:
        exporter: Where items go, one of the SDK's.

    Attributes:
        pending: Items that wait for their export, or are being exported.
        lost: Items whose export failed, or for which there was no room.
    """

    items: ClassVar[str]

    def __init__(self, exporter: Any) -> None:
        self.pending = self.lost = 0
        self._exporter = exporter
        self._is_ended = self._has_warned = False
        # Reentrant, as the garbage collector may end a span anywhere.
        self._lock = threading.RLock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._start_anew)
        _hold_back_logs()

    def __getattr__(self, name: str) -> Any:
        # What the SDK's reader of metrics asks for besides.
        return getattr(self._exporter, name)

    @abstractmethod
    def prepare(self, batch: Any) -> tuple[Any, int]:
        """Return a batch as it can be exported, and how many pending items it has."""

    def accept(self, limit: int) -> bool:
        """Add an item to those that are pending, unless they are *limit* already."""
        with self._lock:
            has_room = self.pending < limit
            self.pending += has_room
        return has_room

    def lose(self, count: int, reason: str | None) -> None:
        """Count lost items, and warn of the first that have a reason."""
        with self._lock:
            self.lost += count
            if reason is None or self._has_warned:
                return
            self._has_warned = True
        text = "%s are being lost: %s; %s counts them, and this is logged once"
        _logger.warning(text, self.items, reason, _LOST)

    def export(self, batch: Any, *args: Any, **options: Any) -> object:
        """Export a batch, and count its items as lost where that fails; never raises."""
        batch, count = self.prepare(batch)
        logged: list[str] = []
        _thread.log = lambda message: logged.append(_CUT_OFF if self._is_ended else message)
        result = None
        try:
            if not self._is_ended:
                result = self._exporter.export(batch, *args, **options)
        except Exception as error:
            _thread.log(f"{type(error).__name__}: {error}")
        finally:
            log, _thread.log = _thread.log, None
        if getattr(result, "name", None) == "SUCCESS":
            self._finish(count, None)
        else:
            log("the exporter gave no reason")
            # The first line has the cause, later ones say that it was given up. It may quote what
            # the receiver has sent, or its address with a password.
            reason = _RETRYING.sub("", hide_secrets(logged[0])[:_LONGEST_REASON])
            self._finish(count, "".join(c if c.isprintable() else "?" for c in reason))
        return result

    def shutdown(self, *_args: object, **_options: object) -> None:
        """End the exporter, whatever it is doing."""
        with self._lock:
            was_ended, self._is_ended = self._is_ended, True
        if not was_ended:
            # Some wait for the export under way, unless told not to.
            waits = "timeout_millis" in inspect.signature(self._exporter.shutdown).parameters
            self._exporter.shutdown(**({"timeout_millis": 0.0} if waits else {}))

    def discard(self) -> None:
        """Count what is still pending as lost."""
        self._finish(self.pending, _CUT_OFF)

    def _finish(self, count: int, reason: str | None) -> None:
        with self._lock:
            # Fewer where they were discarded meanwhile.
            count = min(count, self.pending)
            self.pending -= count
        if count and reason is not None:
            self.lose(count, reason)

    def _start_anew(self) -> None:
        """Forget, in a forked process, what the parent exports; another thread had the lock."""
        self._lock = threading.RLock()
        self.pending = self.lost = 0


class CountedSpanExporter(CountedExporter):
    """Counts spans."""

    items = "spans"

    def prepare(self, batch: Sequence[ReadableSpan]) -> tuple[Sequence[ReadableSpan], int]:
        """Return a batch with text that can be encoded, and how many spans it has."""
        return [*map(repaired_span, batch)], len(batch)


class CountedMetricExporter(CountedExporter):
    """Counts the points of metrics."""

    items = "metric points"

    def prepare(self, batch: MetricsData) -> tuple[MetricsData, int]:
        """Return a batch as it is, and how many points it has."""
        points = sum(
            len(metric.data.data_points)
            for resource in batch.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        )
        with self._lock:
            self.pending += points
        return batch, points


class CountedSpans(BatchSpanProcessor):
    """
    The SDK's processor, with a count of the spans that are lost; ending a span never waits.

    Args:
        counted: Where spans go.
        queue_size: Most spans that are pending.
        batch_size: Most spans in one export.

    Attributes:
        counted: Counts the spans.
    """

    def __init__(self, counted: CountedSpanExporter, queue_size: int, batch_size: int) -> None:
        self.counted = counted
        self._queue_size = queue_size
        self._is_closed = False
        target: Any = counted
        super().__init__(target, max_queue_size=queue_size, max_export_batch_size=batch_size)

    def on_end(self, span: ReadableSpan) -> None:
        """Queue *span* where there is room; the SDK would drop the oldest, and log each."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if self._is_closed:
            self.counted.lose(1, None)
        elif self.counted.accept(self._queue_size):
            super().on_end(span)
        else:
            self.counted.lose(1, _QUEUE_FULL)

    def shutdown(self) -> None:
        """Export what is pending, for half a minute at most, as the SDK does."""
        self._is_closed = True
        super().shutdown()


class _HoldBack(logging.Filter):
    """Hands over what exporters log on a thread that exports for us, instead of logging it."""

    def filter(self, record: logging.LogRecord) -> bool:
        log = _thread.log
        if log is None or record.levelno < logging.WARNING:
            return True
        log(record.getMessage())
        return False


class _Thread(threading.local):
    log: Callable[[str], None] | None = None


def observe_lost(provider: MeterProvider, lost: Callable[[], Mapping[str, int]]) -> None:
    """Have the counts of lost items, by signal, collected with the metrics of *provider*."""

    def observe(_: CallbackOptions) -> list[Observation]:
        return [Observation(n, {"rx_backend.signal": signal}) for signal, n in lost().items()]

    provider.get_meter("rx_backend").create_observable_counter(
        _LOST, [observe], "{item}", "Spans and metric points that were not exported"
    )


def _hold_back_logs() -> None:
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("opentelemetry.exporter"):
            logger = logging.getLogger(name)
            if _hold_back not in logger.filters:
                # Before the SDK's, which drops what two exporters log alike.
                logger.filters.insert(0, _hold_back)


_thread = _Thread()
_hold_back = _HoldBack()
