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
    Add an event to *span* at the time of now.

    The first token's comes ahead of it where that was not written yet: nothing is written while
    tokens flow, and viewers show events in the order in which they were added. A span that has
    ended gets none: a stream may continue after its request.
    """
    if not span.is_recording():
        return
    if times.epoch_ns is None:
        span.add_event(name, attributes)
        return
    add_first_token(span, times)
    span.add_event(name, attributes, timestamp=times.epoch_ns_of(times.clock()))


def add_first_token(span: Span, times: TokenTimes) -> None:
    """Add the first token's event, at its own time; nothing before it came, or for a second time."""
    if times.times and times.epoch_ns is not None and not times.is_first_told:
        times.is_first_told = True
        span.add_event(names.FIRST_TOKEN, timestamp=times.epoch_ns_of(times.times[0]))
