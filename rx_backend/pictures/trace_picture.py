"""A request's spans as a picture: their tree, and what happened when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from operators import TokenTimes
from rx_backend.pictures.picture import Picture
from rx_backend.pictures.trace_drawing import draw_trace
from rx_backend.pictures.trace_rows import rows_as_text, trace_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ("TracePicture",)


class TracePicture(Picture):
    """
    Spans as a tree and on a timeline, with their events, how they ended, and their links.

    Callers stand above what they called. Beside the name of a request's span stands its role, a
    cross is an error, a broken bar a drop, and a dashed arrow leads from a linked span's end to the
    span that has the link. A link to a span that is not there is named. Time counts in milliseconds
    from the first span's start.

    Spans are stamped by the SDK with the time of day. In virtual time only a request's own events
    and its end are on the loop's clock, so draw requests that ran in real time.

    Args:
        spans: Finished spans, in any order, of one trace or of several; as an in-memory exporter
            gives them.
        tokens: When a request's tokens came, by its span's id, to be shown as dots: a pipeline
            finds both in its scope, as ``scope.span.get_span_context().span_id`` and
            ``scope.times``.

    >>> from opentelemetry.sdk.trace import TracerProvider
    >>> from opentelemetry.trace import Link, set_span_in_context
    >>> start_span, ms = TracerProvider().get_tracer("example").start_span, 1_000_000
    >>> request = start_span("http-request", start_time=0)
    >>> inside = set_span_in_context(request)
    >>> prefill = start_span("engine.generate", inside, start_time=2 * ms)
    >>> prefill.end(9 * ms)
    >>> links = [Link(prefill.get_span_context())]
    >>> decode = start_span("engine.generate", inside, start_time=10 * ms, links=links)
    >>> decode.set_attributes({"disagg_role": "decode", "finish_reason": "Stop"})
    >>> decode.add_event("first_token", timestamp=20 * ms)
    >>> decode.end(70 * ms)
    >>> request.end(75 * ms)
    >>> TracePicture([prefill, decode, request])
    http-request              0 ms to 75 ms
      engine.generate         2 ms to 9 ms
      engine.generate decode  10 ms to 70 ms
          links to engine.generate
          20 ms first_token
          70 ms Stop (end)
    """

    def __init__(
        self, spans: Iterable[ReadableSpan], tokens: Mapping[int, TokenTimes] | None = None
    ) -> None:
        self._rows = trace_rows(spans, tokens)

    def figure(self) -> Figure:
        """
        Draw it as a new matplotlib figure.

        Each artist has a ``gid``: the row's number, the span's name, the time in ms, and what it
        shows; a link's has the numbers of both rows.

        Raises:
            ImportError: matplotlib is not installed; names the extra.
        """
        return draw_trace(self._rows)

    def __repr__(self) -> str:
        return rows_as_text(self._rows)
