"""What listens to the process: stderr, warnings, logs, spans, the gauge, threads and memory."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import sys
import threading
import warnings
from collections import Counter
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self, TextIO

from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import (
    ReadableSpan,
    Span,
    SynchronousMultiSpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from tests.matrix.record import Record

__all__ = ("RECORD", "Witness", "footprint")

RECORD: ContextVar[Record | None] = ContextVar("tests.matrix.record", default=None)
"""The request in whose context a span begins."""

_GAUGE = "rx_backend.requests.active"
_OWN = ("operators", "rx_backend")
_THREADS = ("MainThread", "matrix", "asyncio_", "uvloop_", "ThreadPoolExecutor", "pytest")


class _Spans(SynchronousMultiSpanProcessor):
    """
    Counts how often each span of a request ends, and keeps no span.

    It is of the SDK's class for several processors so that it takes that one's place, where the
    tests' ledger would keep every span.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[int, Record] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        record = RECORD.get()
        if record is not None:
            span_id = span.get_span_context().span_id
            record.spans[span_id] = 0
            self.records[span_id] = record

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        record = None if context is None else self.records.get(context.span_id)
        if record is not None and context is not None:
            record.spans[context.span_id] += 1


class Witness(logging.Handler):
    """
    Listens while its ``with`` block runs.

    Args:
        loop: Its exception handler is replaced.
        strict: Whether warnings are errors.

    Attributes:
        stderr: The process's own, to write reports to.
        logged: The library's own log lines of failing closes and aborts, which are allowed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, strict: bool) -> None:
        super().__init__(logging.WARNING)
        self._loop = loop
        self._strict = strict
        self._found: list[str] = []
        self._spans = _Spans()
        provider = TracerProvider(
            sampler=ALWAYS_ON, active_span_processor=self._spans, shutdown_on_exit=False
        )
        self._reader = InMemoryMetricReader()
        self._gauge = 0
        self._threads = set(threading.enumerate())
        self._warnings = warnings.catch_warnings()
        self.tracer = provider.get_tracer("tests.matrix")
        self.meter_provider = MeterProvider([self._reader], shutdown_on_exit=False)
        self.logged: Counter[str] = Counter()
        self.stderr: TextIO = sys.stderr

    def __enter__(self) -> Self:
        self.stderr, sys.stderr = sys.stderr, _Writer(self._found)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
        self._excepthook, threading.excepthook = threading.excepthook, self._on_thread
        self._warnings.__enter__()
        warnings.simplefilter("error" if self._strict else "always")
        warnings.showwarning = self._on_warning
        logging.getLogger().addHandler(self)
        self._loop.set_exception_handler(self._on_loop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.set_exception_handler(None)
        logging.getLogger().removeHandler(self)
        self._warnings.__exit__(kind, error, traceback)
        threading.excepthook = self._excepthook
        sys.unraisablehook = self._unraisable
        sys.stderr = self.stderr

    def take(self) -> list[str]:
        """Give what was found since the last time."""
        active = self._active()
        # Requests that were given up as hanging may end later.
        if active > self._gauge or active < 0:
            self._found.append(f"the gauge of open requests is off by {active - self._gauge:+d}")
        self._gauge = active
        for thread in set(threading.enumerate()) - self._threads:
            if not thread.name.startswith(_THREADS):
                self._found.append(f"thread left: {thread.name}")
                self._threads.add(thread)
        self._spans.records.clear()
        found = list(dict.fromkeys(self._found))
        self._found.clear()
        return found

    def emit(self, record: logging.LogRecord) -> None:
        """Take a log line: the library's own are counted, others are findings."""
        if record.name.startswith(_OWN):
            event = vars(record).get("event") or record.msg
            self.logged[f"{record.levelname} {record.name}: {event}"] += 1
        else:
            error = record.exc_info[1] if record.exc_info else None
            self._found.append(f"logged by {record.name}: {record.getMessage()} {error!r}")

    def _active(self) -> int:
        data = self._reader.get_metrics_data()
        return sum(
            int(point.value)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == _GAUGE
            for point in metric.data.data_points
            if isinstance(point, NumberDataPoint)
        )

    def _on_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._found.append(f"loop: {context['message']}: {_first(error)}")

    def _on_unraisable(self, what: Any) -> None:
        name = getattr(what.object, "__qualname__", type(what.object).__name__)
        self._found.append(f"unraisable: {_first(what.exc_value)} in {name}")

    def _on_thread(self, what: threading.ExceptHookArgs) -> None:
        self._found.append(f"thread: {_first(what.exc_value)}")

    def _on_warning(self, message: Warning | str, category: type[Warning], *_: object) -> None:
        self._found.append(f"warning: {category.__name__}: {message}")


class _Writer(io.TextIOBase):
    """Takes what is written to stderr."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def write(self, text: str, /) -> int:
        if text.strip():
            self._found.append(f"stderr: {text.strip()[-200:]}")
        return len(text)


def _first(error: BaseException | None) -> str:
    return repr(error)[:200]


def footprint() -> tuple[int, int]:
    """Count the objects that the collector tracks, and the blocks of memory."""
    gc.collect()
    return len(gc.get_objects()), sys.getallocatedblocks()
