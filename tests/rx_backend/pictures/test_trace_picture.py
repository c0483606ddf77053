"""Pictures of spans: the tree, the links, what happened when, and how each ended."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.trace import set_span_in_context as inside

from operators import Pipeline, TokenTimes
from rx_backend import EngineAdapter, PreprocessedRequest, RequestScope, standard_pipeline
from rx_backend.engines import SampleEngine
from rx_backend.pictures import TracePicture
from rx_backend.protocols import StopConditions
from rx_backend.testing import run_virtual
from tests.rx_backend.pictures._help import (
    box,
    drawn,
    find,
    middle,
    off_the_page,
    overlapping_texts,
)
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
    """A request that visits a prefill and a decode worker; its client leaves early."""
    request = started(spans, "http-request", 0)
    prefill = started(spans, "engine.generate", 5, request)
    ended(started(spans, "read the prompt", 6, prefill), 38)
    ended(prefill, 40, disagg_role="prefill", finish_reason="Length")
    links = (Link(prefill.get_span_context()),)
    decode = started(spans, "engine.generate", 50, request, links)
    for name, at_ms in (("stop", 70), ("abort_requested", 70), ("first_token", 90)):
        decode.add_event(name, timestamp=BEGAN + at_ms * MS)
    decode.add_event("abort_made", {"deferred": True}, timestamp=BEGAN + 90 * MS)
    ended(decode, 95, disagg_role="decode", finish_reason="Cancelled")
    ended(request, 100)
    return TracePicture(spans.finished)


def test_spans_make_a_tree_in_the_order_of_time(spans: Spans) -> None:
    """Whatever order they ended in; with roles, links, events and ends."""
    assert repr(pair(spans)).splitlines() == [
        "http-request               0 ms to 100 ms",
        "  engine.generate prefill  5 ms to 40 ms",
        "      40 ms Length (end)",
        "    read the prompt        6 ms to 38 ms",
        "  engine.generate decode   50 ms to 95 ms",
        "      links to engine.generate prefill",
        "      70 ms stop",
        "      70 ms abort_requested",
        "      90 ms first_token",
        "      90 ms abort_made deferred",
        "      95 ms Cancelled (end)",
    ]


def test_the_picture_is_true_to_time_and_links(spans: Spans) -> None:
    """Bars reach from start to end, an arrow leads from one span to the other, and all is legible."""
    figure = pair(spans).figure()
    start, end = (middle(figure, f"axis {ms}")[0] for ms in (0, 100))
    per_ms = (end - start) / 100

    def at(ms: float) -> float:
        return pytest.approx(start + ms * per_ms, abs=0.02)  # pyright: ignore[reportReturnType]

    prefill = box(figure, find(figure, "2 engine.generate prefill 5 span"))
    decode = box(figure, find(figure, "4 engine.generate decode 50 span"))
    assert (prefill[0], prefill[2], decode[0], decode[2]) == (at(5), at(40), at(50), at(95))
    link = box(figure, find(figure, "link 2 4"))
    assert (link[0], link[2]) == (at(50), at(50))
    assert prefill[1] < link[1] < prefill[3] < link[3]
    assert link[3] == pytest.approx(decode[1], abs=0.03)
    names = ("1 http-request", "2 engine.generate prefill", "3 read the prompt")
    lefts = [box(figure, find(figure, f"{name} name"))[0] for name in names]
    assert all(left < right for left, right in pairwise(lefts))
    assert "4 engine.generate decode label abort_made deferred" in drawn(figure)
    assert overlapping_texts(figure) == []
    assert off_the_page(figure) == []


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
    places = {name: middle(figure, name)[0] for name in drawn(figure) if " agg " in name}
    dots = [x for name, x in places.items() if name.endswith(" event")]
    (first,) = [x for name, x in places.items() if name.endswith("event first_token")]
    assert len(dots) == 4
    assert first == pytest.approx(dots[0], abs=0.01)
    gaps = [right - left for left, right in pairwise(dots)]
    assert gaps == pytest.approx([gaps[0]] * 3, rel=0.01)
    assert any(name.endswith("end Length") for name in places)


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
    assert off_the_page(picture.figure()) == []


def test_what_is_not_there_is_told(spans: Spans) -> None:
    """A span whose caller is elsewhere begins a tree; a link that leads elsewhere is named."""
    lost = SpanContext(0xA, 0xB, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    caller = started(spans, "caller", 0)
    ended(started(spans, "called", 10, caller, (Link(lost),)), 20)
    caller.end()
    going_on = started(spans, "going on", 30)
    assert isinstance(going_on, ReadableSpan)
    known = [*spans.named("called"), going_on]
    assert repr(TracePicture(known)).splitlines() == [
        "called    0 ms to 10 ms",
        "    0 ms links to 000000000000000b",
        "going on  20 ms still going on",
    ]
    going_on.end()


def test_no_spans_make_a_picture_too() -> None:
    """As when everything was sampled away."""
    picture = TracePicture([])
    assert repr(picture) == "no spans"
    assert picture.png().startswith(b"\x89PNG")
