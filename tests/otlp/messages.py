"""Exports of OTLP as plain values: spans, and points of metrics."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_api
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_api

__all__ = ("Event", "Link", "Point", "Span", "points_in", "spans_in")

_STATUSES = ("UNSET", "OK", "ERROR")


@dataclass(frozen=True)
class Link:
    """What a span links to; ids in hex."""

    trace_id: str
    span_id: str


@dataclass(frozen=True)
class Event:
    """An event of a span."""

    name: str
    time_ns: int
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Span:
    """A span as it arrived; ids in hex, the parent's empty for a root."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    status: str
    description: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: tuple[Event, ...]
    links: tuple[Link, ...]
    resource: dict[str, Any]
    scope: str


@dataclass(frozen=True)
class Point:
    """A point of a metric as it arrived; of a histogram with its bounds and counts."""

    name: str
    unit: str
    kind: str
    attributes: dict[str, Any]
    value: float | None
    count: int
    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    resource: dict[str, Any]
    scope: str


def spans_in(request: trace_api.ExportTraceServiceRequest) -> Generator[Span]:
    """Yield the spans of an export."""
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    kind=span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    status=_STATUSES[span.status.code],
                    description=span.status.message,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    attributes=_attributes(span.attributes),
                    events=tuple(
                        Event(event.name, event.time_unix_nano, _attributes(event.attributes))
                        for event in span.events
                    ),
                    links=tuple(
                        Link(link.trace_id.hex(), link.span_id.hex()) for link in span.links
                    ),
                    resource=_attributes(resource.resource.attributes),
                    scope=scope.scope.name,
                )


def points_in(request: metrics_api.ExportMetricsServiceRequest) -> Generator[Point]:
    """Yield the points of an export."""
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                assert kind in {"histogram", "sum", "gauge"}, kind
                for point in getattr(metric, kind).data_points:
                    is_histogram = kind == "histogram"
                    yield Point(
                        name=metric.name,
                        unit=metric.unit,
                        kind=kind,
                        attributes=_attributes(point.attributes),
                        value=None
                        if is_histogram
                        else float(getattr(point, point.WhichOneof("value"))),
                        count=getattr(point, "count", 0),
                        bounds=tuple(getattr(point, "explicit_bounds", ())),
                        counts=tuple(getattr(point, "bucket_counts", ())),
                        resource=_attributes(resource.resource.attributes),
                        scope=scope.scope.name,
                    )


def _attributes(entries: Iterable[Any]) -> dict[str, Any]:
    return {entry.key: _value(entry.value) for entry in entries}


def _value(value: Any) -> Any:
    kind: str | None = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return None if kind is None else getattr(value, kind)
