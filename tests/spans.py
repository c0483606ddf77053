"""Spans of a test: a tracer, and a ledger of what was started and what has ended."""

from __future__ import annotations

from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

__all__ = ("SpanLedger", "Spans", "rows_of")


class SpanLedger(SpanProcessor):
    """
    Keeps the spans that were started and those that have ended, in that order.

    Attributes:
        started: Every span that was started.
        finished: What those that ended were at their end.
    """

    def __init__(self) -> None:
        self.started: list[Span] = []
        self.finished: list[ReadableSpan] = []

    @property
    def open(self) -> tuple[Span, ...]:
        """The spans that have not ended."""
        return tuple(span for span in self.started if span.end_time is None)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Note a start."""
        self.started.append(span)

    def on_end(self, span: ReadableSpan) -> None:
        """Note an end."""
        self.finished.append(span)


class Spans:
    """
    A tracer of its own, and the spans it made.

    Attributes:
        provider: The provider behind the tracer; it samples everything and is not the global one.
        tracer: What to give to the code under test.
    """

    def __init__(self) -> None:
        self._ledger = SpanLedger()
        self.provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.get_empty(), shutdown_on_exit=False
        )
        self.provider.add_span_processor(self._ledger)
        self.tracer = self.provider.get_tracer("tests")

    @property
    def open(self) -> tuple[Span, ...]:
        """The spans that have not ended, in the order of their starts."""
        return self._ledger.open

    @property
    def finished(self) -> tuple[ReadableSpan, ...]:
        """The spans that have ended, in the order of their ends."""
        return tuple(self._ledger.finished)

    def named(self, name: str) -> tuple[ReadableSpan, ...]:
        """Return the ended spans called *name*."""
        return tuple(span for span in self._ledger.finished if span.name == name)

    def one(self, name: str | None = None) -> ReadableSpan:
        """Return the only ended span, or the only one called *name*; fails when there is not just one."""
        spans = self.finished if name is None else self.named(name)
        assert len(spans) == 1, f"expected one finished span, got {[span.name for span in spans]}"
        return spans[0]


def rows_of(span: ReadableSpan) -> dict[str, Any]:
    """Return the attributes that the behaviour rows speak of, without OpenTelemetry's names for the same."""
    return {
        name: value
        for name, value in (span.attributes or {}).items()
        if not name.startswith(("gen_ai.", "error."))
    }
