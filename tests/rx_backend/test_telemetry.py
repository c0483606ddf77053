"""The request's span before there is a stream: parent, links, and whether to record on it."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import Unknown
from rx_backend.protocols import TraceLink
from rx_backend.telemetry import (
    EXPORT_ENABLED,
    own_context,
    record_failed_setup,
    recording_switch,
    should_record,
    start_request_span,
    worker_trace_link,
)
from tests.engines import request
from tests.spans import Spans

TRACE_ID, SPAN_ID = "1" * 32, "2" * 16
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
AGG = DisaggregationMode.AGGREGATED


@pytest.fixture
def unrecorded() -> Span:
    """Return a span as an unsampled request has it."""
    return NonRecordingSpan(SpanContext(1, 2, is_remote=False))


def started(
    spans: Spans, context: RequestContext, migrated_from: TraceLink | None = None
) -> ReadableSpan:
    """Return the span of one request that is over at once."""
    start_request_span(spans.tracer, request(5, migrated_from), context, AGG).end()
    return spans.named("engine.generate")[-1]


def parent_of(span: ReadableSpan) -> tuple[str, str, bool] | None:
    """Trace id, span id, and whether it is another process's."""
    parent = span.parent
    if parent is None:
        return None
    ids = trace.format_trace_id(parent.trace_id), trace.format_span_id(parent.span_id)
    return (*ids, parent.is_remote)


@pytest.mark.rows("P1", "P7")
def test_the_callers_span_is_the_parent(spans: Spans) -> None:
    """It stays current; without one, and without a header, a request starts a trace."""
    root = started(spans, RequestContext())
    assert (root.parent, root.kind) == (None, SpanKind.INTERNAL)
    with spans.tracer.start_as_current_span("caller") as caller:
        span = started(spans, RequestContext())
        assert trace.get_current_span() is caller
    assert (span.parent, span.kind) == (caller.get_span_context(), SpanKind.INTERNAL)


@pytest.mark.rows("P1", "C1")
@pytest.mark.parametrize("place", ["trace_headers", "metadata"])
@pytest.mark.parametrize("case", [str.lower, str.title, str.upper])
@pytest.mark.parametrize("has_caller", [True, False])
def test_a_traceparent_is_the_parent(
    spans: Spans, place: str, case: Callable[[str], str], has_caller: bool
) -> None:
    """The header's span, its name in any case, also where the caller has one of another trace."""
    headers = {case("traceparent"): TRACEPARENT, case("tracestate"): "vendor=1"}
    arguments: dict[str, Any] = {place: headers}
    with spans.tracer.start_as_current_span("caller") if has_caller else nullcontext():
        span = started(spans, RequestContext(**arguments))
    assert parent_of(span) == (TRACE_ID, SPAN_ID, True)
    assert span.parent is not None
    assert span.parent.trace_state == {"vendor": "1"}
    assert span.kind is SpanKind.SERVER


@pytest.mark.rows("P1")
def test_within_one_trace_the_caller_is_the_nearer_parent(spans: Spans) -> None:
    """A transport that has opened a span below the header's is not passed over."""
    with spans.tracer.start_as_current_span("transport") as transport:
        context = transport.get_span_context()
        trace_id = trace.format_trace_id(context.trace_id)
        headers = {"traceparent": f"00-{trace_id}-{SPAN_ID}-01"}
        span = started(spans, RequestContext(trace_headers=headers))
    assert span.parent == context


@pytest.mark.rows("P1")
@pytest.mark.parametrize(
    "header",
    ["", "nonsense", TRACEPARENT.replace("1", "0"), TRACEPARENT[:-10], f"zz{TRACEPARENT[2:]}"],
)
def test_a_malformed_traceparent_is_ignored(spans: Spans, header: str) -> None:
    """The caller's span is the parent then, as without a header."""
    with spans.tracer.start_as_current_span("caller") as caller:
        span = started(spans, RequestContext(trace_headers={"traceparent": header}))
    assert span.parent == caller.get_span_context()


