"""Finished spans as JSON Lines, timed by the replay's clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Tracer, format_span_id, format_trace_id

from rx_backend.replay.figures import stop_reason
from rx_backend.whole_file import whole_file

__all__ = ("span_lines",)


@contextmanager
def span_lines(
    path: str | Path, clock: Callable[[], float], provider: TracerProvider | None = None
) -> Generator[Tracer]:
    """
    Write every span that ends in the block as a line of JSON.

    If the block is interrupted or fails, the last line is ``{"stopped_by":"interrupt"}``.

    Args:
        path: The file; replaced at the end of the block, so that each of two runs writes a whole
            one.
        clock: The clock of the replay, in seconds.
        provider: The provider of the tracer; one that exports nothing by default.

    Yields:
        The tracer whose spans are written.

    Raises:
        OSError: The file can't be written.
    """
    provider = provider or TracerProvider(
        sampler=ALWAYS_ON, resource=Resource.get_empty(), shutdown_on_exit=False
    )
    failure = None
    with whole_file(path) as out:
        provider.add_span_processor(_SpanLines(out, clock))
        try:
            yield provider.get_tracer("rx_backend.replay")
        except BaseException as error:
            _write(out, stopped_by=stop_reason(error))
            failure = error
    if failure is not None:
        raise failure


class _SpanLines(SpanProcessor):
    """
    Write spans until the file is closed.

    The SDK timestamps spans with the wall clock, which stands still in virtual time. So starts and
    durations are measured here; an exporter would see a span only after its end.
    """

    def __init__(self, out: BinaryIO, clock: Callable[[], float]) -> None:
        self._out = out
        self._clock = clock
        self._began = clock()
        self._starts: dict[tuple[int, int], float] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        identity = span.get_span_context()
        if not self._out.closed:
            self._starts[identity.trace_id, identity.span_id] = self._clock()

    def on_end(self, span: ReadableSpan) -> None:
        identity = span.get_span_context()
        if identity is None or self._out.closed:
            return
        start = self._starts.pop((identity.trace_id, identity.span_id))
        _write(
            self._out,
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


def _write(out: BinaryIO, **row: object) -> None:
    out.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
