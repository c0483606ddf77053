"""The SDK's providers of this process; `configure` imports them on demand."""

from __future__ import annotations

import atexit
import os
import secrets
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any, Final, Self

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio, Sampler

from operators.assembly import encodable
from rx_backend.errors import InvalidArgument
from rx_backend.telemetry.exporters import make_exporters
from rx_backend.telemetry.quiet_exporter import QuietExporter
from rx_backend.telemetry.settings import SERVICE, Signal, hide_secrets, set_variables

__all__ = ("Telemetry",)

_DEADLINE_S: Final = 5.0
_RATIO: Final = "OTEL_TRACES_SAMPLE_RATIO"


class Telemetry:
    """
    The providers that `configure` installed; a context manager that shuts them down.

    Attributes:
        traces: The destination of spans, or the reason why there is none, as text.
        metrics: The same for metrics.
        tracer_provider: The installed tracer provider, or None.
        meter_provider: The installed meter provider, or None.
    """

    def __init__(self, endpoint: str | None, service_name: str | None) -> None:
        self.tracer_provider: TracerProvider | None = None
        self.meter_provider: MeterProvider | None = None
        self.traces = self.metrics = ""
        self._exporters: list[QuietExporter] = []
        self._is_shut_down = False
        # All failures come before anything is installed.
        with ExitStack() as undo:
            try:
                self._build(endpoint, service_name, undo)
            except InvalidArgument:
                raise
            except Exception as error:
                # The SDK rejects some of its variables itself, with various exceptions.
                message = f"OpenTelemetry's SDK: {hide_secrets(str(error))}{set_variables()}"
                raise InvalidArgument(message) from error
            undo.pop_all()
        # Meters first: the SDK's own metrics, if enabled, use them.
        if self.meter_provider is not None:
            metrics.set_meter_provider(self.meter_provider)
        if self.tracer_provider is not None:
            trace.set_tracer_provider(self.tracer_provider)
        atexit.register(self.shutdown)

    def _build(self, endpoint: str | None, service_name: str | None, undo: ExitStack) -> None:
        """Create the providers to install; *undo* shuts them down."""
        resource = _resource(service_name)
        spans, self.traces = _unless_set(trace.get_tracer_provider(), "traces", endpoint, undo)
        if spans:
            tracers = TracerProvider(
                _sampler(), resource, shutdown_on_exit=False, id_generator=_EntropyIds()
            )
            for exporter in spans:
                processor = BatchSpanProcessor(exporter)
                undo.callback(processor.shutdown)
                tracers.add_span_processor(processor)
            self.tracer_provider = tracers
        points, self.metrics = _unless_set(metrics.get_meter_provider(), "metrics", endpoint, undo)
        readers: list[Any] = []
        for exporter in points:
            is_reader = isinstance(exporter, MetricReader)
            readers.append(exporter if is_reader else PeriodicExportingMetricReader(exporter))
            if not is_reader:
                undo.callback(readers[-1].shutdown)
        if readers:
            self.meter_provider = MeterProvider(readers, resource, shutdown_on_exit=False)
        self._exporters = [one for one in spans + points if isinstance(one, QuietExporter)]

    @property
    def lost(self) -> list[str]:
        """The signals with losses, as text: ``spans``, ``metric points``."""
        return sorted({one.items for one in self._exporters if one.has_failed})

    def shutdown(self, deadline_s: float = _DEADLINE_S) -> None:
        """
        Export what is pending, and shut the providers down. Idempotent.

        Also done at the process's exit. It blocks: call it after the event loop has ended, or with
        `asyncio.to_thread`.

        Args:
            deadline_s: The time limit, in seconds. What was not exported by then is lost.
        """
        if self._is_shut_down:
            return
        self._is_shut_down = True
        atexit.unregister(self.shutdown)
        began = time.monotonic()
        providers = [self.tracer_provider, self.meter_provider]
        # A thread that hangs in an export is abandoned.
        endings = [
            threading.Thread(target=_end, args=[provider], daemon=True)
            for provider in providers
            if provider is not None
        ]
        started = [ending for ending in endings if _is_started(ending)]

        def wait(part: float) -> None:
            for ending in started:
                ending.join(max(0.0, began + deadline_s * part - time.monotonic()))

        wait(0.9)
        for exporter in self._exporters:
            exporter.shutdown()
        wait(1.0)

    def __str__(self) -> str:
        return f"traces: {self.traces}; metrics: {self.metrics}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def _is_started(thread: threading.Thread) -> bool:
    """Start a thread; if none can be started any more, do its work here and return False."""
    try:
        thread.start()
    except RuntimeError:
        # Python 3.12.0 and 3.12.1 refuse it in `atexit` callbacks.
        thread.run()
        return False
    return True


class _EntropyIds(RandomIdGenerator):
    """Ids from the system's entropy: an engine may seed `random` alike in all workers (row P10)."""

    def generate_span_id(self) -> int:
        return secrets.randbits(64) or self.generate_span_id()

    def generate_trace_id(self) -> int:
        return secrets.randbits(128) or self.generate_trace_id()


def _unless_set(
    provider: object, signal: Signal, endpoint: str | None, undo: ExitStack
) -> tuple[list[Any], str]:
    """Create the exporters of a signal, unless the application has set up a provider for it."""
    found = type(provider)
    # The API's proxies for a provider that is not yet set.
    if found.__module__.startswith("opentelemetry.") and "Proxy" in found.__name__:
        return make_exporters(signal, endpoint, undo)
    return [], f"left to {found.__module__}.{found.__qualname__}, already set up"


def _end(provider: TracerProvider | MeterProvider) -> None:
    # It raises what a reader raises.
    with suppress(Exception):
        provider.shutdown()


def _sampler() -> Sampler | None:
    """Return the sampler of Dynamo's variable; None for that of OpenTelemetry's."""
    ratio = os.environ.get(_RATIO)
    if not ratio or os.environ.get("OTEL_TRACES_SAMPLER"):
        return None
    try:
        return ParentBasedTraceIdRatio(float(ratio))
    except ValueError as error:
        raise InvalidArgument(f"{_RATIO}: expected a number from 0 to 1, got {ratio!r}") from error


def _resource(service_name: str | None) -> Resource:
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: service_name or SERVICE}))
    # Bytes of the environment that are not UTF-8 can't be encoded.
    texts = {n: encodable(v) for n, v in resource.attributes.items() if isinstance(v, str)}
    return resource.merge(Resource(texts))
