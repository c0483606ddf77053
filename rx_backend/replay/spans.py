"""Finished spans as JSON Lines, timed by the clock that the replay runs on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Tracer, format_span_id, format_trace_id

from rx_backend.replay.figures import stop_reason

__all__ = ("SpanLines",)


class SpanLines(SpanProcessor):
    """
    Write every finished span as a line of JSON.

    The SDK stamps spans with the wall clock, which stands still in virtual time. Starts and
    durations are therefore taken here, from *clock*; an exporter would see a span only after its
    end.

    Use it as a context manager, and its `tracer` for the adapter. If the block is interrupted or
    fails, a last line says so: ``{"stopped_by":"interrupt"}``.

    Args:
        path: The file to write; replaced if it exists.
        clock: The clock of the replay, in seconds.
        provider: The provider of the tracer; one of its own, which exports nothing, by default.

    Raises:
        OSError: The file can't be written.
    """

    def __init__(
        self,
        path: str | Path,
        clock: Callable[[], float],
        provider: TracerProvider | None = None,
    ) -> None:
        self._clock = clock
        self._began = clock()
        self._starts: dict[tuple[int, int], float] = {}
        self._out = Path(path).open("w", encoding="utf-8")  # noqa: SIM115  # closed by shutdown
        self._provider = provider or TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.get_empty(), shutdown_on_exit=False
        )
        self._provider.add_span_processor(self)

    @property
    def tracer(self) -> Tracer:
        """The tracer whose spans are written."""
        return self._provider.get_tracer("rx_backend.replay")

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Take the start of *span*."""
        identity = span.get_span_context()
        if not self._out.closed:
            self._starts[identity.trace_id, identity.span_id] = self._clock()

    def on_end(self, span: ReadableSpan) -> None:
        """Write *span*: `name`, `trace_id`, `span_id`, `start_s`, `duration_ms`, `status`, ..."""
        identity = span.get_span_context()
        if identity is None or self._out.closed:
            return
        start = self._starts.pop((identity.trace_id, identity.span_id))
        self._write(
            name=span.name,
            trace_id=format_trace_id(identity.trace_id),
            span_id=format_span_id(identity.span_id),
            parent_id=format_span_id(span.parent.span_id) if span.parent else None,
            start_s=round(start - self._began, 6),
            duration_ms=round((self._clock() - start) * 1000, 3),
            status=span.status.status_code.name,
            description=span.status.description,
            attributes=dict(span.attributes or {}),
        )

    def _write(self, **row: object) -> None:
        self._out.write(json.dumps(row, separators=(",", ":")) + "\n")

    def shutdown(self) -> None:
        """Close the file; spans that end later are not written."""
        self._out.close()

    def __enter__(self) -> Self:
        """Return the instance itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        if error is not None and not self._out.closed:
            self._write(stopped_by=stop_reason(error))
        self.shutdown()
