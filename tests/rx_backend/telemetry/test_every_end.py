"""Span, metrics and log of a request say the same, however it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry import trace

from rx_backend.context import RequestContext
from rx_backend.errors import BackendError, Disconnected
from tests.engines import ScriptedEngine, Step, collect, request, stop, token, virtual
from tests.logs import capture_logs
from tests.meters import Meters
from tests.rx_backend.telemetry._ends import ENDS, SETUPS, End, metered
from tests.spans import Spans

REQUESTS, ACTIVE = "rx_backend.requests", "rx_backend.requests.active"
HOW = ("rx_backend.finish_reason", "error.type")
LEVELS = {"request ended": "info", "request dropped": "info", "request failed": "warning"}


def same_end(
    meters: Meters, spans: Spans, events: list[Any], how: tuple[str, str | None, str, str]
) -> dict[str, Any]:
    """Check that one request is recorded once, and alike everywhere; its closing event."""
    reason, error_type, description, name = how
    assert meters.counts(REQUESTS, *HOW) == {(reason, error_type): 1}
    assert meters.counts(ACTIVE) == {}
    span = spans.one()
    attributes = span.attributes or {}
    assert (attributes.get("error.type"), span.status.description or "") == (
        error_type,
        description,
    )
    assert span.status.status_code.name == ("ERROR" if error_type else "UNSET")
    (event,) = [event for event in events if event["event"] in LEVELS]
    assert (event["event"], event["log_level"]) == (name, LEVELS[name])
    assert (event["finish_reason"], event.get("error_type")) == (reason, error_type)
    assert span.context is not None
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert event["request_id"] == "r1"
    assert event["trace_id"] == trace.format_trace_id(span.context.trace_id)
    assert event["span_id"] == trace.format_span_id(span.context.span_id)
    assert (event["mode"], event["model"], event["input_tokens"]) == ("agg", "mock", 5)
    return event


@pytest.mark.rows("P3", "P4", "P5", "P6", "P7")
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@virtual
async def test_every_outcome_is_recorded_once(end: End) -> None:
    """With its tokens and its duration, and nothing is left active."""
    meters, spans = Meters(), Spans()
    with capture_logs() as events:
        adapter = metered(ScriptedEngine(*end.script), meters, spans)
        held = [await adapter.generate(request(prompt=5), RequestContext("r1"))]
        assert meters.counts(ACTIVE) == {(): 1}
        await end.leave(held.pop())
    event = same_end(meters, spans, events, end[2:])
    tokens = meters.counts("rx_backend.tokens", "gen_ai.token.type")
    assert tokens == {("input",): 5, ("output",): 1}
    kind = end.error_type
    assert meters.counts("gen_ai.server.request.duration", "error.type") == {(kind,): 1}
    first = meters.counts("gen_ai.server.time_to_first_token")
    assert first == ({(): 1} if kind is None else {})
    (moment,) = spans.one().events
    assert moment.name == "first_token"
    assert round((moment.timestamp - (spans.one().start_time or 0)) / 1e9) == 1
    attributes = spans.one().attributes or {}
    for name in ("output_tokens", "ttft_ms", "setup_ms", "cancelled"):
        assert event[name] == attributes[name]


@pytest.mark.rows("P4", "P5")
@pytest.mark.parametrize(("setup", "how"), SETUPS.values(), ids=SETUPS)
@virtual
async def test_a_request_without_a_stream_is_recorded_once(
    setup: Step, how: tuple[str, str, str, str]
) -> None:
    """A set-up that fails, and a caller who leaves during it, after as long as they took."""
    meters, spans = Meters(), Spans()
    adapter = metered(ScriptedEngine(setup=[1, setup]), meters, spans)
    with capture_logs() as events, pytest.raises((BackendError, TimeoutError)):
        await asyncio.wait_for(adapter.generate(request(prompt=5), RequestContext("r1")), 5)
    event = same_end(meters, spans, events, how)
    assert event["duration_ms"] == (5000.0 if setup == 60 else 1000.0)


STOPPED: dict[str, tuple[str, list[Step], float, dict[str, int], list[tuple[str, bool | None]]]] = {
    "immediate": ("agg", [9, stop()], 1, {"abort_called": 1}, [("abort called", False)]),
    "has-tokens": (
        "decode",
        [token(1), 9, stop()],
        1,
        {"abort_called": 1},
        [("abort called", False)],
    ),
    "deferred": (
        "decode",
        [5, token(1), 5, stop()],
        1,
        {"abort_called": 5},
        [("abort called", True)],
    ),
    "suppressed": (
        "decode",
        [5, Disconnected("gone")],
        1,
        {"abort_suppressed": 5},
        [("abort suppressed", None)],
    ),
    "too-late": ("agg", [1, stop()], 2, {}, []),
}


@pytest.mark.rows("A2", "A3", "A4", "A5")
@pytest.mark.parametrize(
    ("mode", "script", "stop_at", "events", "steps"), STOPPED.values(), ids=STOPPED
)
@virtual
async def test_the_steps_of_an_abort_are_recorded(
    mode: str,
    script: list[Step],
    stop_at: float,
    events: dict[str, int],
    steps: list[tuple[str, bool | None]],
) -> None:
    """It is requested, then called at once, called later or suppressed, with times on the span."""
    meters, spans, context = Meters(), Spans(), RequestContext("r1")
    with capture_logs() as logged:
        adapter = metered(ScriptedEngine(*script), meters, spans, mode)
        stream = await adapter.generate(request(), context)
        asyncio.get_running_loop().call_later(stop_at, context.stop_generating)
        await collect(stream)
        await asyncio.sleep(5)
    kind = {"abort called": "immediate", "abort suppressed": "suppressed"}
    counted = {("deferred" if deferred else kind[step],): 1 for step, deferred in steps}
    assert meters.counts("rx_backend.aborts", "rx_backend.abort") == counted
    start = spans.one().start_time or 0
    moments = {
        event.name: round((event.timestamp - start) / 1e9)
        for event in spans.one().events
        if event.name != "first_token"
    }
    assert moments == ({"stop": 1, "abort_requested": 1, **events} if events else {})
    told = [event.timestamp for event in spans.one().events]
    assert told == sorted(told)
    aborts = [event for event in logged if event["event"].startswith("abort ")]
    requested = [("abort requested", None)] if steps else []
    assert [(event["event"], event.get("deferred")) for event in aborts] == requested + steps
    assert {event["request_id"] for event in logged} == {"r1"}
    assert logged[-1]["cancelled"] is bool(steps)
