"""Pictures of spans: the tree, the links, what happened when, and how each ended."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.trace import set_span_in_context as inside

from operators import Pipeline, TokenTimes
from rx_backend import EngineAdapter, PreprocessedRequest, RequestScope, standard_pipeline
from rx_backend.engines import SampleEngine
from rx_backend.pictures import TracePicture
from rx_backend.protocols import StopConditions
from rx_backend.testing import run_virtual
from tests.rx_backend.pictures._help import box, drawn, find, middle, texts, unreadable
from tests.spans import Spans

MS = 1_000_000
BEGAN = 1_700_000_000_000 * MS


def started(
    spans: Spans, name: str, at_ms: int, parent: Span | None = None, links: tuple[Link, ...] = ()
) -> Span:
    context = None if parent is None else inside(parent)
    return spans.tracer.start_span(name, context, start_time=BEGAN + at_ms * MS, links=links)


def ended(span: Span, at_ms: int, **attributes: str) -> None:
    span.set_attributes(attributes)
    span.end(BEGAN + at_ms * MS)


def pair(spans: Spans) -> TracePicture:
    """Record a request that visits a prefill and a decode worker; its client leaves early."""
    request = started(spans, "http-request", 0)
    prefill = started(spans, "engine.generate", 5, request)
    ended(started(spans, "read the prompt", 6, prefill), 38)
    ended(prefill, 40, disagg_role="prefill", finish_reason="Length")
    links = (Link(prefill.get_span_context()),)
    decode = started(spans, "engine.generate", 50, request, links)
    for name, at_ms in (("stop", 70), ("abort_requested", 70), ("first_token", 90)):
        decode.add_event(name, timestamp=BEGAN + at_ms * MS)
    decode.add_event("abort_called", {"deferred": True}, timestamp=BEGAN + 90 * MS)
    ended(decode, 95, disagg_role="decode", finish_reason="Cancelled")
    ended(request, 100)
    return TracePicture(spans.finished)


def test_spans_make_a_tree_in_the_order_of_time(spans: Spans) -> None:
    """Whatever order they ended in; with roles, links, events and ends."""
    assert repr(pair(spans)).splitlines() == [
        "http-request",
        "    0 ms to 100 ms",
        "  engine.generate prefill",
        "      5 ms to 40 ms",
        "      40 ms Length (end)",
        "    read the prompt",
        "        6 ms to 38 ms",
        "  engine.generate decode",
        "      links to engine.generate prefill",
        "      50 ms to 95 ms",
        "      70 ms stop",
        "      70 ms abort_requested",
        "      90 ms first_token",
        "      90 ms abort_called deferred",
        "      95 ms Cancelled (end)",
    ]


def test_the_picture_is_true_to_time_and_links(spans: Spans) -> None:
    """Bars reach from start to end, an arrow leads from one span to the other, and all is legible."""
    figure = pair(spans).figure()
    start, end = (middle(figure, f"axis {ms}")[0] for ms in (0, 100))
    per_ms = (end - start) / 100
    prefill = box(figure, find(figure, "2 engine.generate prefill 5 span"))
    decode = box(figure, find(figure, "4 engine.generate decode 50 span"))
    places = [(x - start) / per_ms for x in (prefill.x0, prefill.x1, decode.x0, decode.x1)]
    assert places == pytest.approx([5, 40, 50, 95], abs=0.3)
    link = box(figure, find(figure, "link 2 engine.generate prefill 4 engine.generate decode"))
    assert link.x1 <= start
    assert (link.y0, link.y1) == pytest.approx(
        ((decode.y0 + decode.y1) / 2, (prefill.y0 + prefill.y1) / 2), abs=0.02
    )
    names = ("1 http-request", "2 engine.generate prefill", "3 read the prompt")
    lefts = [box(figure, find(figure, f"{name} name")).x0 for name in names]
    assert all(left < right for left, right in pairwise(lefts))
    assert "4 engine.generate decode label abort_called deferred" in drawn(figure)
    assert unreadable(figure) == []


def test_a_request_shows_its_tokens() -> None:
    """A real one: each token where the engine gave it, the first one where its event is."""
    spans, tokens = Spans(), dict[int, TokenTimes]()

    def pipeline(scope: RequestScope) -> Pipeline:
        tokens[scope.span.get_span_context().span_id] = scope.times
        return standard_pipeline

    async def main() -> None:
        engine = SampleEngine(token_interval_ms=20)
        clock = asyncio.get_running_loop().time
        adapter = EngineAdapter(engine, pipeline=pipeline, tracer=spans.tracer, clock=clock)
        request = PreprocessedRequest(token_ids=[1], stop_conditions=StopConditions(max_tokens=4))
        async for _ in await adapter.generate(request):
            pass

    run_virtual(main())
    figure = TracePicture(spans.finished, tokens).figure()
    (dots,) = [name for name in drawn(figure) if name.endswith(" dots")]
    (first,) = [name for name in drawn(figure) if name.endswith(" event first_token")]
    (end,) = [name for name in drawn(figure) if name.endswith(" end Length")]
    xs = [float(x) for x in find(figure, dots).get_xdata()]
    assert len(xs) == 4
    assert float(find(figure, first).get_xdata()[0]) == pytest.approx(xs[0], abs=0.01)
    gaps = [right - left for left, right in pairwise(xs)]
    assert gaps == pytest.approx([gaps[0]] * 3, rel=0.01)
    assert float(find(figure, end).get_xdata()[0]) >= xs[-1]
    assert repr(TracePicture(spans.finished, tokens)).count(" x 3") == 1


def test_how_a_span_ended_can_be_seen(spans: Spans) -> None:
    """An error by its type, a drop as such, an exception without its text; long texts are cut."""
    failed = started(spans, "engine.generate", 0)
    failed.record_exception(RuntimeError("the user's prompt"), timestamp=BEGAN + 5 * MS)
    failed.set_status(Status(StatusCode.ERROR, "BackendDisconnected"))
    ended(failed, 10, **{"error.type": "Disconnected"})
    dropped = started(spans, "engine.generate", 20)
    dropped.set_status(Status(StatusCode.ERROR, "stream dropped before terminal"))
    ended(dropped, 30, finish_reason="Dropped", **{"error.type": "Dropped"})
    other = started(spans, "tool", 40)
    other.set_status(Status(StatusCode.ERROR, f"no\nluck {'x' * 100}"))
    ended(other, 50)
    picture = TracePicture(spans.finished)
    text = repr(picture)
    assert "5 ms exception RuntimeError" in text
    assert "prompt" not in text
    assert "10 ms Disconnected (error)" in text
    assert "30 ms Dropped (drop)" in text
    assert f"50 ms no luck {'x' * 39}… (error)" in text
    assert unreadable(picture.figure()) == []


def test_a_missing_parent_is_mentioned(spans: Spans) -> None:
    """A span whose caller is elsewhere begins a tree; a link that leads elsewhere is named."""
    lost = SpanContext(0xA, 0xB, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    caller = started(spans, "caller", 0)
    ended(started(spans, "called", 10, caller, (Link(lost),)), 20)
    caller.end()
    going_on = started(spans, "going on", 30)
    assert isinstance(going_on, ReadableSpan)
    known = [*spans.named("called"), going_on]
    assert repr(TracePicture(known)).splitlines() == [
        "called",
        "    0 ms to 10 ms",
        "    0 ms links to 000000000000000b",
        "going on",
        "    20 ms open",
    ]
    going_on.end()


def test_a_picture_without_spans() -> None:
    """As when everything was sampled away."""
    picture = TracePicture([])
    assert repr(picture) == "no entries"
    assert "no entries" in [text.get_text() for text in texts(picture.figure())]


@pytest.mark.timeout(120)
@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 9),
            st.integers(0, 300),
            st.integers(1, 100),
            st.text("wi$_", min_size=1, max_size=60),
            st.booleans(),
        ),
        max_size=30,
    ),
    st.integers(50, 300),
)
def test_labels_do_not_overlap(tree: list[tuple[int, int, int, str, bool]], dpi: int) -> None:
    """Whatever calls and links to whatever: all can be read."""
    spans = Spans()
    known: list[Span] = []
    for back, at_ms, _, name, has_link in tree:
        parent = known[-1 - back] if back < len(known) else None
        links = (Link(known[0].get_span_context()),) if has_link and known else ()
        known.append(started(spans, name, at_ms, parent, links))
        known[-1].add_event(name * 2, timestamp=BEGAN + (at_ms + 1) * MS)
    for span, (_, at_ms, takes, name, _) in zip(known, tree, strict=True):
        ended(span, at_ms + takes, finish_reason=name)
    assert unreadable(TracePicture(spans.finished).figure(), dpi) == []
