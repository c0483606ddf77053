"""The SDK's providers of this process; `configure` imports them when they are asked for."""

from __future__ import annotations

import atexit
import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any, Final, Self

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from operators.assembly import encodable
from rx_backend.errors import InvalidArgument
from rx_backend.telemetry.exporters import make_exporters, serve_prometheus
from rx_backend.telemetry.logs import Logs
from rx_backend.telemetry.quiet_exporter import QuietExporter, QuietSpanExporter
from rx_backend.telemetry.settings import SERVICE, batching, hide_secrets

__all__ = ("Telemetry",)

_DEADLINE_S: Final = 5.0


class Telemetry:
    """
    What `configure` installed; a context manager that shuts it down.

    Attributes:
        traces: Where spans go, or why they don't, in words.
        metrics: The same for metrics.
        logs: Where the log goes; None where that was left as it is.
        prometheus_url: Where metrics can be scraped; None without a Prometheus endpoint.
        tracer_provider: The tracer provider that was installed; None where none was.
        meter_provider: The meter provider that was installed; None where none was.
    """

    def __init__(self, variables: Mapping[str, str], logs: Logs | None) -> None:
        self.logs = None if logs is None else str(logs)
        self.tracer_provider: TracerProvider | None = None
        self.meter_provider: MeterProvider | None = None
        self.prometheus_url: str | None = None
        self._is_shut_down = False
        # Whatever fails does so before anything is installed.
        with ExitStack() as undo, ExitStack() as exporters:
            try:
                self._build(variables, undo, exporters)
            except InvalidArgument:
                raise
            except Exception as error:
                # Of the variables the SDK checks some itself, and raises what it likes.
                message = f"OpenTelemetry's SDK: {hide_secrets(str(error))}"
                raise InvalidArgument(message) from error
            exporters.pop_all()
            undo.pop_all()
        self._install()
        if logs is not None:
            self._stack.push(logs)
        atexit.register(self.shutdown)

    def _build(self, variables: Mapping[str, str], undo: ExitStack, exporters: ExitStack) -> None:
        """Make what is to be installed; *undo* and, ahead of it, *exporters* end what was made."""
        self._stack = undo.enter_context(ExitStack())
        spans, self.traces = make_exporters(
            variables, "traces", _tracers_of_others(), QuietSpanExporter, exporters
        )
        points, self.metrics = make_exporters(
            variables, "metrics", _meters_of_others(), QuietExporter, exporters
        )
        self._exporters: list[QuietExporter] = [*spans, *points]
        readers: list[Any] = []
        if "prometheus" in self.metrics.split(", "):
            reader, self.prometheus_url = serve_prometheus(variables, self._stack)
            readers.append(reader)
            at = f"Prometheus at {self.prometheus_url}"
            self.metrics = self.metrics.replace("prometheus", at)
        if not (spans or points or readers):
            return
        resource = _resource(variables)
        if spans:
            ratio = variables.get("OTEL_TRACES_SAMPLE_RATIO")
            sampler = None
            if ratio is not None and "OTEL_TRACES_SAMPLER" not in variables:
                sampler = ParentBasedTraceIdRatio(float(ratio))
            self.tracer_provider = TracerProvider(
                sampler, resource, shutdown_on_exit=False, id_generator=_EntropyIds()
            )
            queue_size, batch_size = batching(variables)
            targets: list[Any] = [*spans]
            for exporter in targets:
                processor = BatchSpanProcessor(
                    exporter, max_queue_size=queue_size, max_export_batch_size=batch_size
                )
                undo.callback(processor.shutdown)
                self.tracer_provider.add_span_processor(processor)
        # OTLP, which may hang, comes last, so that at the end the others have their time.
        targets = [*points]
        for exporter in targets:
            reader = PeriodicExportingMetricReader(exporter)
            readers.append(reader)
            undo.callback(readers[-1].shutdown)
        if readers:
            self.meter_provider = MeterProvider(readers, resource, shutdown_on_exit=False)

    def _install(self) -> None:
        # Meters first: the SDK counts its own doings on them where that is switched on.
        if self.meter_provider is not None:
            metrics.set_meter_provider(self.meter_provider)
        if self.tracer_provider is not None:
            trace.set_tracer_provider(self.tracer_provider)

    @property
    def lost(self) -> list[str]:
        """What did not all reach its receiver, in words: ``spans``, ``metric points``."""
        return sorted({one.items for one in self._exporters if one.has_failed})

    def shutdown(self, deadline_s: float = _DEADLINE_S) -> None:
        """
        Export what is pending, and end what was installed; idempotent.

        The process's exit does so too. It blocks: call it after the event loop's end, or with
        `asyncio.to_thread`.

        Args:
            deadline_s: For all of it, in s. What was not exported by then is lost.
        """
        if self._is_shut_down:
            return
        self._is_shut_down = True
        atexit.unregister(self.shutdown)
        began = time.monotonic()

        def left_s(part: float) -> float:
            return max(0.0, began + deadline_s * part - time.monotonic())

        # A thread that hangs in an export is left behind.
        spans = threading.Thread(target=self._end_tracers, daemon=True)
        spans.start()
        # The SDK's metrics of itself count the spans that were lost, where that is known soon.
        spans.join(left_s(0.5))
        if self.meter_provider is not None:
            # It raises what a reader raises, and when it is late.
            with suppress(Exception):
                self.meter_provider.shutdown(timeout_millis=max(0.05, left_s(0.9)) * 1000.0)
        spans.join(left_s(0.9))
        for exporter in self._exporters:
            exporter.shutdown()
        spans.join(left_s(1.0))
        self._stack.close()

    def _end_tracers(self) -> None:
        if self.tracer_provider is not None:
            self.tracer_provider.shutdown()

    def __str__(self) -> str:
        logs = "" if self.logs is None else f"; logs: {self.logs}"
        return f"traces: {self.traces}; metrics: {self.metrics}{logs}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


class _EntropyIds(RandomIdGenerator):
    """Ids from the system's entropy: an engine may seed `random` alike in every worker (row P10)."""

    def generate_span_id(self) -> int:
        return secrets.randbits(64) or self.generate_span_id()

    def generate_trace_id(self) -> int:
        return secrets.randbits(128) or self.generate_trace_id()


def _tracers_of_others() -> str:
    """Return the name of the provider that the application has set up; empty without one."""
    provider = trace.get_tracer_provider()
    return "" if isinstance(provider, trace.ProxyTracerProvider) else _name(provider)


def _meters_of_others() -> str:
    provider = metrics.get_meter_provider()
    # The API's stand-in for a provider that is still to come has no public name.
    is_stand_in = _name(provider).startswith("opentelemetry.metrics.")
    is_no_op = isinstance(provider, metrics.NoOpMeterProvider)
    return "" if is_stand_in and not is_no_op else _name(provider)


def _name(provider: object) -> str:
    return f"{type(provider).__module__}.{type(provider).__qualname__}"


def _resource(variables: Mapping[str, str]) -> Resource:
    named = variables.get("OTEL_SERVICE_NAME")
    resource = Resource.create({SERVICE_NAME: named} if named else None)
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: SERVICE}))
    # Bytes of the environment that are no UTF-8 can't be encoded.
    texts = {n: encodable(v) for n, v in resource.attributes.items() if isinstance(v, str)}
    return resource.merge(Resource(texts))
