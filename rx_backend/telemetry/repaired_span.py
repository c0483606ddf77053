"""Spans with encodable text: one span without it would fail the export of its whole batch."""

from __future__ import annotations

import json

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Status

from operators.assembly import encodable, encodable_data

__all__ = ("repaired_span",)


def repaired_span(span: ReadableSpan) -> ReadableSpan:
    """Return *span*, or if some of its text can't be encoded, a copy with U+FFFD (row P10)."""
    scope = span.instrumentation_scope
    named = (scope.name, scope.version, scope.schema_url, scope.attributes) if scope else ()
    texts = [span.name, span.status.description, dict(span.attributes or {}), named]
    texts += [(event.name, dict(event.attributes or {})) for event in span.events]
    texts += [dict(link.attributes or {}) for link in span.links]
    try:
        json.dumps(texts, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return ReadableSpan(
            name=encodable(span.name),
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=encodable_data(span.attributes),
            events=[
                Event(encodable(event.name), encodable_data(event.attributes), event.timestamp)
                for event in span.events
            ],
            links=[Link(link.context, encodable_data(link.attributes)) for link in span.links],
            kind=span.kind,
            status=Status(span.status.status_code, encodable_data(span.status.description)),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=scope and InstrumentationScope(*map(encodable_data, named)),
        )
    return span
