"""Providers as the settings say; the SDK is imported here, when it is asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics, trace

from rx_backend.telemetry.exporters import (
    Prometheus,
    exporters,
    serve_prometheus,
    without_password,
)
from rx_backend.telemetry.losses import Losses
from rx_backend.telemetry.settings import Settings, SignalSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    from rx_backend.telemetry.counted_metrics import CountedMetricExporter
    from rx_backend.telemetry.counted_spans import CountedSpans

__all__ = ("SERVICE", "Installed", "install")

SERVICE: Final = "rx-backend"
"""The service, where nobody names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """
    What was installed: in words, and what has to be closed.

    Attributes:
        traces: What became of spans.
        metrics: What became of metrics.
        prometheus_url: Where metrics can be scraped.
        losses: What was lost.
        spans: The queues of spans.
        points: The exporters of metrics.
        tracer_provider: The tracer provider.
        meter_provider: The meter provider.
        stack: What else to close.
    """

    traces: str
    metrics: str
    prometheus_url: str | None
    losses: Losses
    spans: Sequence[CountedSpans]
    points: Sequence[CountedMetricExporter]
    tracer_provider: TracerProvider | None
    meter_provider: MeterProvider | None
    stack: ExitStack

    def close(self, deadline_s: float) -> None:
        """Export what waits, and end everything, in so many seconds."""
        began = time.monotonic()
        half, most, all_of_it = (began + deadline_s * part for part in (0.5, 0.9, 1.0))
        for spans in self.spans:
            spans.start_closing()
        # The last metrics tell how many spans were lost, where that is known soon.
        for spans in self.spans:
            spans.wait_closed(half - time.monotonic())
        if self.meter_provider is not None:
            left_s = max(_LEAST_S, most - time.monotonic())
            # It raises what a reader raises, and when it is late: nothing that could be mended.
            with suppress(Exception):
                self.meter_provider.shutdown(timeout_millis=left_s * 1000.0)
        for spans in self.spans:
            spans.wait_closed(most - time.monotonic())
            spans.cut_off()
        for counted in (*self.spans, *self.points):
            counted.settle(all_of_it - time.monotonic())
        self.stack.close()


def install(settings: Settings) -> Installed:
    """
    Install what *settings* say; nothing where that fails.

    Raises:
        InvalidArgument: A package is missing, a port is taken, or an exporter can't be made.
    """
    losses = Losses()
    others_tracers, others_meters = _others_tracer_provider(), _others_meter_provider()
    prometheus: Prometheus | None = None
    # What can fail comes first, and before anything that has a thread to export.
    with ExitStack() as undo:
        span_exporters = [] if others_tracers else exporters("traces", settings.traces, undo)
        point_exporters = [] if others_meters else exporters("metrics", settings.metrics, undo)
        stack = undo.enter_context(ExitStack())
        if "prometheus" in settings.metrics.exporters and not others_meters:
            prometheus = serve_prometheus(settings, stack)
        undo.pop_all()
    spans: list[CountedSpans] = []
    points: list[CountedMetricExporter] = []
    tracer_provider = meter_provider = None
    if span_exporters or point_exporters or prometheus:
        resource = _resource(settings)
        # Meters first: the SDK's parts count on them where they are told to.
        if point_exporters or prometheus:
            points = _counted(point_exporters, losses)
            meter_provider = _install_meters(points, prometheus, resource)
        if span_exporters:
            spans = _queues(span_exporters, losses, settings)
            tracer_provider = _install_tracers(spans, settings, resource)
        losses.observe_in(metrics.get_meter_provider())
    return Installed(
        traces=_words(settings.traces, others_tracers),
        metrics=_words(settings.metrics, others_meters, prometheus),
        prometheus_url=prometheus.url if prometheus else None,
        losses=losses,
        spans=spans,
        points=points,
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
        stack=stack,
    )


def _others_tracer_provider() -> str:
    """The name of the provider that the application has set up; empty where there is none."""
    provider = trace.get_tracer_provider()
    return "" if isinstance(provider, trace.ProxyTracerProvider) else _name(provider)


def _others_meter_provider() -> str:
    provider = metrics.get_meter_provider()
    # The API's stand-in for a provider that is still to come is no public name of it.
    is_stand_in = _name(provider).startswith("opentelemetry.metrics.")
    if is_stand_in and not isinstance(provider, metrics.NoOpMeterProvider):
        return ""
    return _name(provider)


def _name(provider: object) -> str:
    return f"{type(provider).__module__}.{type(provider).__qualname__}"


def _resource(settings: Settings) -> Resource:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415 - a light start

    if settings.service_name is not None:
        return Resource.create({SERVICE_NAME: settings.service_name})
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME)).startswith("unknown_service"):
        return resource.merge(Resource({SERVICE_NAME: SERVICE}))
    return resource


def _counted(point_exporters: list[Any], losses: Losses) -> list[CountedMetricExporter]:
    from rx_backend.telemetry.counted_metrics import (  # noqa: PLC0415 - a light start
        CountedMetricExporter,
    )

    return [CountedMetricExporter(exporter, losses) for exporter in point_exporters]


def _install_meters(
    points: list[CountedMetricExporter], prometheus: Prometheus | None, resource: Resource
) -> MeterProvider:
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415 - a light start
    from opentelemetry.sdk.metrics.export import (  # noqa: PLC0415 - the same
        PeriodicExportingMetricReader,
    )

    # OTLP, which may hang, comes last, so that at the end the others have their time.
    readers: list[Any] = [prometheus.reader] if prometheus else []
    readers += map(PeriodicExportingMetricReader, points)
    provider = MeterProvider(readers, resource, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    return provider


def _queues(span_exporters: list[Any], losses: Losses, settings: Settings) -> list[CountedSpans]:
    from rx_backend.telemetry.counted_spans import CountedSpans  # noqa: PLC0415 - a light start

    sizes = {"queue_size": settings.queue_size, "batch_size": settings.batch_size}
    return [CountedSpans(exporter, losses, **sizes) for exporter in span_exporters]


def _install_tracers(
    queues: list[CountedSpans], settings: Settings, resource: Resource
) -> TracerProvider:
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - a light start
    from opentelemetry.sdk.trace.sampling import (  # noqa: PLC0415 - the same
        ParentBasedTraceIdRatio,
    )

    ratio = settings.sample_ratio
    sampler = None if ratio is None else ParentBasedTraceIdRatio(ratio)
    provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
    for queue in queues:
        provider.add_span_processor(queue)
    trace.set_tracer_provider(provider)
    return provider


def _words(
    settings: SignalSettings, others_provider: str, prometheus: Prometheus | None = None
) -> str:
    if settings.off:
        return settings.off
    if others_provider:
        return f"left to {others_provider}, which was there"
    words = {
        "otlp": f"OTLP over {settings.protocol} to {without_password(settings.endpoint)}",
        "console": "console",
        "prometheus": f"Prometheus at {prometheus.url if prometheus else ''}",
    }
    return ", ".join(words[name] for name in settings.exporters)


_LEAST_S = 0.05
