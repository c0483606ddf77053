"""Spans whose text can be encoded: one that can't be would fail the export of its whole batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Status

from rx_backend.telemetry.encodable import encodable

__all__ = ("repaired_span",)


def repaired_span(span: ReadableSpan) -> ReadableSpan:
    """Return *span*, or where some of its text can't be encoded a copy with U+FFFD (row P10)."""
    if all(text.isascii() or encodable(text) == text for text in _texts_of(span)):
        return span
    scope = span.instrumentation_scope
    return ReadableSpan(
        name=encodable(span.name),
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=_repaired(span.attributes),
        events=[
            Event(encodable(event.name), _repaired(event.attributes), event.timestamp)
            for event in span.events
        ],
        links=[Link(link.context, _repaired(link.attributes)) for link in span.links],
        kind=span.kind,
        status=Status(span.status.status_code, _repaired(span.status.description)),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=scope and InstrumentationScope(*map(_repaired, _parts(scope))),
    )


def _texts_of(span: ReadableSpan) -> Iterator[str]:
    parts = [span.name, span.status.description, span.attributes]
    for event in span.events:
        parts += (event.name, event.attributes)
    parts += [link.attributes for link in span.links]
    if span.instrumentation_scope is not None:
        parts += _parts(span.instrumentation_scope)
    return _texts_in(parts)


def _parts(scope: InstrumentationScope) -> tuple[Any, ...]:
    return (scope.name, scope.version, scope.schema_url, scope.attributes)


def _texts_in(value: object) -> Iterator[str]:
    """Yield every text in a value of an attribute, or in a mapping of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in cast("Mapping[object, object]", value).items():
            yield from _texts_in(item)
    elif isinstance(value, list | tuple):
        for item in cast("Sequence[object]", value):
            yield from _texts_in(item)


def _repaired(value: Any) -> Any:
    """Return *value* with all its text repaired."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {_repaired(name): _repaired(item) for name, item in items}
    if isinstance(value, list | tuple):
        return [*map(_repaired, cast("Sequence[object]", value))]
    return value
