"""Failing exports are reported once; text that can't be encoded fails none."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanContext, StatusCode

from rx_backend.telemetry.quiet_exporter import QuietExporter, QuietSpanExporter
from rx_backend.telemetry.repaired_span import repaired_span
from tests.leaks import LeakWatch
from tests.otlp.messages import spans_in
from tests.spans import Spans


class Gate(SpanExporter):
    """Holds every export until it is opened."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.entered, self.opened = threading.Event(), threading.Event()
        self.shutdowns = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        assert self.opened.wait(10.0)
        self.names += [span.name for span in spans]
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.shutdowns += 1


class Fails(SpanExporter):
    """Fails each export in its own way, and repeats itself in the log."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        logging.getLogger("opentelemetry.exporter.tests").warning("no answer, retrying in 0.9s.")
        if spans[0].name == "raises":
            raise OSError("gone")
        return SpanExportResult.FAILURE


@contextmanager
def queue(exporter: SpanExporter) -> Generator[tuple[TracerProvider, QuietExporter]]:
    """Make a provider over one queue, of which each batch has one span."""
    logging.getLogger("opentelemetry.exporter.tests")
    quiet: Any = QuietSpanExporter(exporter)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(quiet, max_export_batch_size=1))
    try:
        yield provider, quiet
    finally:
        provider.shutdown()


def end(provider: TracerProvider, *names: str) -> None:
    for name in names:
        provider.get_tracer("tests").start_span(name).end()


def test_spans_arrive_with_text_that_can_be_encoded(caplog: pytest.LogCaptureFixture) -> None:
    """Ending a span waits for no export, and the exporter is shut down once."""
    gate = Gate()
    with queue(gate) as (provider, quiet):
        end(provider, "first")
        assert gate.entered.wait(10.0)
        end(provider, "second", "cut \ud83d")
        gate.opened.set()
    assert gate.names == ["first", "second", "cut \ufffd"]
    assert (caplog.messages, quiet.has_failed, gate.shutdowns) == ([], False, 1)


def test_a_failing_exporter_is_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The warning has the exporter's reason."""
    with queue(Fails()) as (provider, quiet):
        end(provider, "fails", "raises", "fails")
    assert quiet.has_failed
    assert caplog.messages == ["spans are being lost: no answer.; this is logged once"]


class Quotes(SpanExporter):
    """Quotes its address as it fails."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise OSError(f"{'x' * 280} me:p@s3cr3t{'t' * 20}@h:1 /v1?key=s3cr3t")


def test_the_reason_of_a_loss_has_no_password(caplog: pytest.LogCaptureFixture) -> None:
    """Nor the query of an address, and no half of either where the reason is cut."""
    with queue(Quotes()) as (provider, _):
        end(provider, "fails")
    (warning,) = caplog.messages
    assert f"{'x' * 280} h:1 /v1;" in warning


def test_other_loggers_are_not_filtered(caplog: pytest.LogCaptureFixture, leaks: LeakWatch) -> None:
    """An exporter that the application runs itself keeps its warnings."""
    leaks.allow("mine")
    with queue(Fails()) as (provider, _):
        end(provider, "fails")
    caplog.clear()
    logging.getLogger("opentelemetry.exporter.tests").warning("mine")
    assert caplog.messages == ["mine"]


def test_exports_in_progress_at_the_deadline_are_lost(caplog: pytest.LogCaptureFixture) -> None:
    """The span that is being exported, and those that wait, whatever becomes of the export."""
    gate = Gate()
    with queue(gate) as (provider, quiet):
        end(provider, "first")
        assert gate.entered.wait(10.0)
        end(provider, "second")
        quiet.shutdown()
        assert quiet.has_failed
        gate.opened.set()
    assert (gate.names, gate.shutdowns) == (["first"], 1)
    (warning,) = caplog.messages
    assert "not exported before the deadline of the shutdown" in warning


# Also halves of a pair of surrogates, alone and together.
ANY_TEXT = st.text(st.sampled_from("a\u00e9\ud83d\ude00"), min_size=1, max_size=3)
PLACES = ("name", "status", "scope", "attribute", "event", "link")


@pytest.mark.rows("P10")
@pytest.mark.parametrize("place", PLACES)
@given(text=ANY_TEXT)
def test_text_that_can_not_be_encoded_is_repaired(place: str, text: str) -> None:
    """Wherever in a span it is: the span arrives whole, and so do the others of its batch."""
    given = {**dict.fromkeys(PLACES, "fine"), place: text}
    expected = {name: repair(value) for name, value in given.items()}
    spans = Spans()
    tracer = spans.provider.get_tracer(given["scope"])
    tracer.start_span("before").end()
    link = Link(SpanContext(1, 2, is_remote=True), {given["link"]: given["link"]})
    attributes = {given["attribute"]: given["attribute"], "list": [given["attribute"]], "n": 1}
    span = tracer.start_span(given["name"], attributes=attributes, links=[link])
    span.add_event(given["event"], {given["event"]: given["event"]})
    span.set_status(StatusCode.ERROR, given["status"])
    span.end()
    tracer.start_span("after").end()
    fit = [*map(repaired_span, spans.finished)]
    before, repaired, after = spans_in(encode_spans(fit))
    assert (before.name, after.name) == ("before", "after")
    assert (repaired.name, repaired.scope) == (expected["name"], expected["scope"])
    assert repaired.description == expected["status"]
    own = expected["attribute"]
    assert repaired.attributes == {own: own, "list": [own], "n": 1}
    (event,) = repaired.events
    assert (event.name, event.attributes) == (expected["event"], {event.name: event.name})
    assert dict(fit[1].links[0].attributes or {}) == {expected["link"]: expected["link"]}


def repair(text: str) -> str:
    """Return what arrives: pairs of surrogates are their character, others are U+FFFD."""
    paired = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return re.sub("[\ud800-\udfff]", "\ufffd", paired)


def test_what_an_exporter_logs_outside_of_an_export_is_logged(
    caplog: pytest.LogCaptureFixture, leaks: LeakWatch
) -> None:
    """Also in the thread of an export, and after one that failed."""
    leaks.allow("logged: closed")
    logger = logging.getLogger("opentelemetry.exporter.mine")

    class Failing:
        def export(self, _batch: object) -> None:
            logger.warning("retrying")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        QuietExporter(Failing()).export([])
    logger.warning("closed")
    assert "closed" in caplog.text
    assert "retrying" not in caplog.text