@pytest.mark.rows("T1")
@pytest.mark.parametrize(
    ("trace_id", "span_id"),
    [
        (TRACE_ID, SPAN_ID),
        ("A" * 32, "B" * 16),
        ("aBc", "1"),
        ("0" * 31 + "1", "0" * 15 + "1"),
    ],
    ids=["full", "upper-case", "short", "padded"],
)
def test_a_valid_migration_link_is_linked_to(spans: Spans, trace_id: str, span_id: str) -> None:
    """The link is remote and sampled, short ids padded on the left; the attributes are as given."""
    span = started(spans, RequestContext(), TraceLink(trace_id=trace_id, span_id=span_id))
    (link,) = span.links
    assert trace.format_trace_id(link.context.trace_id) == trace_id.lower().zfill(32)
    assert trace.format_span_id(link.context.span_id) == span_id.lower().zfill(16)
    assert link.context.is_remote
    assert link.context.trace_flags == TraceFlags.SAMPLED
    assert span.attributes is not None
    assert span.attributes["migration_trace_id"] == trace_id
    assert span.attributes["migration_span_id"] == span_id


@pytest.mark.rows("T1")
@pytest.mark.parametrize(
    ("trace_id", "span_id"),
    [
        ("not-valid-hex", "ALSO-INVALID"),
        (TRACE_ID, "xyz"),
        ("xyz", SPAN_ID),
        (TRACE_ID + "1", SPAN_ID),
        (TRACE_ID, SPAN_ID + "2"),
        ("", ""),
        (TRACE_ID, ""),
        ("0" * 32, SPAN_ID),
        (TRACE_ID, "0" * 16),
        ("0x" + "1" * 30, SPAN_ID),
        (" " + "1" * 31, SPAN_ID),
        ("1_1", SPAN_ID),
        ("+1", "-1"),
        ("\u0661" * 32, "\uff11" * 16),
    ],
)
def test_a_useless_migration_link_is_kept_as_text(
    spans: Spans, trace_id: str, span_id: str
) -> None:
    """Ids that can't be linked to stay readable as attributes, and nothing raises."""
    span = started(spans, RequestContext(), TraceLink(trace_id=trace_id, span_id=span_id))
    assert span.links == ()
    assert span.attributes is not None
    assert span.attributes["migration_trace_id"] == trace_id
    assert span.attributes["migration_span_id"] == span_id


@pytest.mark.rows("T5")
def test_an_identity_travels_as_hex(spans: Spans, unrecorded: Span) -> None:
    """A valid identity gives 32 and 16 hex digits, also unsampled; without one there is none."""
    span = spans.tracer.start_span("any")
    span.end()
    link = worker_trace_link(span)
    assert link is not None
    assert (len(link.trace_id), len(link.span_id)) == (32, 16)
    assert worker_trace_link(unrecorded) == TraceLink(trace_id=f"{1:032}", span_id=f"{2:016}")
    assert worker_trace_link(trace.INVALID_SPAN) is None


YES, NO = ("1", "true", "TRUE", "on", "Yes", " yes "), ("0", "false", "off", "no", "", "2", "any")


@pytest.mark.rows("P8")
@pytest.mark.parametrize("switch", [*YES, *NO, None])
def test_the_precedence_of_recording_switches(
    monkeypatch: pytest.MonkeyPatch, spans: Spans, unrecorded: Span, switch: str | None
) -> None:
    """An explicit choice, else the environment's in any case of letters, else the span."""
    monkeypatch.delenv(EXPORT_ENABLED, raising=False)
    if switch is not None:
        monkeypatch.setenv(EXPORT_ENABLED, switch)
    decided = recording_switch()
    assert decided is (None if switch is None else switch in YES)
    with spans.tracer.start_as_current_span("any") as recorded:
        assert should_record(recorded, decided) is (switch is None or switch in YES)
    assert should_record(unrecorded, decided) is (switch in YES)
    assert should_record(trace.INVALID_SPAN, decided) is (switch in YES)
    for explicit in (True, False):
        assert should_record(unrecorded, explicit) is explicit


@pytest.mark.rows("P9")
def test_without_an_identity_it_is_a_plain_copy() -> None:
    """What the engine sets is not seen by the caller, and no span is current in it."""
    assert dict(own_context(trace.INVALID_SPAN)) == dict(contextvars.copy_context())


@pytest.mark.rows("P4", "P7")
def test_a_failed_setup_ends_its_span_once(spans: Spans) -> None:
    """A span that has ended already is left as it is."""
    span = spans.tracer.start_span("engine.generate")
    record_failed_setup(span, Unknown("broken"))
    record_failed_setup(span, Unknown("broken"))
    assert spans.one().status.description == "setup_failed"
