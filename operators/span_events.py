"""Events of a request's span, in the order of their times and by the request's clock."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from operators import span_names as names
from operators.token_times import TokenTimes

__all__ = ("add_event", "add_first_token")


def add_event(
    span: Span,
    times: TokenTimes,
    name: str,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> None:
    """
    Add an event to *span* with the current time.

    If the first token's event is not yet written, it is added first: nothing is written while
    tokens flow, and viewers show events in insertion order. A span that has ended gets none: a
    stream may continue after its request.
    """
    if not span.is_recording():
        return
    if times.epoch_ns is None:
        span.add_event(name, attributes)
        return
    add_first_token(span, times)
    span.add_event(name, attributes, timestamp=times.epoch_ns_of(times.clock()))


def add_first_token(span: Span, times: TokenTimes) -> None:
    """Add the first token's event, with its own time, once the token has arrived. Idempotent."""
    if times.times and times.epoch_ns is not None and not times.has_first_token_event:
        times.has_first_token_event = True
        span.add_event(names.FIRST_TOKEN, timestamp=times.epoch_ns_of(times.times[0]))
