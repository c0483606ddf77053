"""Spans and points that are lost: counted, and told once."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from rx_backend.telemetry.counted_spans import CountedSpans
from rx_backend.telemetry.losses import Losses
from tests.leaks import LeakWatch


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
def queue(
    exporter: SpanExporter, size: int, sampler: Sampler = ALWAYS_ON
) -> Generator[tuple[TracerProvider, CountedSpans, Losses]]:
    """A provider over one queue, of which each batch has one span."""
    logging.getLogger("opentelemetry.exporter.tests")
    losses = Losses()
    spans = CountedSpans(exporter, losses, queue_size=size, batch_size=1)
    provider = TracerProvider(sampler, shutdown_on_exit=False)
    provider.add_span_processor(spans)
    try:
        yield provider, spans, losses
    finally:
        provider.shutdown()


def end(provider: TracerProvider, *names: str) -> None:
    for name in names:
        provider.get_tracer("tests").start_span(name).end()


def test_spans_beyond_a_full_queue_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Ending a span never waits; those for which there is no room are lost, and told once."""
    gate = Gate()
    with queue(gate, size=2) as (provider, _, losses):
        end(provider, "first")
        assert gate.entered.wait(10.0)
        end(provider, "second", "third", "fourth", "fifth", "sixth")
        assert losses.lost["traces"] == 3
        gate.opened.set()
        provider.force_flush()
        end(provider, "seventh")
    assert gate.names == ["first", "second", "third", "seventh"]
    assert losses.lost == {"traces": 3, "metrics": 0}
    (warning,) = caplog.messages
    assert warning.startswith("spans are being lost: the queue is full")
    assert gate.shutdowns == 1


def test_a_failing_exporter_is_told_once_and_its_own_words_are_held_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each span of a failed export is lost; the first warning has the exporter's reason."""
    with queue(Fails(), size=8) as (provider, _, losses):
        end(provider, "fails", "raises", "fails")
    assert losses.lost["traces"] == 3
    assert caplog.messages == [
        "spans are being lost: no answer.; rx_backend.telemetry.lost counts them, and this is said once"
    ]


def test_what_others_log_is_not_held_back(
    caplog: pytest.LogCaptureFixture, leaks: LeakWatch
) -> None:
    """An exporter that the application runs itself keeps its warnings."""
    leaks.allow("mine")
    with queue(Fails(), size=8) as (provider, _, _):
        end(provider, "fails")
    caplog.clear()
    logging.getLogger("opentelemetry.exporter.tests").warning("mine")
    assert caplog.messages == ["mine"]


def test_what_is_under_way_at_the_deadline_is_lost() -> None:
    """Span by span: the one being exported, and those that wait; a late success counts no more."""
    gate = Gate()
    with queue(gate, size=8) as (provider, spans, losses):
        end(provider, "first")
        assert gate.entered.wait(10.0)
        end(provider, "second", "third")
        spans.start_closing()
        spans.cut_off()
        spans.settle(0.0)
        assert losses.lost["traces"] == 3
        end(provider, "late")
        assert losses.lost["traces"] == 4
        gate.opened.set()
    assert losses.lost["traces"] == 4
    assert gate.shutdowns == 1


def test_unsampled_spans_are_no_loss() -> None:
    """They were never meant to be exported."""
    with queue(Gate(), size=1, sampler=ALWAYS_OFF) as (provider, _, losses):
        end(provider, "one", "two")
    assert losses.lost["traces"] == 0


@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_process_has_a_queue_of_its_own() -> None:
    """What waits in the parent takes no room in the child, whose own spans are exported at its end."""
    gate = Gate()
    with queue(gate, size=2) as (provider, spans, losses):
        end(provider, "first")
        assert gate.entered.wait(10.0)
        end(provider, "second", "third")
        end(provider, "lost")
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                gate.opened = threading.Event()
                gate.opened.set()
                end(provider, "of the child")
                spans.start_closing()
                spans.wait_closed(10.0)
                os.write(writer, f"{gate.names} {losses.lost}".encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        with os.fdopen(reader) as told:
            assert told.read() == "['of the child'] {'traces': 0, 'metrics': 0}"
        gate.opened.set()
    assert gate.names == ["first", "second", "third"]
    assert losses.lost["traces"] == 1
